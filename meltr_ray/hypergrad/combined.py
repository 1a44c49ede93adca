"""The bi-level problem of a combiner: L = g_phi(l(w)), so that phi enters through T numbers.

Legend: l(w) losses (M, T), M micro-batches, g_phi combiner, a = d_l g_phi slopes, J = dl/dw, G = d2_ll g_phi.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad.problem import Combiner, Operator, Problem
from meltr_ray.hypergrad.replayed import Replayed
from meltr_ray.hypergrad.structure import InvalidLosses, check_apart, check_finite, check_values
from meltr_ray.hypergrad.vectors import Vector

REGULARISERS = ("phi_only", "full", "paper")
"""What the outer regulariser differentiates: phi alone, phi and w, or w alone as the published code does."""


class CombinedLosses:
    """`Bilevel` for L = mean of g_phi(l(w)) over micro-batches, F = primary loss + gamma |g_phi(l) - sum_t l_t|."""

    def __init__(self, problem: Problem, combiner: nn.Module | Replayed, gamma: float, regulariser: str, keep_v: bool = True,
                 batches: Sequence[Any] | None = None):  # fmt: skip
        if regulariser not in REGULARISERS:
            raise ValueError(f"regulariser={regulariser}: unknown; use one of {', '.join(REGULARISERS)}")
        self.problem, self.gamma, self.regulariser = problem, gamma, regulariser
        combiner = combiner.still() if isinstance(combiner, Replayed) else Replayed(combiner, without_trace=True)
        self.combiner = combiner if batches is None else on_batches(combiner, batches)
        self.keep_v = keep_v
        self.J_v: Tensor | None = None
        """(M, T), once it has been taken."""
        self.all = list(combiner.parameters())
        self.phi = [p for p in self.all if p.requires_grad]
        check_apart("combiner", self.phi, zip(problem.weights.names, problem.parameters))
        self.fixed_point = problem.fixed_point

    def outer_gradient(self) -> Vector:
        b = self.problem.outer_gradient()
        if self.gamma and self.regulariser in ("full", "paper"):
            each = self.combiner if isinstance(self.combiner, Sequence) else [self.combiner]
            deviations = [lambda l, g=g: self._deviation(g, l) for g in each]
            b = b + self.problem.gradient(deviations if isinstance(self.combiner, Sequence) else deviations[0])
        return b

    def hessian(self) -> Operator:
        return self.problem.hessian(self.combiner)

    def random(self, seed: int) -> Vector:
        return self.problem.random(seed)

    def mixed(self, v: Vector) -> list[Tensor]:
        """d_phi <a_phi(l), J v>; the losses are asked for last, so that the inner step's graph is the only one alive."""
        return self.mixed_through(self.problem.jvp(v, consume=not self.keep_v))

    def mixed_through(self, J_v: Tensor) -> list[Tensor]:
        """The same where J v, (M, T), is known."""
        self.J_v = J_v
        bad = (~J_v.isfinite()).nonzero().tolist()
        if bad:
            raise InvalidLosses(f"losses: the derivative of loss {bad[0][1]} along v is not finite; mend that loss, or raise the damping")
        l = self.problem.losses().detach().clone().requires_grad_()
        check_values(l)
        (a,) = torch.autograd.grad(self._combined(l), l, create_graph=True)  # (M, T): slopes over M
        _check_slopes(a)
        return self._gradient((a * J_v).sum())

    def direct(self) -> list[Tensor]:
        if not self.gamma or self.regulariser == "paper":
            return [torch.zeros_like(p) for p in self.all]
        rows = self.problem.losses().detach()
        return self._gradient(torch.stack([self._deviation(g, l) for g, l in zip(self._each(rows), rows)]).mean())

    def slope_derivatives(self) -> list[Tensor]:
        """G = d2_ll g_phi, (T, T), of each micro-batch."""
        rows = self.problem.losses().detach()
        return [torch.autograd.functional.hessian(g, l) for g, l in zip(self._each(rows), rows)]

    def _combined(self, l: Tensor) -> Tensor:
        return torch.stack([g(row) for g, row in zip(self._each(l), l)]).mean()

    def _each(self, rows: Tensor) -> Sequence[Combiner]:
        """g_phi of each micro-batch."""
        return self.combiner if isinstance(self.combiner, Sequence) else [self.combiner] * len(rows)

    def _deviation(self, g: Combiner, l: Tensor) -> Tensor:
        return self.gamma * (g(l) - l.sum()).abs()

    def _gradient(self, value: Tensor) -> list[Tensor]:
        """A tensor for each parameter of the combiner, zero for a frozen one."""
        found = torch.autograd.grad(value, self.phi, allow_unused=True, materialize_grads=True) if self.phi and value.requires_grad else ()
        check_finite("combiner: the derivative of a slope is", list(found), "lower the learning rate of phi")
        by_parameter = {id(p): g for p, g in zip(self.phi, found)}
        return [by_parameter[id(p)] if id(p) in by_parameter else torch.zeros_like(p) for p in self.all]


def on_batches(combiner: Callable[..., Tensor], batches: Sequence[Any]) -> list[Combiner]:
    """g_phi of each micro-batch, where it asks what batch the losses are of."""

    def of(batch: Any) -> Combiner:
        return lambda l: combiner(l, batch)

    return [of(batch) for batch in batches]


def _check_slopes(a: Tensor) -> None:
    if not a.isfinite().all():
        raise InvalidLosses("combiner: a slope is not finite; lower the learning rate of phi")
    if not a.any():
        raise InvalidLosses("combiner: all slopes are zero, so w would stand still; start near the plain sum (near_sum=True)")
