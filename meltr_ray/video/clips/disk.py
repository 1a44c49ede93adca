"""A full disk is said in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meltr_ray.errors import ConfigError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
