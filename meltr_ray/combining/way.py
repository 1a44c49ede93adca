"""What the loop knows of a way to combine losses: slopes, one number for each loss."""

from __future__ import annotations

from typing import Any, Callable, ClassVar, Iterable, Optional, Protocol, Sequence

import torch
from torch import Tensor

from meltr_ray.errors import check
from meltr_ray.hypergrad.module_problem import LossesProblem
from meltr_ray.hypergrad.vectors import Vector
from meltr_ray.workload import Workload

EFFECTS = "effects"
"""In what `before` returns: (T,), how much each loss lowers the primary loss of held-out batches, by what the way knows; NaN: not looked at."""
OWN = ("temperature", "strength", "every", "window", "horizon", "start", "share")
"""Settings of `combiner` that a way has where its class gives them a default."""
PRODUCTS = ("aid.product", "aid.accuracy", "aid.radius")
"""How J v is taken."""
Key = tuple[str, int | range]
"""Names a batch: `train` or `held_out`, and its number there. A range names many at once, which are made anew, one by one, whenever they are gone through."""
SlopesOf = Callable[[Tensor, Any], Tensor]
"""Losses of a micro-batch, (T,) detached, and the micro-batch -> slopes (T,)."""


class Sources(Protocol):
    """Which batches there are."""

    def keys(self, step: int) -> list[Key]:
        """The meta batches of a step."""

    def trained(self, step: int) -> list[Key]:
        """The M micro-batches of a step."""

    def ahead(self, first: int, steps: int) -> Key:
        """All micro-batches of `steps` steps, the first of which is `first`."""


class Step(Protocol):
    """One optimiser step as a way of combining may ask about it. Nothing is computed before it is asked for."""

    number: int
    """Counted from 0."""
    batches: list[Any]
    """Its micro-batches, M of them."""
    meta_batches: Optional[list[Any]]
    """Those of `Way.beside_step`."""

    def problem(self) -> LossesProblem:
        """Losses, primary gradient, J v, rows of J, random projections: at this w, with the masks of this step; in `before` alone."""

    def alignments(self) -> Tensor:
        """c = J b, (M, T): how much a small step along -d_w of each loss lowers the primary loss of the meta batch, b its gradient."""

    def gradients(self) -> list[Vector]:
        """d_w of each loss, mean over micro-batches and ranks: T vectors, T backward passes; in `before` alone."""

    def gramian(self) -> Tensor:
        """G = J J', (T, T) float64, J the rows of `gradients`: how the losses' gradients stand to each other."""

    def adam_scale(self) -> Optional[Vector]:
        """sqrt of the optimiser's second moments, plus epsilon; None before its first step."""

    def losses_again(self) -> Tensor:
        """l at this w, (M, T), without a graph: in `before` that of the step, in `after` at the w that it has led to, same masks; one more forward each."""

    def held_out_loss(self, batches: Sequence[Any]) -> float:
        """F: the primary loss at this w, in evaluation mode, mean over `batches` and ranks."""

    def look_ahead(self, a: Tensor | SlopesOf, ahead: Iterable[Any], batches: Sequence[Any], stops: bool = False) -> float:
        """F after optimiser steps with slopes `a`, (T,) or what says them, on the micro-batches `ahead`; then all is as it was, bit for bit.

        With `stops` a run that is asked to stop does so after any of these steps, by an exception: the way's state is saved as it is then.
        """

    def keep(self) -> None:
        """Save the run as it is before this step, with what the way has found out so far."""

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Mean over ranks, bit-identical on each."""


class Way:
    """A way to combine losses. A subclass gives `slopes`; all else has a default.

    What `slopes` returns may depend on `before` and on state, never on the rank: w would drift apart.
    """

    learns: ClassVar[bool]
    """Whether it takes meta batches."""
    averages: ClassVar[bool] = False
    """Whether `slopes` is given the mean of the losses over ranks: whatever it remembers of them is then alike on each."""
    per_example: ClassVar[bool] = False
    """Whether it takes a number for each example instead of one for each loss."""
    positive: ClassVar[bool] = False
    """Whether it is defined for positive losses alone."""
    temperature: ClassVar[Optional[float]] = None
    strength: ClassVar[Optional[float]] = None
    """Defaults of `combiner.temperature` and `combiner.strength`; None: it has no such setting."""
    strongest: ClassVar[float] = float("inf")
    """Greatest `combiner.strength` that means something."""
    searched: ClassVar[Sequence[str]] = ()
    """Settings of `aid` that are its own as `temperature` and `strength` are; `sweep.budget_each` searches all of these."""
    spread: ClassVar[float] = 5.0
    """Such a search goes from what is configured over this to what is configured times this."""
    every: ClassVar[Optional[int]] = None
    window: ClassVar[Optional[int]] = None
    """Defaults of `combiner.every` and `combiner.window`, likewise."""
    horizon: ClassVar[Optional[int]] = None
    start: ClassVar[Optional[str]] = None
    share: ClassVar[Optional[float]] = None
    """Defaults of `combiner.horizon`, `combiner.start` and `combiner.share`, likewise."""
    rests: ClassVar[bool] = False
    """Whether what it learns rests while a probe is under way, so that steps in between are needed."""
    held_out: ClassVar[bool] = False
    """Whether its meta batches have to be such that training doesn't see."""
    meta_batches: ClassVar[int] = 1
    """Default of `aid.num_meta_batches`."""
    least_draws: ClassVar[Optional[int]] = None
    """Draws that a random Gramian must amount to for it; None: it sees no Gramian."""
    needs: ClassVar[Sequence[str]] = ()
    """Packages of the extra `methods` that it imports."""
    uses: ClassVar[Sequence[str]] = ()
    """More settings of `combiner` and `aid` that it looks at, such as `aid.gamma`; see `used`."""
    num_steps: int = 0
    """Meta steps done."""

    @classmethod
    def of(cls, config: Any, workload: Workload) -> Way:
        """Made from the settings of a run."""
        raise NotImplementedError

    @classmethod
    def ranges(cls, config: Any) -> dict[str, tuple[float, float]]:
        """Setting of its own -> the least and the greatest value that a search tries. A setting that is 0 is switched off and stays so."""
        numbers = {"combiner.temperature": config.combiner.temperature, "combiner.strength": config.combiner.strength}
        numbers |= {f"aid.{name}": getattr(config.aid, name) for name in cls.searched}
        most = {"combiner.strength": cls.strongest}
        return {
            name: (value / cls.spread, min(value * cls.spread, most.get(name, float("inf")))) for name, value in numbers.items() if value
        }

    @classmethod
    def used(cls) -> set[str]:
        """Settings of `combiner` and `aid` that a run which combines so looks at: all others are nothing to it.

        Those of the solver come on top where `aid.solver` is among them.
        """
        own = {f"combiner.{name}" for name in OWN if getattr(cls, name) is not None}
        gramian = {"combiner.gramian", "combiner.passes", *PRODUCTS} if cls.least_draws is not None else set()
        learning = {"aid.meta_batch", "aid.num_meta_batches", *PRODUCTS} if cls.learns else set()  # products: of the shares, too
        return {"combiner.name", "combiner.average_losses", *cls.uses} | own | gramian | learning

    @classmethod
    def beforehand(cls, config: Any) -> str:
        """What a run does before its first step, a line for whoever waits; empty: nothing."""
        return ""

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse settings of a run that don't go together.

        Raises:
            ConfigError: names the setting.
        """

    def to(self, device: torch.device) -> Way:
        """Moved to where the losses are."""
        return self

    def is_due(self, number: int) -> bool:
        """Whether step `number` needs meta batches."""
        return False

    def beside_step(self, number: int, sources: Sources) -> Optional[list[Key]]:
        """Batches that `before` is given as `step.meta_batches`; None: none."""
        return sources.keys(number) if self.is_due(number) else None

    def before(self, step: Step) -> dict[str, Any]:
        """Before w moves: learn, measure. Returns numbers for the results table."""
        return {}

    def wanted(self) -> Optional[list[int]]:
        """Numbers of the losses that a step computes; None: all. `slopes` finds 0 in place of the others, and gives them slope 0."""
        return None

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


def check_positive(losses: Tensor, names: Sequence[str]) -> None:
    """Refuse losses of which a way can take no logarithm or inverse.

    Raises:
        ConfigError: names the loss.
    """
    for name, value in zip(names, losses.tolist()):
        check(
            value > 0 or value != value,
            "losses.set",
            name,
            f"is {value:g}, and this way to combine losses needs positive ones; take another combiner.name, or shift the loss",
        )
