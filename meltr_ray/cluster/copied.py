"""What of a run or sweep is copied to object storage, and in what order, so that what is there is always a state to go on from.

Of a trial, or a run by itself: the files of its newest checkpoint, all others, the table, and the checkpoint's marker. A checkpoint is valid by
its marker, so the table has every row up to it; and weights that the table speaks of are there before it. They are looked at the other way
round, and held by hard links: what is written meanwhile comes with the next look.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from meltr_ray.results import table as results
from meltr_ray.storage.whole import stamp
from meltr_ray.training import checkpoint

CHECKPOINTS, TRIALS, LOG = "checkpoints", "trials", "log.txt"
LEFT_OUT = (CHECKPOINTS, TRIALS, "ray")
"""Folders: the first two are looked at apart, the last is Ray's own, which nothing goes on from."""


@dataclass
class Held:
    """Files as they were at one moment."""

    part: str
    """The trial's folder, below that of the sweep; empty: what lies beside trials, or a run."""
    files: list[tuple[str, Path]] = field(default_factory=list)
    """Name below the folder, and where it is held, in the order in which they are sent."""
    marker: str = ""
    """Name of the last of them that makes the checkpoint among them valid; empty: there is none."""
    checkpoints: list[str] = field(default_factory=list)
    """Names of the folders of all checkpoints that are here."""


class Looker:
    """Looks for what has changed since the last look, in a folder that others write."""

    def __init__(self, folder: Path):
        self.folder, self.staged = folder, folder / ".staged"
        self.seen: dict[str, tuple[int, int, int]] = {}
        """Name -> stamp, of files that were sent."""
        self.found: dict[str, tuple[int, int, int]] = {}
        """The same of files that were held."""
        self.number = 0

    def look(self, with_log: bool = False) -> Iterator[Held]:
        """Trials, one by one, then the rest, which was held before them: it never tells of more than the trials have."""
        shutil.rmtree(self.staged, ignore_errors=True)
        self.staged.mkdir(parents=True)
        rest = self.held(self.folder)
        if with_log:
            rest.files[:0] = self.hold([self.folder / LOG])
        for trial in sorted((self.folder / TRIALS).glob("*/")):
            yield self.held(trial)
        yield rest

    def held(self, part: Path) -> Held:
        complete = checkpoint.complete(part / CHECKPOINTS)
        table = self.hold([part / results.FILE])
        others = self.hold(path for path in files(part) if path != part / results.FILE)
        found = Held(self.name(part), checkpoints=[self.name(each) for each in complete])
        shared, marker = self.hold_checkpoint(complete[-1]) if complete else ([], [])
        found.marker = marker[0][0] if marker else ""
        found.files = [*shared, *others, *table, *marker]
        return found

    def hold_checkpoint(self, newest: Path) -> tuple[list[tuple[str, Path]], list[tuple[str, Path]]]:
        """All but its marker, and that; nothing where the marker hasn't changed, or where it has been deleted meanwhile."""
        marker = self.hold([newest / checkpoint.MARKER])
        rest = self.hold(path for path in newest.glob("*") if path.name != checkpoint.MARKER) if marker else []
        whole = marker and (newest / checkpoint.MARKER).exists()
        return (rest, marker) if whole else ([], [])

    def hold(self, paths: Iterator[Path] | list[Path]) -> list[tuple[str, Path]]:
        """Those that have changed and are there."""
        found = []
        for path in paths:
            with suppress(FileNotFoundError):
                now = stamp(path)  # before it is held: what comes between is found by the next look
                if self.seen.get(self.name(path)) == now:
                    continue
                self.found[self.name(path)] = now
                self.number += 1
                place = self.staged / str(self.number)
                linked(path, place)
                found.append((self.name(path), place))
        return found

    def done(self, held: Held) -> None:
        """All of it was sent."""
        self.seen |= {name: self.found[name] for name, _ in held.files}

    def name(self, path: Path) -> str:
        return "" if path == self.folder else path.relative_to(self.folder).as_posix()


def files(part: Path) -> Iterator[Path]:
    """All that a run or sweep leaves, but for checkpoints, trials and logs, and what is of this machine alone."""
    for place, folders, names in os.walk(part):
        folders[:] = [name for name in folders if not name.startswith(".") and not (name in LEFT_OUT and Path(place) == part)]
        for name in names:
            hidden = name.startswith(".") and not name.endswith(".copy")
            if not hidden and not name.endswith(".tmp") and Path(place, name) != part / LOG and not Path(place, name).is_symlink():
                yield Path(place, name)


def linked(path: Path, place: Path) -> None:
    """Hold a file as it is: what replaces it by a rename leaves it here. File systems without hard links copy it."""
    try:
        os.link(path, place)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(path, place)
