"""What a plan costs in device-seconds, from a few short trials that were timed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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
    def of(cls, *timings: Sequence[Mapping[str, Any]]) -> Timing:
        """From the rows of equal trials, each evaluated after equal numbers of steps.

        Of each part the least is taken, over all trials and all windows between two evaluations: other work on the machine only ever adds to
        a time. What comes before a trial's first evaluation is no window: first steps are slow, and they are start.
        """
        windows = [_window(*pair) for rows in timings for pair in pairwise(rows)]
        step, evaluation = (min(part) for part in zip(*windows))
        starts = [rows[0]["elapsed"] - evaluation - rows[0]["step"] * step for rows in timings]
        return cls(max(0.0, min(starts)), step, evaluation)

    def of_trial(self, config: Config, test: bool) -> float:
        """Device-seconds."""
        evaluations = math.ceil(config.train.steps / config.train.evaluate_every) + test
        return max(1, config.train.num_workers) * (self.start + config.train.steps * self.step + evaluations * self.evaluation)


def _window(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds of a step and of an evaluation, between two rows of a trial."""
    training = after["seconds"] - before["seconds"]
    return training / (after["step"] - before["step"]), max(0.0, after["elapsed"] - before["elapsed"] - training)


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
