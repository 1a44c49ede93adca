"""The two seams of this package.

`Problem` stands between the mathematics and whatever holds the weights: a plain module, or DeepSpeed with ZeRO. `Bilevel` is
all that the implicit function theorem asks for, whichever way phi enters the inner loss.
"""

from __future__ import annotations

from collections import Counter
from typing import Callable, Optional, Protocol, Sequence

from torch import Tensor

from meltr_ray.hypergrad.fixed_point import FixedPoint
from meltr_ray.hypergrad.vectors import Vector
from meltr_ray.hypergrad.weights import ModuleWeights

Combiner = Callable[[Tensor], Tensor]
"""g_phi: losses (T,) -> training loss, a scalar."""

Pass = Callable[[], Tensor]
"""A forward pass on data of its own: losses (T,), or a scalar."""

Operator = Callable[[Vector], Vector]
"""A linear map of weight space; what it keeps between products lives as long as it does."""


class Problem(Protocol):
    """Several losses of one w; the training batch, M micro-batches of it, and the meta batches are bound at construction.

    L = mean over ranks and micro-batches of g_phi(l). Every pass over the training batch sees the same dropout masks and
    leaves w, its buffers and the generators as they were. Vectors never leave their shards; gradients of w are means over
    ranks, losses and J v are this rank's own.
    """

    fixed_point: Optional[FixedPoint]
    """What the inner optimiser adds to the fixed point; None: plain gradient descent."""

    weights: ModuleWeights
    rank: int

    @property
    def parameters(self) -> list[Tensor]:
        """w."""

    def begin(self, combiner: Combiner | Sequence[Combiner], phi: Sequence[Tensor]) -> None:
        """A hypergradient starts."""

    def holds(self, phi: Sequence[Tensor]) -> bool:
        """Whether the products were tested on losses like those at hand; False: a hypergradient has to be taken again."""

    def passes(self) -> Counter[str]:
        """Forward and backward passes so far, without the inner step's own forward."""

    def losses(self) -> Tensor:
        """l(w), (M, T), this rank's training batch. Computed once: a later call returns the same tensor."""

    def outer_gradient(self) -> Vector:
        """d_w l_primary(w), mean over the meta batches."""

    def gradient(self, functions: Combiner | Sequence[Combiner]) -> Vector:
        """d_w of the mean over micro-batches of function(l(w)), evaluated anew at the w of the pass; one for all or one each."""

    def jvp(self, v: Vector, *, consume: bool = False) -> Tensor:
        """J v, (M, T): derivatives of this rank's l along v. J = dl/dw. `consume`: v may be overwritten."""

    def hessian(self, combiner: Combiner | Sequence[Combiner]) -> Operator:
        """u -> H u, H = d2_ww of the mean of g_phi(l(w)); one for all micro-batches or one each."""

    def rows(self) -> list[Vector]:
        """All rows of J, of every rank, micro-batch and loss in this order."""

    def gather(self, own: Tensor) -> list[Tensor]:
        """Small tensors of every rank, in the order of ranks."""

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Mean of small replicated tensors over ranks."""

    def random(self, seed: int) -> Vector:
        """Independent standard normal entries."""


class Bilevel(Protocol):
    """The bi-level problem at one (w, phi): outer loss F(w, phi), inner loss L(w, phi)."""

    fixed_point: Optional[FixedPoint]

    def outer_gradient(self) -> Vector:
        """d_w F."""

    def hessian(self) -> Operator:
        """u -> H u, H = d2_ww L."""

    def mixed(self, v: Vector) -> list[Tensor]:
        """d_phi <d_w L, v>, a tensor for each parameter of phi."""

    def direct(self) -> list[Tensor]:
        """d_phi F at fixed w."""

    def random(self, seed: int) -> Vector:
        """Independent standard normal entries."""


class TestedBilevel(Bilevel, Protocol):
    """One whose products are tested as they are taken."""

    def holds(self) -> bool:
        """Whether they were tested on an inner loss like the one at hand; False: a hypergradient has to be taken again."""
