"""MELTR with the horizon of a look-ahead: phi learns from what a loss does some steps later, or its slopes stand behind switches that do."""

from __future__ import annotations

from typing import Any, ClassVar, Optional, Sequence

import torch
from torch import Tensor

from meltr_ray.combining.learned import OF_TRANSFORMER, Meltr
from meltr_ray.combining.look_ahead import LookAhead
from meltr_ray.combining.meta_optimizer import OF_PHI
from meltr_ray.combining.probing import DECAY, Probing, difference
from meltr_ray.combining.slopes import Gated, slopes
from meltr_ray.combining.way import EFFECTS, Key, SlopesOf, Sources
from meltr_ray.errors import check
from meltr_ray.hypergrad.replayed import Replayed
from meltr_ray.workload import Workload

LEAST_SHARE = 0.1
"""Of the mean slope, that the primary's is taken for at least where it is divided by."""


class MeltrAhead(Probing):
    """MELTR whose phi descends <a_phi(l), e>, e_t an estimate of dF / da_t over `horizon` steps, in place of -<a_phi(l), J v>.

    A probe of loss t sets its slope to 0, or to 1 where it is below 1/2. The difference of F over the change of the slope is an
    estimate of dF / da_t, and e_t the exponential mean of these. The primary's follows from the others': an optimiser like Adam is
    nearly blind to the scale of all slopes, F then is homogeneous of degree 0 in a, and by Euler's theorem <a, e> = 0. At the end of a
    probe e, brought to length 1, is descended for as many steps of phi as MELTR takes in the time of a probe; phi rests in between.

    Args:
        meltr: has g_phi and its optimiser.
        descents: steps of phi at the end of a probe.
        gamma: weight of the outer regulariser |g_phi(l) - sum_t l_t|, of which phi sees the direct term.
        others: as `Probing` has them.
    """

    searched: ClassVar[Sequence[str]] = Meltr.searched
    spread: ClassVar[float] = Meltr.spread
    uses: ClassVar[Sequence[str]] = (*OF_PHI, *OF_TRANSFORMER)
    forwards: ClassVar[int] = 1

    @classmethod
    def of(cls, config: Any, workload: Workload) -> MeltrAhead:
        return cls(
            Meltr.of(config, workload),
            max(1, round(config.combiner.every / config.aid.inner_steps)),
            config.aid.gamma,
            **cls.of_settings(config),
        )

    def __init__(self, meltr: Meltr, descents: int, gamma: float, **others: Any):
        super().__init__(**others)
        self.meltr, self.descents, self.gamma = meltr, descents, gamma
        self.change = torch.ones((), dtype=torch.float64)
        """Of the slope that the probe under way has changed."""

    def to(self, device: torch.device) -> MeltrAhead:
        self.meltr.to(device)
        return self

    def slopes(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        return self.meltr.slopes(losses, batch)

    def changed(self, turned: list[int], step: Any) -> SlopesOf:
        (t,) = turned
        now = float(self.standing(step.losses_again(), step)[t])
        target = 0.0 if now >= 0.5 else 1.0
        self.change = torch.tensor(target - now, dtype=torch.float64)
        there = torch.arange(len(self.counts)) == t

        def slopes(losses: Tensor, batch: Any) -> Tensor:
            a = self.meltr.slopes(losses, batch)[1]
            return torch.where(there.to(a.device), target, a)

        return slopes

    def standing(self, rows: Tensor, step: Any) -> Tensor:
        """Slopes (T,) at the losses `rows` (M, T), mean over micro-batches and ranks."""
        return step.average([torch.stack([self.meltr.slopes(l, None)[1] for l in rows]).mean(0)])[0].double().cpu()

    def learn(self, turned: list[int], with_turned: float, as_it_stands: float, step: Any) -> Tensor:
        (t,) = turned
        slope = difference(with_turned, as_it_stands) / float(self.change)
        self.averaged(t, slope)
        rows = step.losses_again()
        if self.meltr.relative:
            self.meltr.relative.observe(*step.average([rows.mean(0)]))
        e = self.derivatives(self.standing(rows, step))
        for _ in range(self.descents if e.any() else 0):
            self.meltr.descend(step.average(self.gradient(rows, e.to(rows))))
        return torch.where(torch.arange(len(e)) == t, -slope, torch.nan)

    def derivatives(self, a: Tensor) -> Tensor:
        """e (T,) of length 1 at slopes a (T,); 0 where nothing is known yet."""
        e = self.means / (1 - DECAY ** self.counts.clamp(min=1))
        e[self.primary] = -(a @ e) / max(float(a[self.primary]), LEAST_SHARE * float(a.abs().mean()))
        return e / e.norm().clamp(min=torch.finfo(e.dtype).tiny)

    def gradient(self, rows: Tensor, e: Tensor) -> list[Tensor]:
        """d_phi of <a_phi(l), e> + gamma |g_phi(l) - sum_t l_t|, mean over the M rows l."""
        combiner, l = Replayed(self.meltr.combiner, self.meltr.num_steps), rows.detach().clone().requires_grad_()
        values = torch.stack([combiner(row) for row in l])
        (a,) = torch.autograd.grad(values.mean(), l, create_graph=True)  # slopes over M
        value = (a * e).sum() + self.gamma * (values - l.detach().sum(1)).abs().mean()
        return list(torch.autograd.grad(value, self.meltr.optimizer.phi, allow_unused=True, materialize_grads=True))

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"change": self.change} | of_meltr(self.meltr)

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.change = state["change"]
        load_meltr(self.meltr, state)


class MeltrGated(LookAhead):
    """MELTR's slopes, learned one step ahead, times the switches of a look-ahead. While a probe is under way phi rests.

    A loss that is off is a constant to MELTR too, for the slopes and for the hypergradient.

    Args:
        meltr: its combiner is `Gated`.
        others: as `LookAhead` has them.
    """

    rests: ClassVar[bool] = True
    searched: ClassVar[Sequence[str]] = Meltr.searched
    spread: ClassVar[float] = Meltr.spread
    uses: ClassVar[Sequence[str]] = Meltr.uses

    @classmethod
    def of(cls, config: Any, workload: Workload) -> MeltrGated:
        combiner = Gated(Meltr.of(config, workload).combiner, len(config.losses.set))
        return cls(Meltr(combiner, config.aid), **cls.of_settings(config))

    @classmethod
    def check(cls, config: Any) -> None:
        Meltr.check(config)
        every, least = config.combiner.every, config.combiner.horizon + config.aid.inner_steps + 1
        check(every >= least, "combiner.every", every,
              f"leaves phi no step to learn in between probes; give combiner.horizon + aid.inner_steps + 1, {least}, at least")  # fmt: skip

    def __init__(self, meltr: Meltr, **others: Any):
        super().__init__(**others)
        assert isinstance(meltr.combiner, Gated)
        self.meltr, self.gates = meltr, meltr.combiner
        self.switch()

    def switch(self) -> None:
        self.gates.open.copy_(self.a)

    def to(self, device: torch.device) -> MeltrGated:
        super().to(device)
        self.meltr.to(device)
        return self

    def slopes(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        return self.meltr.slopes(losses, batch)

    def changed(self, turned: list[int], step: Any) -> SlopesOf:
        other = Gated(self.gates.combiner, len(self.a))
        other.open = self.flipped(turned)
        return lambda losses, batch: slopes(self.meltr.replayed(other), losses)[1]

    def learn(self, turned: list[int], with_turned: float, as_it_stands: float, step: Any = None) -> Tensor:
        seen = super().learn(turned, with_turned, as_it_stands)
        self.switch()
        return seen

    def phi_learns(self, number: int) -> bool:
        """Whether a meta step on phi comes before step `number`: not while a probe is under way."""
        latest = number - (number - self.begin) % self.period if number >= self.begin else 0
        under_way = super().is_due(number) or number - latest < self.length(latest)
        return not under_way and self.meltr.is_due(number)

    def is_due(self, number: int) -> bool:
        return super().is_due(number) or self.phi_learns(number)

    def beside_step(self, number: int, sources: Sources) -> Optional[list[Key]]:
        return sources.keys(number) if self.phi_learns(number) else super().beside_step(number, sources)

    def before(self, step: Any) -> dict[str, Any]:
        if not self.phi_learns(step.number):
            return super().before(step)
        said = self.meltr.before(step)
        del said[EFFECTS]  # of one step: another unit than a probe's
        return said

    def state(self) -> dict[str, Tensor]:
        return super().state() | of_meltr(self.meltr)

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        load_meltr(self.meltr, state)

    def own_state(self) -> dict[str, Tensor]:
        return self.meltr.own_state()

    def load_own_state(self, state: dict[str, Tensor], hold: Any) -> None:
        self.meltr.load_own_state(state, hold)


def of_meltr(meltr: Meltr) -> dict[str, Tensor]:
    """Its state beside a way's own."""
    return {f"meltr/{name}": value for name, value in meltr.state().items()}


def load_meltr(meltr: Meltr, state: dict[str, Tensor]) -> None:
    meltr.load_state({name.removeprefix("meltr/"): value for name, value in state.items() if name.startswith("meltr/")})
