"""The end of a sweep whose cluster has no machine left: Ray Tune would wait for one for ever."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import tune

LOOK = 5.0
"""Seconds between two looks at the machines."""
PATIENCE = 30.0
"""Seconds in which another machine may join."""


class NoMachine(KeyboardInterrupt):
    """Nothing is left that could train, or save what was trained."""


class Lost(tune.Callback):
    """Looks whether there is a machine.

    Raises:
        NoMachine: there was none for `PATIENCE` seconds.
    """

    def __init__(self) -> None:
        self.next = self.seen = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + LOOK
        if any(machine["Alive"] for machine in ray.nodes()):
            self.seen = now
        elif now > self.seen + PATIENCE:
            raise NoMachine
