"""The seam between the mathematics and whatever holds the weights: a plain module, or DeepSpeed with ZeRO."""

from __future__ import annotations

from typing import Callable, Protocol, Sequence

from torch import Tensor

from meltr_ray.vectors import Vector

Combiner = Callable[[Tensor], Tensor]
"""g_phi: losses (T,) -> training loss, a scalar."""


class Problem(Protocol):
    """The bi-level problem at one w, its training batch and its meta batch bound at construction.

    Every pass over the training batch sees the same dropout masks and leaves w, its buffers and the generators as they
    were. Vectors never leave their shards; gradients of w are means over ranks.
    """

    def losses(self) -> Tensor:
        """l(w), (T,), this rank's training batch. Computed once: a later call returns the same tensor."""

    def outer_gradient(self) -> Vector:
        """d_w l_primary(w) on the meta batch."""

    def gradient(self, function: Combiner) -> Vector:
        """d_w function(l(w)) on the training batch; `function` is evaluated anew at the w of the pass."""

    def jvp(self, v: Vector) -> Tensor:
        """J v, (T,): derivatives of this rank's l along v. J = dl/dw."""

    def hvp(self, u: Vector, combiner: Combiner) -> Vector:
        """H u, H = d2_ww g_phi(l(w))."""

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Mean of small replicated tensors over ranks."""
