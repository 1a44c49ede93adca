"""The one writer: a file is there whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Callable


def put(path: Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Write to a temporary name beside `path`, flush it to disk and rename it; folders are made.

    `content`: bytes, text (UTF-8), or a function that writes to the open file. What was there before stays until the rename,
    also where writing fails; a reader never sees half a file.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)

    put_by_path(path, write)


def put_by_path(path: Path, write: Callable[[Path], object]) -> None:
    """The same for a writer that takes a path and no file: `write` makes the file at the path that it is given."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def stamp(path: Path) -> tuple[int, int, int]:
    """Differs where a file is another: ours are replaced as a whole, and users' may be written in place."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size
