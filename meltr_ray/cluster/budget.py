"""Device-seconds that the trials of a sweep may take."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from meltr_ray.results import table as results


@dataclass
class Budget:
    """Books each trial at what it should cost and, when it has ended, at what it did."""

    limit: float = float("inf")
    spent: float = 0.0
    """By trials that don't run now."""
    booked: dict[str, float] = field(default_factory=dict)
    """Running trial -> what it costs from its first step to its last."""
    exhausted: bool = False
    """Whether a trial was not started."""

    @classmethod
    def of(cls, sweep: Path, limit: float | None) -> Budget:
        """Of a sweep that may have spent some already."""
        return cls(float("inf") if limit is None else limit, sum(map(spent, sweep.glob("trials/*"))))

    def start(self, trial: Path, cost: float) -> bool:
        """Book `trial`, which may have been begun before, if it fits."""
        begun = spent(trial)
        whole = max(cost, begun)
        if self.spent - begun + sum(self.booked.values()) + whole > self.limit:
            self.exhausted = True
            return False
        self.spent -= begun
        self.booked[trial.name] = whole
        return True

    def end(self, trial: Path) -> None:
        self.booked.pop(trial.name, None)
        self.spent += spent(trial)


def spent(trial: Path) -> float:
    """Device-seconds that a trial has taken so far."""
    seconds = results.device_seconds(results.read_trial(trial))
    return seconds if seconds == seconds else 0.0
