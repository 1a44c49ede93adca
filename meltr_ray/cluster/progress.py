"""Live progress of a sweep on the terminal: trials done and running, the best so far, the time left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from ray import tune

from meltr_ray.cluster.terminal import tell
from meltr_ray.results.numbers import measured
from meltr_ray.results.table import status_of
from meltr_ray.workload import Metric


class Progress(tune.Callback):
    """Counts trials over all phases of a sweep; one line, rewritten on a terminal, repeated every so often elsewhere."""

    def __init__(self, terminal: TextIO, total: int, every_seconds: float, metric: Metric):
        self.terminal = terminal.fileno()  # Tune pickles its callbacks, and files can't be
        self.total, self.every, self.metric = total, every_seconds, metric
        self.done = self.skipped = self.running = self.failed = 0
        self.under_way: dict[str, float] = {}
        """Running trial -> share of its steps that are done."""
        self.best: tuple[float, str] | None = None
        self.started = self.shown = time.monotonic()

    def take_up(self, trials: Iterable[Sequence[dict[str, Any]]]) -> None:
        """What an earlier run of this sweep has left: the rows of each of its trials."""
        for rows in trials:
            for row in rows:
                self.see(row["split"], row["score"], row["trial"])
            self.failed += status_of(row["status"] for row in rows) == "diverged"  # those that failed run again

    def see(self, split: str | None, score: float | None, name: str) -> None:
        """An evaluation of the trial `name`."""
        if split == "validation" and score is not None and score == score and (self.best is None or score > self.best[0]):
            self.best = (score, name)

    def skip(self, count: int) -> None:
        """Trials that an earlier run of this sweep has finished."""
        self.skipped += count

    def expect(self, count: int) -> None:
        """Trials more than were planned."""
        self.total += count

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        name = trial.config["trial"]["name"]
        self.see(result.get("split"), result.get("score"), name)
        self.failed += result.get("step") == -1  # how train.py reports a trial that ended badly
        self.under_way[name] = max(0, result.get("step", 0)) / trial.config["trial"]["steps"]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        self.under_way.pop(trial.config["trial"]["name"], None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.failed += 1
        self.on_trial_complete(iteration, trials, trial)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.running = sum(trial.status == "RUNNING" for trial in trials)
        self.show()

    def show(self) -> None:
        now = time.monotonic()
        on_terminal = os.isatty(self.terminal)
        if now - self.shown < (0.5 if on_terminal else self.every):
            return
        self.shown = now
        made = self.done + sum(self.under_way.values())
        left = (now - self.started) / made * (self.total - self.skipped - made) if made else None
        parts = [f"{self.done + self.skipped}/{self.total} trials done", f"{self.running} running"]
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"best {measured(self.metric, self.metric.score(self.best[0]))} ({self.best[1]})"] if self.best else []
        parts += ["about {} min {:02} s left".format(*divmod(round(left), 60)) if left is not None else "time left: not known yet"]
        line = "  ".join(parts)
        tell(self.terminal, f"\r\033[K{line}" if on_terminal else line + "\n")
