"""The sweep's table while the sweep runs: rows of running trials stand in it seconds later."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray import tune

from meltr_ray.results.table import Gathered
from meltr_ray.storage.saying import say

EVERY = 10.0
"""Seconds between two times that it is written, at least."""
SHARE = 0.05
"""Of the driver's time that this may take."""


class Live(tune.Callback):
    """Gathers the tables of the trials again and again."""

    def __init__(self, sweep: Path):
        self.sweep, self.next = sweep, time.monotonic() + EVERY
        self.gathered = Gathered(sweep)
        self.fails = False

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        began = time.monotonic()
        if began >= self.next:
            try:
                self.gathered()
                self.fails = False
            except OSError as error:  # of a file system that is full or away for a while: the trials go on
                if not self.fails:
                    say(f"{self.sweep}: the table of what runs can't be written now ({error}); it is tried again")
                self.fails = True
            ended = time.monotonic()
            self.next = ended + max(EVERY, (ended - began) / SHARE)

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks down; the tables are on disk already."""
        return vars(self) | {"gathered": Gathered(self.sweep)}
