"""Live progress of a sweep on the terminal: trials done and running, the best so far, the time left."""

from __future__ import annotations

import time
from typing import Any, TextIO

from ray import tune


class Progress(tune.Callback):
    """Counts trials over all phases of a sweep; one line, rewritten on a terminal, repeated every so often elsewhere."""

    def __init__(self, terminal: TextIO, total: int, every_seconds: float):
        self.terminal, self.total, self.every = terminal, total, every_seconds
        self.done = self.skipped = self.running = self.failed = 0
        self.best: tuple[float, str] | None = None
        self.started = self.shown = time.monotonic()

    def skip(self, count: int) -> None:
        """Trials that an earlier run of this sweep has finished."""
        self.skipped += count

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running += 1
        self.show()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        score, name = result.get("score"), trial.config["trial"]["name"]
        if score is not None and score == score and (self.best is None or score > self.best[0]):
            self.best = (score, name)
        self.failed += result.get("step") == -1
        self.show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running -= 1
        self.done += 1
        self.show(force=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running -= 1
        self.done += 1
        self.failed += 1
        self.show(force=True)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.show()

    def show(self, force: bool = False) -> None:
        now = time.monotonic()
        on_terminal = self.terminal.isatty()
        if now - self.shown < (0.5 if on_terminal else self.every) and not (force and on_terminal):
            return
        self.shown = now
        left = (now - self.started) / self.done * (self.total - self.skipped - self.done) if self.done else None
        parts = [f"{self.done + self.skipped}/{self.total} trials done", f"{self.running} running"]
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"best {self.best[0]:.1f} ({self.best[1]})"] if self.best else []
        parts += [f"about {left / 60:.0f} min {left % 60:02.0f} s left" if left is not None else "time left: not known yet"]
        line = "  ".join(parts)
        self.terminal.write(f"\r\033[K{line}" if on_terminal else line + "\n")
        self.terminal.flush()
