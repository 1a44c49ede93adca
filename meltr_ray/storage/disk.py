"""What a disk or a path refuses, in words: no fault of the program."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from meltr_ray.errors import check

MENDS = {
    errno.ENOSPC: "make room, what was finished is saved",
    errno.EDQUOT: "make room within your quota, what was finished is saved",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "change its permissions, or give another path",
    errno.EPERM: "change its permissions, or give another path",
    errno.ENOTDIR: "a file stands where a folder is needed; give another path",
    errno.EISDIR: "a folder stands where a file is needed; give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "a link leads to itself; remove it",
    errno.EIO: "the disk is failing, or its server; try again when it is mended",
    errno.ESTALE: "its server has lost it; try again",
}


def in_words(error: OSError) -> str | None:
    """One line; None where it may be a fault of the program."""
    if error.errno not in MENDS:
        return None
    return f"{error.filename or 'a file'}: {os.strerror(error.errno).lower()}; {MENDS[error.errno]}"


def check_files(setting: str, folder: Path, names: tuple[str, ...]) -> None:
    """Raises ConfigError: in place of one of the files that are to be written in `folder` stands something else."""
    for name in names:
        path = folder / name
        check(
            path.is_file() or not os.path.lexists(path) or (path.is_symlink() and not path.exists()),
            setting,
            folder,
            f"{name} in it is no file, where one is written; move it away",
        )
