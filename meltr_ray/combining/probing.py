"""Ways that look some steps ahead: what a loss does to the primary loss of held-out batches `horizon` optimiser steps later.

Every `every` steps one auxiliary loss is probed: from this w, `horizon` optimiser steps are taken with its slope changed and put back
(`Step.look_ahead`); then training takes the same steps on the same batches and masks as it stands. The difference of the held-out
primary losses at the two ends, F, says what the loss does.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Optional

import torch
from torch import Tensor

from meltr_ray.combining.way import EFFECTS, Key, SlopesOf, Sources, Way
from meltr_ray.workload import CONSTANT

DECAY = 0.5
"""Of the exponential mean of a loss's effects: w moves on, and so do they."""


class Probing(Way):
    """A subclass says with which slopes a probe trains (`changed`), what follows from it (`learn`), and gives `slopes`.

    Between the start of a probe and its end nothing but w may change: the two ends are compared.

    Args:
        count: T.
        primary: number of the primary loss, which no probe is spent on.
        skipped: numbers of losses that no probe is spent on, since they have no gradient.
        horizon: K, steps of a probe.
        every: steps from one probe to the next, at least K.
        steps: of training; a probe that would look beyond them is left out.
        begin: steps that a first probe of all losses takes, from step 0; 0: there is none.
    """

    learns: ClassVar[bool] = True
    every: ClassVar[int] = 34
    horizon: ClassVar[int] = 20
    held_out: ClassVar[bool] = True
    meta_batches: ClassVar[int] = 8
    forwards: ClassVar[int] = 0
    """Forwards of the training batch that `changed` and `learn` take each."""

    def __init__(self, count: int, primary: int, skipped: list[int], horizon: int, every: int, steps: int, begin: int = 0):
        self.primary, self.K, self.period, self.steps, self.begin = primary, horizon, every, steps, begin
        self.probed = [t for t in range(count) if t != primary and t not in skipped]
        self.means, self.counts = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.long)
        """Of each loss's effects, an exponential mean from 0, and how many."""
        self.seen = torch.full((), torch.nan, dtype=torch.float64)
        """F at the end of the probe that training is now catching up with."""

    @staticmethod
    def of_settings(config: Any) -> dict[str, Any]:
        """The arguments of a run."""
        names, settings = config.losses.set, config.combiner
        return {"count": len(names), "primary": names.index(config.losses.primary), "steps": config.train.steps, "every": settings.every,
                "horizon": settings.horizon, "skipped": [t for t, name in enumerate(names) if name == CONSTANT]}  # fmt: skip

    def changed(self, turned: list[int], step: Any) -> Tensor | SlopesOf:
        """Slopes (T,) of a probe of the losses `turned`, or what says them of each micro-batch's losses."""
        raise NotImplementedError

    def learn(self, turned: list[int], with_turned: float, as_it_stands: float, step: Any) -> Tensor:
        """From F at the ends of the probe and of training. Returns (T,): how much each loss lowers F; NaN: not probed."""
        raise NotImplementedError

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
        """Losses that a probe changes: one after the other; all of them in a first probe of all."""
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

    def before(self, step: Any) -> dict[str, Any]:
        start, length = self.begun(step.number), self.length(step.number)
        given = list(step.meta_batches or [])
        looked = (len(given) - length * len(step.batches)) // ((start is not None) + (length > 0) or 1)
        said: dict[str, Any] = {}
        if start is not None:
            effects = self.learn(self.turned(start), float(self.seen), step.held_out_loss(given[:looked]), step)
            said = {EFFECTS: effects}
            given = given[looked:]
        if length:
            slopes = self.changed(self.turned(step.number), step)
            self.seen = torch.tensor(step.look_ahead(slopes, given[looked:], given[:looked]), dtype=torch.float64)
            self.num_steps += 1
            passes = length * len(step.batches)
            each = looked + self.forwards * len(step.batches)
            said |= {"meta_forward_passes": passes + (1 + (start is not None)) * each, "meta_backward_passes": passes}
        return said

    def averaged(self, t: int, effect: float) -> float:
        """The exponential mean of the effects of loss t, this one included."""
        self.counts[t] += 1
        self.means[t] = DECAY * self.means[t] + (1 - DECAY) * effect
        return float(self.means[t] / (1 - DECAY ** int(self.counts[t])))

    def state(self) -> dict[str, Tensor]:
        return {"effects": self.means, "counts": self.counts, "seen": self.seen, "number": torch.tensor(self.num_steps)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.means, self.counts, self.seen = state["effects"], state["counts"], state["seen"]
        self.num_steps = int(state["number"])


def difference(with_turned: float, as_it_stands: float) -> float:
    """Of F; as if the change had cost all of F where its own isn't finite, and nothing where the other isn't."""
    if not math.isfinite(as_it_stands):
        return 0.0
    return with_turned - as_it_stands if math.isfinite(with_turned) else abs(as_it_stands)
