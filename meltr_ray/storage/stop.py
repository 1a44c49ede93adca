"""A request to stop: the driver writes it in its folder, and whoever trains reads it there, on any machine.

The file is there from the beginning and is written in place: NFS promises that an open sees what was written before, but not when it
sees a new name.
"""

from __future__ import annotations

import time
from pathlib import Path

STOP = ".stop"
EVERY = 0.25
"""Seconds between two looks at it."""


def withdraw(folder: Path) -> None:
    """Before anything starts: no request."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / STOP
    if file.is_symlink() or (file.exists() and not file.is_file()):  # to somewhere else, which isn't ours to write, or a pipe
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
    file.write_text("", encoding="utf-8")


def ask(folder: Path) -> None:
    """Whoever trains under `folder` saves and stops after its step."""
    (folder / STOP).write_text("stop\n", encoding="utf-8")


class Asked:
    """Whether `ask` was called for a folder; looks at the disk a few times a second at most, so it may be asked after each step."""

    def __init__(self, folder: Path | str):
        self.file, self.looked, self.found = Path(folder) / STOP, -EVERY, False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self.found and now - self.looked >= EVERY:
            self.looked = now
            try:
                self.found = self.file.read_text(encoding="utf-8") != ""
            except OSError:  # of a folder that is gone, or of a server that doesn't answer just now
                pass
        return self.found
