"""Files on disk: told apart by checksum, and a full disk said in one line."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meltr_ray.errors import ConfigError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def disk_full_is_one_line(folder: Path, kept: Path | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        rest = f", what is whole stays in {kept}" if kept else ""
        reason = os.strerror(error.errno).lower()
        raise ConfigError(f"data.folder={folder}: can't be written ({reason}); free some space and start again{rest}") from None
