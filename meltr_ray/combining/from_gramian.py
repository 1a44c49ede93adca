"""Ways that see how the losses' gradients stand to each other, G = J J' (T, T): torchjd's weightings, which say a of G.

G is exact, T backward passes, or random, forward passes (`combiner.gramian`), every `combiner.every` steps. A loss without a gradient has slope 0 and isn't shown to them: MGDA would
train on it alone, FairGrad weigh it by thousands.
"""

from __future__ import annotations

from typing import Any, ClassVar, Optional, Sequence

import torch
from torch import Tensor, nn

from meltr_ray.combining import kept
from meltr_ray.combining.looking import Looking
from meltr_ray.combining.random_gramian import RandomGramian
from meltr_ray.combining.seeded import seeded
from meltr_ray.hypergrad.structure import InvalidLosses
from meltr_ray.workload import Workload


class FromGramian(Looking):
    """Slopes of a weighting.

    Args:
        weighting: G (N, N) float64 of the N losses that have a gradient, the primary first -> weights (N,).
        count: T.
        primary: number of the primary loss.
        every, random: as `Looking` has them.
        seed: of what the weighting draws.
    """

    learns: ClassVar[bool] = False
    needs: ClassVar[Sequence[str]] = ("torchjd",)
    least_draws: ClassVar[int] = 64
    attributes: ClassVar[Sequence[str]] = ()
    """What torchjd's object remembers."""

    @staticmethod
    def made(settings: Any) -> nn.Module:
        """The weighting; `settings`: `combiner.*`."""
        raise NotImplementedError

    @classmethod
    def of(cls, config: Any, workload: Workload) -> FromGramian:
        names = config.losses.set
        return cls(cls.made(config.combiner), len(names), names.index(config.losses.primary), config.combiner.every, config.seed,
                   RandomGramian.of(config, cls.least_draws))  # fmt: skip

    def __init__(
        self, weighting: nn.Module, count: int, primary: int = 0, every: int = 1, seed: int = 0, random: Optional[RandomGramian] = None
    ):
        super().__init__(count, every, random)
        self.weighting, self.seed = weighting, seed
        self.order = [primary, *(t for t in range(count) if t != primary)]

    def looked(self, step: Any) -> Tensor:
        return self.weights(self.random(step) if self.random else step.gramian())

    def weights(self, gramian: Tensor) -> Tensor:
        """(T,) of G (T, T).

        Raises:
            InvalidLosses: G is not finite.
        """
        if not gramian.isfinite().all():
            raise InvalidLosses("a loss or its gradient is not finite")
        alive = [t for t in self.order if gramian[t, t] > 0]
        a = torch.zeros(len(gramian), dtype=gramian.dtype)
        if alive:
            with seeded(self.seed, self.num_steps):
                a[alive] = self.weighting(gramian[alive][:, alive])
        return a

    def state(self) -> dict[str, Tensor]:
        return super().state() | kept.of_attributes(self.weighting, self.attributes, "own")

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        sizes = [len(value) for name, value in state.items() if name.startswith("own/") and value.dim()]
        if sizes:  # a call of that size first: it forgets what it remembers when the size is new
            with seeded(0, 0):
                self.weighting(torch.eye(sizes[0], dtype=torch.float64))
        kept.load_attributes(self.weighting, self.attributes, "own", state)


class PCGrad(FromGramian):
    """Gradient surgery (Yu et al., NeurIPS 2020): each gradient loses what contradicts the others, in random order."""

    @staticmethod
    def made(settings: Any) -> nn.Module:
        from torchjd.aggregation import PCGradWeighting

        return PCGradWeighting()


class GradVac(FromGramian):
    """Gradient vaccine (Wang et al., ICLR 2021): each pair is brought to its usual cosine, a mean of decay `strength`."""

    strength, strongest = 0.5, 1.0
    attributes = ("_phi_t",)

    @staticmethod
    def made(settings: Any) -> nn.Module:
        from torchjd.aggregation import GradVacWeighting

        return GradVacWeighting(beta=settings.strength)


class CAGrad(FromGramian):
    """Conflict-averse descent (Liu et al., NeurIPS 2021): the best worst case within `strength` of the mean gradient."""

    strength, needs = 0.5, ("torchjd", "cvxpy", "clarabel")

    @staticmethod
    def made(settings: Any) -> nn.Module:
        from torchjd.aggregation import CAGradWeighting

        return CAGradWeighting(c=settings.strength)


class MGDA(FromGramian):
    """The shortest convex combination of the gradients (Sener and Koltun, NeurIPS 2018)."""

    @staticmethod
    def made(settings: Any) -> nn.Module:
        from torchjd.aggregation import MGDAWeighting

        return MGDAWeighting()


class AlignedMTL(FromGramian):
    """Aligned-MTL (Senushkin et al., CVPR 2023): gradients made orthogonal and of one length."""

    @staticmethod
    def made(settings: Any) -> nn.Module:
        from torchjd.aggregation import AlignedMTLWeighting

        return AlignedMTLWeighting()


class ImtlG(FromGramian):
    """Impartial multi-task learning, gradient balance (Liu et al., ICLR 2021): equal projections on all gradients."""

    @staticmethod
    def made(settings: Any) -> nn.Module:
        from torchjd.aggregation import IMTLGWeighting

        return IMTLGWeighting()


class UPGrad(FromGramian):
    """UPGrad (Quinton and Rey, 2024, arXiv 2406.16232): each gradient projected so that it contradicts none, then the mean."""

    needs = ("torchjd", "quadprog", "qpsolvers")

    @staticmethod
    def made(settings: Any) -> nn.Module:
        from torchjd.aggregation import UPGradWeighting

        return UPGradWeighting()


class DualProj(FromGramian):
    """The mean gradient projected so that it contradicts none (Lopez-Paz and Ranzato, NeurIPS 2017)."""

    needs = ("torchjd", "quadprog", "qpsolvers")

    @staticmethod
    def made(settings: Any) -> nn.Module:
        from torchjd.aggregation import DualProjWeighting

        return DualProjWeighting()


class FairGrad(FromGramian):
    """Fair shares of the descent (Ban and Ji, ICML 2024): alpha-fairness, alpha the `strength`."""

    strength = 2.0

    @staticmethod
    def made(settings: Any) -> nn.Module:
        from torchjd.aggregation import FairGradWeighting

        return FairGradWeighting(alpha=settings.strength)


class PCD(FromGramian):
    """Priority-constrained descent (TMLR 2026, arXiv 2606.29521): the primary's, with a share `strength` of progress for each other loss."""

    strength, strongest = 0.02, 1.0
    attributes = ("_sq_norm_ema", "_n_steps")

    @staticmethod
    def made(settings: Any) -> nn.Module:
        from torchjd.aggregation import PCDWeighting

        return PCDWeighting(tau=settings.strength)


class CosineGate(FromGramian):
    """A loss is trained on while its gradient doesn't contradict the primary's (Du et al., 2018, arXiv 1812.02224)."""

    needs = ()

    @staticmethod
    def made(settings: Any) -> nn.Module:
        return Gate()


class Gate(nn.Module):
    """1 for each row of G whose product with the first isn't negative, else 0."""

    def forward(self, gramian: Tensor) -> Tensor:
        return (gramian[0] >= 0).to(gramian.dtype)
