"""Lines for whoever reads along, wherever standard error goes."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from typing import Iterator

_readers: list[int] = []
"""Descriptors beside standard error."""


def say(line: str) -> None:
    """Write a line to standard error, and where a command has sent that to a file, also to where it went before."""
    print(line, file=sys.stderr, flush=True)
    for reader in _readers:
        with suppress(OSError):  # of a reader that has gone
            over_progress = "\r\033[K" if os.isatty(reader) else ""
            os.write(reader, f"{over_progress}{line}\n".encode(errors="backslashreplace"))


@contextmanager
def also_said_to(descriptor: int) -> Iterator[None]:
    """Of this process, within."""
    _readers.append(descriptor)
    try:
        yield
    finally:
        _readers.remove(descriptor)
