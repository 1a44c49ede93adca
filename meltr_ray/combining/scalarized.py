"""Ways that see the losses alone, each a scalarizer of torchjd: g(l), whose slopes train w.

torchjd is imported where a way is made: with its solvers that takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, Sequence

import torch
from torch import Tensor, nn

from meltr_ray.combining import kept
from meltr_ray.combining.seeded import seeded
from meltr_ray.combining.way import Way, check_positive
from meltr_ray.workload import Workload

if TYPE_CHECKING:
    from torchjd.scalarization import DWA, FAMO


class Scalarized(Way):
    """Slopes are the derivative of a scalarizer; what it learns takes a step of Adam beside w, on the same value.

    Args:
        scalarizer: l (T,) -> scalar.
        names: of the losses.
        seed: of what the scalarizer draws.
        learning_rate: of its parameters.
    """

    learns: ClassVar[bool] = False
    averages: ClassVar[bool] = True
    needs: ClassVar[Sequence[str]] = ("torchjd",)
    trained: ClassVar[bool] = False
    """Whether its parameters are trained beside w."""
    attributes: ClassVar[Sequence[str]] = ()
    """What torchjd's object remembers besides its parameters."""

    @staticmethod
    def made(settings: Any, count: int) -> nn.Module:
        """The scalarizer of `count` losses; `settings`: `combiner.*`."""
        raise NotImplementedError

    @classmethod
    def of(cls, config: Any, workload: Workload) -> Self:
        names = config.losses.set
        return cls(cls.made(config.combiner, len(names)), names, config.seed, config.optimizer.learning_rate)

    def __init__(self, scalarizer: nn.Module, names: Sequence[str], seed: int = 0, learning_rate: float = 1e-3):
        self.scalarizer, self.names, self.seed, self.calls = scalarizer, list(names), seed, 0
        self.device = torch.device("cpu")
        self.optimizer = torch.optim.Adam(scalarizer.parameters(), learning_rate) if self.trained else None

    def to(self, device: torch.device) -> Scalarized:
        self.scalarizer.to(device)
        self.device = device
        return self

    def slopes(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        if self.positive:
            check_positive(losses, self.names)
        l, phi = losses.detach().requires_grad_(), list(self.scalarizer.parameters()) if self.trained else []
        with torch.enable_grad(), seeded(self.seed, self.calls, l.device):
            value = self.scalarizer(l)
        a, *gradient = torch.autograd.grad(value, [l, *phi])
        for p, g in zip(phi, gradient):
            p.grad = g
        if self.optimizer:
            self.optimizer.step()
        self.calls += 1
        return value.detach(), a

    def state(self) -> dict[str, Tensor]:
        learned = {f"scalarizer/{name}": value for name, value in self.scalarizer.state_dict().items()}
        moments = kept.of_optimizer(self.optimizer, "optimizer") if self.optimizer else {}
        return learned | moments | kept.of_attributes(self.scalarizer, self.attributes, "own") | {"calls": torch.tensor(self.calls)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.scalarizer.load_state_dict({name: state[f"scalarizer/{name}"] for name in self.scalarizer.state_dict()})
        if self.optimizer:
            kept.load_optimizer(self.optimizer, "optimizer", state)
        kept.load_attributes(self.scalarizer, self.attributes, "own", {name: value.to(self.device) for name, value in state.items()})
        self.calls = int(state["calls"])


class Uncertainty(Scalarized):
    """Uncertainty weighting (Kendall, Gal and Cipolla, CVPR 2018): sum_t l_t exp(-s_t) / 2 + s_t / 2, s learned."""

    positive, trained = True, True

    @staticmethod
    def made(settings: Any, count: int) -> nn.Module:
        from torchjd.scalarization import UW

        return UW(count)


class ImtlL(Scalarized):
    """Impartial multi-task learning, loss balance (Liu et al., ICLR 2021): sum_t exp(s_t) l_t - s_t, s learned."""

    positive, trained = True, True

    @staticmethod
    def made(settings: Any, count: int) -> nn.Module:
        from torchjd.scalarization import IMTLL

        return IMTLL(count)


class DynamicWeightAverage(Scalarized):
    """Dynamic weight average (Liu, Johns and Davison, CVPR 2019): losses that fall slowly weigh more; an epoch is `combiner.window` steps."""

    positive, temperature, window = True, 2.0, 50
    attributes = ("_loss_sum", "_n_batches", "_previous_averages")
    scalarizer: DWA
    epoch: int

    @staticmethod
    def made(settings: Any, count: int) -> nn.Module:
        from torchjd.scalarization import DWA

        return DWA(settings.temperature)

    @classmethod
    def of(cls, config: Any, workload: Workload) -> Self:
        way = super().of(config, workload)
        way.epoch = config.combiner.window
        return way

    def after(self, step: Any) -> None:
        if (step.number + 1) % self.epoch == 0:
            self.scalarizer.step()


class RandomWeights(Scalarized):
    """Random loss weighting (Lin et al., TMLR 2022): a softmax of normal draws at every step."""

    @staticmethod
    def made(settings: Any, count: int) -> nn.Module:
        from torchjd.scalarization import Random

        return Random()


class SmoothTchebycheff(Scalarized):
    """Smooth Tchebycheff scalarization (Lin et al., ICML 2024): mu log sum_t exp(l_t / (T mu)), mu the temperature."""

    temperature = 0.1

    @staticmethod
    def made(settings: Any, count: int) -> nn.Module:
        from torchjd.scalarization import STCH

        return STCH(settings.temperature)


class GeometricMean(Scalarized):
    """Geometric mean (Chennupati et al., CVPRW 2019): slopes are inverse to losses."""

    positive = True

    @staticmethod
    def made(settings: Any, count: int) -> nn.Module:
        from torchjd.scalarization import GeometricMean as Mean

        return Mean()


class Famo(Scalarized):
    """FAMO (Liu et al., NeurIPS 2023): logits learn from how much each loss fell over the step, which takes a second forward."""

    positive, strength = True, 0.025
    scalarizer: FAMO

    @staticmethod
    def made(settings: Any, count: int) -> nn.Module:
        from torchjd.scalarization import FAMO

        return FAMO(count, lr=settings.strength)

    def after(self, step: Any) -> None:
        (losses,) = step.average([step.losses_again()[-1]])  # of the micro-batch that it saw last
        check_positive(losses, self.names)
        self.scalarizer.update(losses)

    def state(self) -> dict[str, Tensor]:
        adam = self.scalarizer._optimizer
        return super().state() | (kept.of_optimizer(adam, "own_optimizer") if adam else {})

    def load_state(self, state: dict[str, Tensor]) -> None:
        ones = torch.ones_like(self.scalarizer.min_losses)
        self.scalarizer(ones)
        self.scalarizer.update(ones)  # makes its optimiser, whose moments are read then
        assert self.scalarizer._optimizer is not None
        super().load_state(state)
        kept.load_optimizer(self.scalarizer._optimizer, "own_optimizer", state)
