"""Ways that look at the losses' gradients every so many steps; their slopes stay until the next look."""

from __future__ import annotations

from typing import Any, ClassVar, Optional

import torch
from torch import Tensor

from meltr_ray.combining.random_gramian import RandomGramian
from meltr_ray.combining.way import Way


class Looking(Way):
    """A subclass gives `looked`.

    Args:
        count: T.
        every: steps between two looks.
        random: takes the Gramian by forward passes; None: T backward passes.
    """

    every: ClassVar[int] = 3

    def __init__(self, count: int, every: int, random: Optional[RandomGramian]):
        self.period, self.random = every, random
        self.a = torch.ones(count)

    def looked(self, step: Any) -> Tensor:
        """Slopes (T,) by what `step` has."""
        raise NotImplementedError

    def said(self) -> dict[str, Any]:
        """What else `before` returns of the last look."""
        return {}

    def looks(self, number: int) -> bool:
        """Whether step `number` begins with a look."""
        return number % self.period == 0

    def to(self, device: torch.device) -> Looking:
        self.a = self.a.to(device)
        return self

    def before(self, step: Any) -> dict[str, Any]:
        if not self.looks(step.number):
            return {}
        before = step.problem().passes()
        self.a = self.looked(step).to(self.a)
        self.num_steps += 1
        passes = step.problem().passes() - before
        return {"meta_forward_passes": passes["forward"], "meta_backward_passes": passes["backward"]} | self.said()

    def slopes(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        a = self.a.to(losses.dtype)
        return a @ losses, a

    def state(self) -> dict[str, Tensor]:
        return {"a": self.a, "number": torch.tensor(self.num_steps)} | (self.random.state() if self.random else {})

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.a, self.num_steps = state["a"].to(self.a), int(state["number"])
        if self.random:
            self.random.load_state(state)
