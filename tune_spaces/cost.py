"""What a plan costs in device-seconds, from a few short trials that were timed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from meltr_ray.config import Config
from tune_spaces.arms import Trial


@dataclass(frozen=True)
class Timing:
    """Of a trial on each of its workers."""

    start: float
    """Seconds before its first step."""
    step: float
    """Of a step, meta steps included."""
    evaluation: float
    """Of an evaluation, and of the checkpoint beside it."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Timing:
        """From the first two rows of a trial that was evaluated after equal numbers of steps. The first steps are slow: they are start."""
        first, second = rows[:2]
        training = second["seconds"] - first["seconds"]
        evaluation = max(0.0, second["elapsed"] - first["elapsed"] - training)
        step = training / (second["step"] - first["step"])
        return cls(max(0.0, first["elapsed"] - evaluation - first["step"] * step), step, evaluation)

    def of_trial(self, config: Config, test: bool) -> float:
        """Device-seconds."""
        evaluations = math.ceil(config.train.steps / config.train.evaluate_every) + test
        return max(1, config.train.num_workers) * (self.start + config.train.steps * self.step + evaluations * self.evaluation)


@dataclass(frozen=True)
class Timed:
    """Trials that were timed."""

    of_arms: dict[str, tuple[Trial, Timing]]

    def cost(self, trial: Trial) -> float:
        """Device-seconds of a trial: that of its own arm; else that of an equal way to combine, by the number of losses."""
        trials = list(self.of_arms.values())
        known = [pair for pair in trials if pair[0].arm == trial.arm] or [pair for pair in trials if _way(pair[0]) == _way(trial)] or trials
        of_losses = sorted((len(other.config.losses.set), timing.of_trial(trial.config, trial.test)) for other, timing in known)
        (few, less), (many, more) = of_losses[0], of_losses[-1]
        count = len(trial.config.losses.set)
        return more if few == many else max(0.0, less + (more - less) * (count - few) / (many - few))


def to_time(trials: Sequence[Trial]) -> list[Trial]:
    """Of a plan, the trials that are timed: for each way to combine, one with the fewest losses and one with the most."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(_way(trial), []).append(trial)

    def size(trial: Trial) -> int:
        return len(trial.config.losses.set)

    ends = [end for group in found.values() for end in (min(group, key=size), max(group, key=size))]
    return list({(trial.arm, size(trial)): trial for trial in ends}.values())


def _way(trial: Trial) -> str:
    """What a step's cost hangs on, besides the number of losses: not the numbers that a search draws."""
    combiner, aid = trial.config.combiner, trial.config.aid
    alike = replace(combiner, temperature=None, strength=None), replace(aid, learning_rate=1.0, gamma=1.0 if aid.gamma else 0.0)
    return combiner.name if combiner.name == "fixed" else repr(alike)
