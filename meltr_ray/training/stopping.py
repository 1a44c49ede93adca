"""Whether a run ends before its last step: all ranks agree after a step, save it and stop there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class End(Enum):
    """How a run that didn't fail came to its end; a run that is started again goes on from there."""

    FINISHED = "finished"
    ASKED = "asked"
    """The driver asked it to stop."""
    LEAVING = "leaving"
    """A machine that it runs on will be taken away."""


class Stopped(Exception):
    """A run was asked to stop in the midst of a step's looking ahead; all is as it was before that."""

    def __init__(self, end: End):
        super().__init__(end.value)
        self.end = end


@dataclass
class Stop:
    """Asks after each step whether a run goes on. Its callables may look at the world; that all ranks get one answer is seen to here."""

    asked: Callable[[], bool] = lambda: False
    """Whether the driver wants it to stop; called on rank 0 alone."""
    leaving: Callable[[], bool] | None = None
    """Whether a machine of the run will be taken away; called by every rank after the same steps, and may wait for the others."""
    every: float = 2.0
    """Seconds between two calls of `leaving`."""
    looked: float = 0.0

    def __call__(self, engine: Any) -> End | None:
        """Every rank calls it after the same steps; None: go on."""
        word = engine.of_first_rank(self._word() if engine.rank == 0 else 0)
        if word == ASK_ALL:
            return End.LEAVING if self.leaving() else None
        return End.ASKED if word == STOP else None

    def _word(self) -> int:
        if self.asked():
            return STOP
        now = time.monotonic()
        if self.leaving is None or now - self.looked < self.every:
            return GO_ON
        self.looked = now
        return ASK_ALL


GO_ON, STOP, ASK_ALL = range(3)
"""What rank 0 tells the others after a step."""
