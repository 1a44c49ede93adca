"""Losses switched on and off by what they do to the primary loss of held-out batches some steps later, not one step later.

Every `every` steps one auxiliary loss is probed: from this w, `horizon` optimiser steps are taken with its switch turned and put back
(`Step.look_ahead`); then training takes the same steps on the same batches and masks as the switches stand. The difference of the held-out
primary losses at the two ends, F, says what the loss does. An exponential mean of them turns the switch.
"""

from __future__ import annotations

from typing import Any, ClassVar, Optional

import torch
from torch import Tensor

from meltr_ray.combining.way import EFFECTS, Key, Sources, Way
from meltr_ray.workload import CONSTANT, Workload

DECAY = 0.5
"""Of the exponential mean of a loss's effects: w moves on, and so do they."""
FIRST = 0.1
"""Share of training that the first probe looks ahead, if it is of all losses at once."""


class LookAhead(Way):
    """Slopes 1 or 0, the primary's always 1.

    Args:
        count: T.
        primary: number of the primary loss.
        skipped: numbers of losses that no probe is spent on, since they have no gradient.
        horizon: K, steps of a probe.
        every: steps from one probe to the next, at least K.
        strength: least mean effect, as a share of F, that turns a switch.
        steps: of training; a probe that would look beyond them is left out.
        start: `primary`: all other switches are off at first; `uniform`: on; `probe`: the first tenth of training is spent on the primary alone,
            and a probe of the same length with all losses says how they stand from then on.
    """

    learns: ClassVar[bool] = True
    strength: ClassVar[float] = 0.001
    strongest: ClassVar[float] = 1.0
    every: ClassVar[int] = 34
    horizon: ClassVar[int] = 20
    start: ClassVar[str] = "primary"
    held_out: ClassVar[bool] = True
    meta_batches: ClassVar[int] = 8

    @classmethod
    def of(cls, config: Any, workload: Workload) -> LookAhead:
        names, settings = config.losses.set, config.combiner
        return cls(len(names), names.index(config.losses.primary), [t for t, name in enumerate(names) if name == CONSTANT],
                   settings.horizon, settings.every, settings.strength, config.train.steps, settings.start)  # fmt: skip

    def __init__(
        self, count: int, primary: int, skipped: list[int], horizon: int, every: int, strength: float, steps: int, start: str = "primary"
    ):
        self.primary, self.K, self.period, self.least, self.steps = primary, horizon, every, strength, steps
        self.probed = [t for t in range(count) if t != primary and t not in skipped]
        self.begin = round(FIRST * steps) if start == "probe" else 0
        self.a = torch.zeros(count)
        self.a[primary] = 1
        if start == "uniform":
            self.a[self.probed] = 1
        self.effects, self.counts = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.long)
        self.seen = torch.full((), torch.nan, dtype=torch.float64)
        """F at the end of the probe that training is now catching up with."""

    def to(self, device: torch.device) -> LookAhead:
        self.a = self.a.to(device)
        return self

    # --- when

    def length(self, start: int) -> int:
        """Steps of the probe that starts before step `start`; 0: none does."""
        if not self.probed:
            return 0
        if self.begin and start == 0:
            return self.begin
        fits = start >= self.begin and (start - self.begin) % self.period == 0 and start + self.K <= self.steps
        return self.K if fits else 0

    def begun(self, end: int) -> Optional[int]:
        """Start of the probe that training has caught up with before step `end`; None: of none."""
        starts = [0, end - self.K] if self.begin else [end - self.K]
        return next((start for start in starts if start >= 0 and self.length(start) == end - start), None)

    def turned(self, start: int) -> list[int]:
        """Losses whose switches a probe turns: one after the other; all of them in a first probe of all."""
        if start < self.begin:
            return self.probed
        return [self.probed[(start - self.begin) // self.period % len(self.probed)]]

    def is_due(self, number: int) -> bool:
        return self.length(number) > 0 or self.begun(number) is not None

    def beside_step(self, number: int, sources: Sources) -> Optional[list[Key]]:
        """Held-out batches of the probe that ends here, then those of the one that starts, then the micro-batches that it looks ahead."""
        if not self.is_due(number):
            return None
        start, length = self.begun(number), self.length(number)
        ends = sources.keys(start) if start is not None else []
        begins = sources.keys(number) if length else []
        return [*ends, *begins, *(key for step in range(number, number + length) for key in sources.trained(step))]

    # --- what

    def before(self, step: Any) -> dict[str, Any]:
        start, length = self.begun(step.number), self.length(step.number)
        given = list(step.meta_batches or [])
        looked = (len(given) - length * len(step.batches)) // ((start is not None) + (length > 0) or 1)
        said: dict[str, Any] = {}
        if start is not None:
            effects = self.learn(self.turned(start), float(self.seen), step.held_out_loss(given[:looked]))
            said = {EFFECTS: effects}
            given = given[looked:]
        if length:
            flipped = self.a.clone()
            flipped[self.turned(step.number)] = 1 - flipped[self.turned(step.number)]
            self.seen = torch.tensor(step.look_ahead(flipped, given[looked:], given[:looked]), dtype=torch.float64)
            self.num_steps += 1
            passes = length * len(step.batches)
            said |= {"meta_forward_passes": passes + (1 + (start is not None)) * looked, "meta_backward_passes": passes}
        return said

    def learn(self, turned: list[int], with_turned: float, as_it_stands: float) -> Tensor:
        """Turn the switch of a loss, or of all of them, if the other way leads to a lower F. Not finite: it doesn't.

        Returns (T,): by how much the loss that was probed lowers F; NaN of the others.
        """
        effect = with_turned - as_it_stands  # below 0: turned is better
        if not effect - effect == 0:
            effect = abs(as_it_stands)
        on, seen = self.a[turned[0]] > 0, torch.full((len(self.a),), torch.nan, dtype=torch.float64)
        for t in turned if len(turned) == 1 else []:
            seen[t] = effect if on else -effect
            self.counts[t] += 1
            self.effects[t] = DECAY * self.effects[t] + (1 - DECAY) * (-effect if on else effect)
            effect = float(self.effects[t] / (1 - DECAY ** int(self.counts[t]))) * (-1 if on else 1)
        if effect < -self.least * abs(as_it_stands):
            self.a[turned] = 0.0 if on else 1.0
        return seen

    def slopes(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        a = self.a.to(losses.dtype)
        return a @ losses, a

    def state(self) -> dict[str, Tensor]:
        return {"a": self.a, "effects": self.effects, "counts": self.counts, "seen": self.seen, "number": torch.tensor(self.num_steps)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.a, self.effects, self.counts, self.seen = state["a"].to(self.a), state["effects"], state["counts"], state["seen"]
        self.num_steps = int(state["number"])
