"""SIGTERM and Ctrl-C of a driver: what runs is asked to save and stop, and the command ends within `train.grace` seconds."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Iterator, TextIO

from meltr_ray.cluster.terminal import tell
from meltr_ray.storage import stop

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FOR_THE_REPORT = 10.0
"""Seconds of `train.grace`, half of it at most, that are kept for what comes after the trials."""
TWICE = 0.05
"""Seconds in which a second signal isn't meant as one."""


class Interruption:
    """A context in which the first signal asks whoever trains under `folder` to stop, and a second one, or the end of the grace, raises
    KeyboardInterrupt wherever the driver stands.

    Args:
        terminal: where a line says so.
    """

    def __init__(self, folder: Path, grace: float, terminal: TextIO):
        self.folder, self.grace, self.terminal = folder, grace, terminal
        self.number = 0
        """Of the first signal."""
        self.since = 0.0
        """When it came."""
        self.again = False
        """Whether there was a second, so that nothing more is waited for."""
        self.ends = float("inf")
        """By the monotonic clock."""
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        stop.withdraw(self.folder)
        self.before = handlers()
        put_back(dict.fromkeys(self.before, self.take))
        return self

    def __exit__(self, *error: object) -> None:
        self.in_seconds(0)
        put_back(self.before)

    @property
    def code(self) -> int:
        """Exit code of a command that ended so: 130 after Ctrl-C, 143 after SIGTERM or because its machine leaves."""
        return 128 + (self.number or signal.SIGTERM)

    @property
    def asked(self) -> bool:
        return self.number > 0

    def take(self, number: int, frame: FrameType | None) -> None:
        """A signal. `timeout` sends its own twice at once, to the command and to its group: those are one."""
        if self.asked and time.monotonic() - self.since < TWICE:
            return
        if self.asked:
            self.again = True
            raise KeyboardInterrupt
        self.begin(number)
        stop.ask(self.folder)
        line = (
            f"{signal.Signals(number).name}: running trials save their step and stop within {self.grace:g} s; signal again to end at once\n"
        )
        tell(self.terminal.fileno(), line)  # a signal may come in the middle of a print
        self.in_seconds(max(self.grace - FOR_THE_REPORT, self.grace / 2))

    def begin(self, number: int) -> None:
        """The grace begins, by a signal or as if by one."""
        self.number, self.since = number, time.monotonic()
        self.ends = self.since + self.grace

    @property
    def over(self) -> bool:
        """Whether nothing more is to be begun: a second signal came, or the grace is over."""
        return self.again or time.monotonic() >= self.ends

    def trials_ended(self) -> None:
        """What is left of the grace belongs to what comes after them."""
        if self.asked and not self.over:
            self.in_seconds(self.ends - time.monotonic())

    def late(self, number: int, frame: FrameType | None) -> None:
        """The trials' share of the grace is over, or all of it."""
        if not self.over:
            self.in_seconds(self.ends - time.monotonic())
        raise KeyboardInterrupt

    def in_seconds(self, seconds: float) -> None:
        """Raise KeyboardInterrupt then; 0: not at all."""
        if self.before:  # in the main thread
            signal.signal(signal.SIGALRM, self.late)
            signal.setitimer(signal.ITIMER_REAL, seconds)


def handlers() -> dict[int, Any]:
    """Of the signals that end a command; empty outside the main thread, which alone has a say in them."""
    import threading

    return {number: signal.getsignal(number) for number in SIGNALS} if threading.current_thread() is threading.main_thread() else {}


def put_back(found: dict[int, Any]) -> None:
    """What `handlers` found."""
    for number, handler in found.items():
        signal.signal(number, handler)


@contextmanager
def own_handlers() -> Iterator[None]:
    """Handlers that a library sets inside are put back after it."""
    found = handlers()
    try:
        yield
    finally:
        put_back(found)
