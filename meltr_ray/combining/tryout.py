"""A try of every loss before the run: what it does beside the primary in the steps that it is given decides whether it is trained with."""

from __future__ import annotations

from typing import Any, ClassVar, Optional

import torch
from torch import Tensor

from meltr_ray.combining.probing import difference
from meltr_ray.combining.way import EFFECTS, Key, Sources, Way
from meltr_ray.errors import check
from meltr_ray.workload import CONSTANT, Workload


class Tryout(Way):
    """Slopes 1 or 0, settled before the first step. From the first w, K steps are taken with the primary alone, and K with the primary and one auxiliary loss,
    for each in turn, on the same batches and masks, and put back (`Step.look_ahead`). A loss with which the held-out primary loss F ends lower by more than
    `least` of it is trained with; the run is then that of `fixed` with these losses in `losses.set`, and the others aren't computed any more.

    All are compared from one w and none waits for its turn. A probe in the middle of training sees smaller effects in as much noise (docs/horizon.md).

    Args:
        count: T.
        primary: number of the primary loss.
        tried: numbers of the losses that are tried; the others have slope 0.
        K: steps of a try.
        least: effect that a loss must have, as a share of F.
    """

    learns: ClassVar[bool] = True
    strength: ClassVar[float] = 0.01
    strongest: ClassVar[float] = 1.0
    share: ClassVar[float] = 0.6
    held_out: ClassVar[bool] = True
    meta_batches: ClassVar[int] = 16

    @classmethod
    def of(cls, config: Any, workload: Workload) -> Tryout:
        names = config.losses.set
        return cls(len(names), names.index(config.losses.primary), tried(config), steps_each(config), config.combiner.strength)

    @classmethod
    def beforehand(cls, config: Any) -> str:
        return f"before step 1: {1 + len(tried(config))} tries of {steps_each(config)} steps, of the primary alone and with each auxiliary loss"

    @classmethod
    def check(cls, config: Any) -> None:
        K, count = steps_each(config), len(tried(config))
        most = config.train.steps
        check(
            not count or 0 < K <= most,
            "combiner.share",
            config.combiner.share,
            f"gives each of {count + 1} tries {K} steps, of train.steps={most}; give {1 / most * (count + 1):.2g} to {count + 1}",
        )

    def __init__(self, count: int, primary: int, tried: list[int], K: int, least: float):
        self.primary, self.tried, self.K, self.least = primary, tried, K, least
        self.a = torch.zeros(count)
        self.a[primary] = 1
        self.seen = torch.full((count,), torch.nan, dtype=torch.float64)
        """F after the try of each loss; of the primary: alone."""
        self.chosen = [primary]
        """Numbers of the losses with slope 1, at hand without a wait for the device."""

    def to(self, device: torch.device) -> Tryout:
        self.a = self.a.to(device)
        return self

    def is_due(self, number: int) -> bool:
        return number == 0 and bool(self.tried)

    def beside_step(self, number: int, sources: Sources) -> Optional[list[Key]]:
        """Held-out batches, then the micro-batches of K steps, as one."""
        return [*sources.keys(0), sources.ahead(0, self.K)] if self.is_due(number) else None

    def before(self, step: Any) -> dict[str, Any]:
        if not self.is_due(step.number):
            return {}
        *held_out, ahead = step.meta_batches
        tries = [self.primary, *self.tried]
        for t in tries[self.num_steps :]:
            self.seen[t] = step.look_ahead(self.beside(t), ahead, held_out, stops=True)
            self.num_steps += 1
            step.keep()
        passes = self.K * len(step.batches)
        return {EFFECTS: self.decide(), "meta_forward_passes": passes + len(held_out), "meta_backward_passes": passes}  # of a try

    def beside(self, t: int) -> Tensor:
        """Slopes (T,) of the primary and loss t."""
        a = torch.zeros_like(self.a)
        a[[self.primary, t]] = 1
        return a

    def decide(self) -> Tensor:
        """Which losses are trained with. Returns (T,): how much each lowers F; NaN: not tried."""
        alone = float(self.seen[self.primary])
        effects = torch.full_like(self.seen, torch.nan)
        for t in self.tried:
            effects[t] = -difference(float(self.seen[t]), alone)
        self.chosen = [t for t in range(len(self.a)) if t == self.primary or effects[t] > self.least * abs(alone)]
        self.a.zero_()
        self.a[self.chosen] = 1
        return effects

    def wanted(self) -> list[int]:
        """After the tries: no other loss is ever trained with."""
        return self.chosen

    def slopes(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        a = self.a.to(losses.dtype)
        return a @ losses, a

    def state(self) -> dict[str, Tensor]:
        return {"a": self.a, "seen": self.seen, "number": torch.tensor(self.num_steps)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.a, self.seen, self.num_steps = state["a"].to(self.a), state["seen"], int(state["number"])
        self.chosen = state["a"].nonzero().flatten().tolist()


def tried(config: Any) -> list[int]:
    """Numbers of the auxiliary losses; one without a gradient isn't tried."""
    return [t for t, name in enumerate(config.losses.set) if name not in (config.losses.primary, CONSTANT)]


def steps_each(config: Any) -> int:
    """K: the steps that `combiner.share` allows, shared out among the tries, that of the primary alone included."""
    return round(config.combiner.share * config.train.steps / (1 + len(tried(config))))
