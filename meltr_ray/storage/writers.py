"""One writer at a time: a folder is locked while a command writes it, and a later attempt at a trial shuts out an earlier one."""

from __future__ import annotations

import json
import os
import platform
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Iterator

from meltr_ray.errors import ConfigError
from meltr_ray.storage.whole import put

LOCK, WRITER, ATTEMPT, STARTS = ".lock", ".writer.json", ".attempt", ".starts"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds `folder` until the end, or until this process dies, in whatever way.

    Raises:
        ConfigError: another process holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"resume={folder}: {_writer(folder)} writes it; wait until that has ended, or end it first") from None
    try:
        put(
            folder / WRITER,
            json.dumps({"host": platform.node(), "process": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}),
        )
        yield
    finally:
        lock.release()


def _writer(folder: Path) -> str:
    try:
        known = json.loads((folder / WRITER).read_text(encoding="utf-8"))
        return f"process {known['process']} on {known['host']}, since {known['since']},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


class ShutOut(RuntimeError):
    """A later attempt writes the folder: this one must not."""


class Attempt:
    """An attempt at a trial, by number: the greatest is the one that may write.

    Workers of a machine that was given up may go on for minutes; what they would write then is refused.
    """

    def __init__(self, folder: Path):
        self.file = Path(folder) / ATTEMPT
        self.number = _number(self.file) + 1
        put(self.file, str(self.number))

    def check(self) -> None:
        """Raises ShutOut where a later attempt has begun."""
        if (now := _number(self.file)) > self.number:
            raise ShutOut(f"attempt {now} writes {self.file.parent} now, and this is attempt {self.number}")


class Starts:
    """Starts of a trial's process since the command began; one that ended because its machine leaves is taken back."""

    def __init__(self, folder: Path):
        self.file = Path(folder) / STARTS
        self.number = _number(self.file) + 1
        put(self.file, str(self.number))

    def take_back(self) -> None:
        put(self.file, str(self.number - 1))

    @staticmethod
    def forget(folder: Path) -> None:
        (Path(folder) / STARTS).unlink(missing_ok=True)


def _number(file: Path) -> int:
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
