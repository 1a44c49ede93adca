"""What the loop knows of a way to combine losses: slopes, one number for each loss."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from meltr_ray.hypergrad.problem import Problem
from meltr_ray.workload import Workload


class Step(Protocol):
    """One optimiser step as a way of combining may ask about it. Nothing is computed before it is asked for."""

    number: int
    """Counted from 0."""
    batches: list[Any]
    """Its micro-batches, M of them."""

    def problem(self) -> Problem:
        """Losses, primary gradient, J v, rows of J: at this w, with the masks of this step; in `before` alone."""

    def alignments(self) -> Tensor:
        """c = J b, (M, T): how much a small step along -d_w of each loss lowers the primary loss of the meta batch, b its gradient."""

    def gramian(self) -> Tensor:
        """J J', (N, N) float64: all losses of all micro-batches of all ranks, in the order rank, micro-batch, loss. N backward passes."""

    def losses_again(self) -> Tensor:
        """l at the w that the step has led to, (M, T), same batches and masks: one more forward each; in `after` alone."""


class Way:
    """A way to combine losses. A subclass gives `slopes`; all else has a default.

    What `slopes` returns may depend on `before` and on state, never on the rank: w would drift apart.
    """

    learns: ClassVar[bool]
    """Whether it takes meta batches."""
    num_steps: int = 0
    """Meta steps done."""

    @classmethod
    def of(cls, config: Any, workload: Workload) -> Way:
        """Made from the settings of a run."""
        raise NotImplementedError

    def to(self, device: torch.device) -> Way:
        """Moved to where the losses are."""
        return self

    def is_due(self, number: int) -> bool:
        """Whether step `number` needs meta batches."""
        return False

    def before(self, step: Step) -> dict[str, Any]:
        """Before w moves: learn, measure. Returns numbers for the results table."""
        return {}

    def slopes(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """(training loss, its slopes a), a as long as `losses` (T,), both detached."""
        raise NotImplementedError

    def after(self, step: Step) -> None:
        """After the optimiser has moved w."""

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, alike on every rank: tensors by name."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""

    def own_state(self) -> dict[str, Tensor]:
        """What this rank alone has to keep."""
        return {}

    def load_own_state(self, state: dict[str, Tensor], hold: Any) -> None:
        """Put back what `own_state` gave; `hold` makes a vector of weight space of this rank's pieces."""
