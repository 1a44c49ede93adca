"""Asynchronous successive halving (ASHA, arXiv 1810.05934): at a few steps, its rungs, a trial of a search stops unless it is among the best so far.

Numbers alone: the scores of a rung are those of the results table, so that a search which goes on has the rungs that it had.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from meltr_ray.config import Config
from meltr_ray.errors import check

PHASES = ("search", "space_search")
"""Whose trials may be stopped."""


def rungs(steps: int, every: int, reduction: int) -> list[int]:
    """Evaluated steps at which trials are judged: the last over `reduction`, over its square, and so on, each at the next evaluation."""
    found, length = [], steps / reduction
    while length >= every:
        found.append(math.ceil(length / every) * every)
        length /= reduction
    return sorted({step for step in found if step < steps})


def place(score: float, others: Sequence[float]) -> int:
    """1: none is as good. Of equal ones the earlier, which is in the table, comes first."""
    return 1 + sum(other >= score for other in others)


def goes_on(score: float, others: Sequence[float], reduction: int) -> bool:
    """Whether a trial is among the best of one in `reduction`, of those that have come to its rung so far; a first one always is."""
    return place(score, others) <= math.ceil((1 + len(others)) / reduction)


def check_asha(config: Config) -> None:
    """Refuse rungs that aren't there, and trials that wouldn't meet at them.

    Raises:
        ConfigError: names the setting.
    """
    sweep, train = config.sweep, config.train
    if sweep.asha is None:
        return
    check(bool(sweep.space), "sweep.asha", sweep.asha, "stops trials of a search, and there is none; give sweep.space, or leave it out")
    check(bool(rungs(train.steps, train.evaluate_every, sweep.asha)), "sweep.asha", sweep.asha,
          f"has no rung: no evaluation comes within the first {train.steps // sweep.asha} of {train.steps} steps; lower train.evaluate_every")  # fmt: skip
    for name in ("train.steps", "train.evaluate_every"):
        check(name not in sweep.space, "sweep.space", name, "varies where trials are judged; leave it out, or sweep.asha")


def in_words(config: Config) -> str:
    """Part of a line of the plan; empty where nothing is stopped."""
    if config.sweep.asha is None:
        return ""
    steps = rungs(config.train.steps, config.train.evaluate_every, config.sweep.asha)
    return f"; the best 1 in {config.sweep.asha} continues after step {', '.join(map(str, steps))}"
