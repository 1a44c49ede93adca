"""The hypergradient of MELTR's bi-level problem (arXiv 2303.13009, section 3.3) by implicit differentiation.

Legend: w weights (p), l(w) losses (T), g_phi combiner, L = g_phi(l(w)) training loss, a = d_l g_phi slopes (T),
F = l_primary on the meta batch + gamma |g_phi(l) - sum_t l_t|, J = dl/dw (T x p), H = d2_ww L, v = (H + damping I)^-1 d_w F.

    d_phi F  -  d_phi <a_phi(l), J v>

phi enters L only through T numbers, so the mixed second derivative needs J v and a backward pass through g_phi alone:
no second-order graph through the model is ever built.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad.outcome import Solution
from meltr_ray.hypergrad.problem import Problem
from meltr_ray.hypergrad.solvers import Identity, Solver


@dataclass(frozen=True)
class HyperGradient:
    """The two terms, each a list with one tensor per parameter of the combiner, before any mean over ranks."""

    implicit: list[Tensor]
    direct: list[Tensor]
    slopes: Tensor  # (T,)
    solution: Solution

    def total(self) -> list[Tensor]:
        return [a + b for a, b in zip(self.implicit, self.direct)]


def hypergradient(problem: Problem, combiner: nn.Module, solver: Solver = Identity(), gamma: float = 0.0,
                  regulariser: str = "phi_only") -> HyperGradient:  # fmt: skip
    """d F / d phi at the w of `problem`.

    Args:
        combiner: g_phi, (T,) -> scalar, twice differentiable.
        gamma: weight of the outer regulariser.
        regulariser: `phi_only` keeps its direct term; `full` also its part in w, one more backward pass; `paper` its part
            in w alone, which is what the published code computes.
    """

    def deviation(l: Tensor) -> Tensor:
        return gamma * (combiner(l) - l.sum()).abs()

    b = problem.outer_gradient()
    if gamma and regulariser in ("full", "paper"):
        b = b + problem.gradient(deviation)
    solution = solver(lambda u: problem.hvp(u, combiner), b)
    J_v = problem.jvp(solution.v)

    phi = [p for p in combiner.parameters() if p.requires_grad]
    l = problem.losses().detach().requires_grad_()
    (a,) = torch.autograd.grad(combiner(l), l, create_graph=True)
    implicit = _gradient(-(a @ J_v), phi)
    keep_direct = gamma and regulariser != "paper"
    direct = _gradient(deviation(l), phi) if keep_direct else [torch.zeros_like(p) for p in phi]
    return HyperGradient(implicit, direct, a.detach(), solution)


def _gradient(value: Tensor, phi: list[nn.Parameter]) -> list[Tensor]:
    return list(torch.autograd.grad(value, phi, allow_unused=True, materialize_grads=True))
