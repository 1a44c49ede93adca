"""The Gramian by forward passes alone: E[(J z)(J z)'] = J J' for z ~ N(0, I) in weight space (of Hutchinson's kind).

The mean of m outer products has cosines off by about 1 / sqrt(m). Weights move slowly, so draws of earlier looks count too, in a mean whose
weight of a draw falls by DECAY from look to look: m draws a look then act as m (1 + DECAY) / (1 - DECAY) = 19 m.
"""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
from torch import Tensor

from meltr_ray.errors import check, check_at_least, check_choice
from meltr_ray.hypergrad.vectors import Vector

DECAY = 0.9
"""Of the exponential means over looks."""
PASSES = 8
"""Draws a look, where settings don't say."""


def effective(passes: int) -> float:
    """Draws that the mean over looks amounts to."""
    return passes * (1 + DECAY) / (1 - DECAY)


def check_gramian(settings: Any, way: Any) -> None:
    """Refuse a random Gramian (`combiner.gramian`, `combiner.passes`) of which `way` makes nothing or too little; put the default in.

    Raises:
        ConfigError: names the setting.
    """
    check_choice("combiner.gramian", settings.gramian, ("exact", "random"))
    if settings.gramian == "exact":
        check(
            settings.passes is None,
            "combiner.passes",
            settings.passes,
            "combiner.gramian=exact draws nothing; leave it out, or use combiner.gramian=random",
        )
        return
    least = way.least_draws
    check(least is not None, "combiner.gramian", "random", f"combiner.name={settings.name} sees no Gramian; leave it out")
    settings.passes = PASSES if settings.passes is None else settings.passes
    check_at_least("combiner.passes", settings.passes, 1)
    check(
        effective(settings.passes) >= least,
        "combiner.passes",
        settings.passes,
        f"acts as {effective(settings.passes):.0f} draws, and combiner.name={settings.name} needs {least}; give {math.ceil(least / effective(1))} or more",
    )


class RandomGramian:
    """J J' or J D J', the mean over looks.

    Args:
        passes: draws a look, a forward product each.
        least: of draws that a Gramian is made of; a first look takes as many.
        seed: draws are pure functions of it, of the step and of their number.
    """

    def __init__(self, passes: int, least: int, seed: int):
        self.passes, self.least, self.seed = passes, least, seed
        self.total, self.draws = torch.zeros((), dtype=torch.float64), 0.0

    @classmethod
    def of(cls, config: Any, least: int) -> Optional[RandomGramian]:
        """As settings have it; None: exact."""
        return cls(config.combiner.passes, least, config.seed) if config.combiner.gramian == "random" else None

    def __call__(self, step: Any, scale: Optional[Vector] = None, lasting: bool = True) -> Tensor:
        """(T, T) float64, alike on every rank. `scale`: D^-1; `lasting`: whether later looks have to do with this one."""
        count = self.passes if self.draws else max(self.passes, self.least)
        start = (self.seed * 1_000_003 + step.number) * 1_000_003
        rows = step.problem().projections([(start + draw) % 2**50 for draw in range(count)], scale)
        total, draws = DECAY * self.total + rows.T @ rows, DECAY * self.draws + count
        if lasting:
            self.total, self.draws = total, draws
        return total / draws

    def state(self) -> dict[str, Tensor]:
        return {"gramian/total": self.total, "gramian/draws": torch.tensor(self.draws, dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.total, self.draws = state["gramian/total"], float(state["gramian/draws"])
