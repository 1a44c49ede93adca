"""Files on disk: written whole or not at all, told apart by checksum, and a full disk said in one line."""

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


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
