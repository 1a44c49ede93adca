"""Losses switched on and off by what they do to the primary loss of held-out batches some steps later, not one step later."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from meltr_ray.combining.probing import Probing, difference
from meltr_ray.combining.way import SlopesOf
from meltr_ray.workload import Workload

FIRST = 0.1
"""Share of training that the first probe looks ahead, if it is of all losses at once."""


class LookAhead(Probing):
    """Slopes 1 or 0, the primary's always 1. A probe turns a switch; the exponential mean of a loss's effects decides how it stands.

    Args:
        strength: least mean effect, as a share of F, that turns a switch.
        start: `primary`: all other switches are off at first; `uniform`: on; `probe`: the first tenth of training is spent on the primary alone,
            and a probe of the same length with all losses says how they stand from then on.
        count, primary, skipped, horizon, every, steps: as `Probing` has them.
    """

    strength: ClassVar[float] = 0.001
    strongest: ClassVar[float] = 1.0
    start: ClassVar[str] = "primary"

    @classmethod
    def of(cls, config: Any, workload: Workload) -> LookAhead:
        return cls(**cls.of_settings(config))

    @staticmethod
    def of_settings(config: Any) -> dict[str, Any]:
        return Probing.of_settings(config) | {"strength": config.combiner.strength, "start": config.combiner.start}

    def __init__(
        self, count: int, primary: int, skipped: list[int], horizon: int, every: int, strength: float, steps: int, start: str = "primary"
    ):
        super().__init__(count, primary, skipped, horizon, every, steps, round(FIRST * steps) if start == "probe" else 0)
        self.least = strength
        self.a = torch.zeros(count)
        self.a[primary] = 1
        if start == "uniform":
            self.a[self.probed] = 1

    def to(self, device: torch.device) -> LookAhead:
        self.a = self.a.to(device)
        return self

    def changed(self, turned: list[int], step: Any) -> Tensor | SlopesOf:
        return self.flipped(turned)

    def flipped(self, turned: list[int]) -> Tensor:
        flipped = self.a.clone()
        flipped[turned] = 1 - flipped[turned]
        return flipped

    def learn(self, turned: list[int], with_turned: float, as_it_stands: float, step: Any = None) -> Tensor:
        """Turn the switch of a loss, or of all of them, if the other way leads to a lower F. Not finite: it doesn't."""
        effect = difference(with_turned, as_it_stands)  # below 0: turned is better
        on, seen = self.a[turned[0]] > 0, torch.full((len(self.a),), torch.nan, dtype=torch.float64)
        if len(turned) == 1:
            (t,) = turned
            seen[t] = effect if on else -effect
            effect = self.averaged(t, -effect if on else effect) * (-1 if on else 1)
        if effect < -self.least * abs(as_it_stands):
            self.a[turned] = 0.0 if on else 1.0
        return seen

    def slopes(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        a = self.a.to(losses.dtype)
        return a @ losses, a

    def state(self) -> dict[str, Tensor]:
        return {"a": self.a} | super().state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.a = state["a"].to(self.a)
