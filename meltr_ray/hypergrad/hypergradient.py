"""The hypergradient of a bi-level problem by the implicit function theorem (MELTR, arXiv 2303.13009, section 3.3).

Legend: w weights (p), phi parameters of the outer level, L(w, phi) inner loss, F(w, phi) outer loss, H = d2_ww L,
l(w) losses (T), g_phi combiner, a = d_l g_phi slopes (T), J = dl/dw (T x p).

    d F / d phi  =  d_phi F  -  d_phi <d_w L, v>,      v = (H + damping I)^-1 d_w F

With L = g_phi(l(w)), phi enters through T numbers alone, so d_phi <d_w L, v> = d_phi <a_phi(l), J v>: the losses' derivatives
along v and a backward pass through g_phi. No second-order graph through the model is ever built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad.outcome import Solution
from meltr_ray.hypergrad.problem import Bilevel, Operator, Problem
from meltr_ray.hypergrad.solvers import Identity, Solver
from meltr_ray.vectors import Vector


class InvalidLosses(ValueError):
    """Losses or slopes that no hypergradient can be taken of: one line that names them and the mend."""


@dataclass(frozen=True)
class HyperGradient:
    """The two terms, each a list with one tensor per parameter of phi, before any mean over ranks."""

    implicit: list[Tensor]
    direct: list[Tensor]
    solution: Solution

    def total(self) -> list[Tensor]:
        return [a + b for a, b in zip(self.implicit, self.direct)]


def hypergradient(problem: Problem | Bilevel, combiner: Optional[nn.Module] = None, solver: Solver = Identity(), gamma: float = 0.0,
                  regulariser: str = "phi_only", start: Optional[Vector] = None) -> HyperGradient:  # fmt: skip
    """d F / d phi at the w of `problem`.

    Args:
        problem: several losses that `combiner` makes one (`ModuleProblem`), or any other phi (`BilevelProblem`, no combiner).
        combiner: g_phi, (T,) -> scalar, twice differentiable.
        solver: how v is found.
        gamma: weight of the outer regulariser |g_phi(l) - sum_t l_t|.
        regulariser: `phi_only` keeps its direct term; `full` also its part in w, one more backward pass; `paper` its part
            in w alone, which is what the published code computes.
        start: v of an earlier solve, for solvers that start warm.

    Raises:
        InvalidLosses: a loss or a slope is not finite, or all slopes are zero.
        NotAdmitted: the model lacks a derivative that the product asked for needs.
    """
    if hasattr(problem, "losses") != (combiner is not None):
        raise ValueError("combiner: a problem of several losses needs one, and a BilevelProblem takes none; give or leave it out")
    level = problem if combiner is None else CombinedLosses(problem, combiner, gamma, regulariser)
    b = level.outer_gradient()
    solution = solver(level, b, start)
    mixed = level.mixed(solution.v) if solution.J_v is None else level.mixed_through(solution.J_v)
    return HyperGradient([-m for m in mixed], level.direct(), solution)


class CombinedLosses:
    """`Bilevel` for L = mean of g_phi(l(w)) over micro-batches, F = primary loss + gamma |g_phi(l) - sum_t l_t|."""

    REGULARISERS = ("phi_only", "full", "paper")

    def __init__(self, problem: Problem, combiner: nn.Module, gamma: float, regulariser: str):
        if regulariser not in self.REGULARISERS:
            raise ValueError(f"regulariser={regulariser}: unknown; use one of {', '.join(self.REGULARISERS)}")
        self.problem, self.combiner, self.gamma, self.regulariser = problem, combiner, gamma, regulariser
        self.phi = [p for p in combiner.parameters() if p.requires_grad]
        self.fixed_point = problem.fixed_point

    def outer_gradient(self) -> Vector:
        b = self.problem.outer_gradient()
        if self.gamma and self.regulariser in ("full", "paper"):
            b = b + self.problem.gradient(self._deviation)
        return b

    def hessian(self) -> Operator:
        return self.problem.hessian(self.combiner)

    def random(self, seed: int) -> Vector:
        return self.problem.random(seed)

    def mixed(self, v: Vector) -> list[Tensor]:
        """d_phi <a_phi(l), J v>; the losses are asked for last, so that the inner step's graph is the only one alive."""
        return self.mixed_through(self.problem.jvp(v))

    def mixed_through(self, J_v: Tensor) -> list[Tensor]:
        """The same where J v, (M, T), is known."""
        l = self.problem.losses().detach().clone().requires_grad_()
        _check_losses(l)
        (a,) = torch.autograd.grad(self._combined(l), l, create_graph=True)  # (M, T): slopes over M
        _check_slopes(a)
        return self._gradient((a * J_v).sum())

    def direct(self) -> list[Tensor]:
        if not self.gamma or self.regulariser == "paper":
            return [torch.zeros_like(p) for p in self.phi]
        rows = self.problem.losses().detach()
        return self._gradient(torch.stack([self._deviation(l) for l in rows]).mean())

    def slope_derivatives(self) -> list[Tensor]:
        """G = d2_ll g_phi, (T, T), of each micro-batch."""
        return [torch.autograd.functional.hessian(self.combiner, l) for l in self.problem.losses().detach()]

    def _combined(self, l: Tensor) -> Tensor:
        return torch.stack([self.combiner(row) for row in l]).mean()

    def _deviation(self, l: Tensor) -> Tensor:
        return self.gamma * (self.combiner(l) - l.sum()).abs()

    def _gradient(self, value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, self.phi, allow_unused=True, materialize_grads=True))


def _check_losses(l: Tensor) -> None:
    finite = l.isfinite()
    if not finite.all():
        row, loss = (~finite).nonzero()[0].tolist()
        raise InvalidLosses(f"losses: loss {loss} is {l[row, loss].item()}; lower the learning rate, or mend that loss")


def _check_slopes(a: Tensor) -> None:
    if not a.isfinite().all():
        raise InvalidLosses("combiner: a slope is not finite; lower the learning rate of phi")
    if not a.any():
        raise InvalidLosses("combiner: all slopes are zero, so w would stand still; start near the plain sum (near_sum=True)")
