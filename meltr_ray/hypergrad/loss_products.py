"""Products of a `LossesProblem` that differentiate twice: J v exactly, Gauss-Newton's H u, and the passes whose differences are H u.

Legend: M micro-batches, T losses, l(w) (M, T), J = dl/dw, G = d2_ll g_phi.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Sequence

import torch
from torch import Tensor

from meltr_ray.hypergrad.problem import Combiner, Pass
from meltr_ray.hypergrad.vectors import Vector
from meltr_ray.hypergrad.weights import tangent


def linearised(problem: Any, combiner: Combiner | Sequence[Combiner]) -> list[Pass]:
    """Passes whose gradient is J(w)' a with a linear in the losses: slopes and their derivative G at l(w0), w0 the first w they see.

    At w0 + eps u their gradient is J' (a + G (l - l(w0))), which has the derivative H u there, as g_phi's own has. But
    g_phi may have kinks: MELTR's encoder has units that a small move switches on or off, and over a switch a difference of
    its slopes is off by the jump over eps (seen: H u off by its own size). Frozen slopes, without G, would lose J' G J u.
    """
    at_start: dict[int, Tensor] = {}
    each = problem.each(combiner)

    def value(m: int) -> Tensor:
        forward = problem.forward if torch.is_grad_enabled() else problem.forward_alone
        l = problem.shared(forward(problem.forwards[m]))
        at_start.setdefault(m, l.detach())
        with torch.enable_grad():
            here = at_start[m].clone().requires_grad_()
            (a,) = torch.autograd.grad(each[m](here), here, create_graph=True)
            if a.requires_grad:
                a = a + torch.autograd.grad(a, here, l.detach() - at_start[m], allow_unused=True, materialize_grads=True)[0]
        return a.detach() @ l

    return [partial(value, m) for m in range(len(problem.forwards))]


def forward_mode(problem: Any, v: Vector) -> Tensor:
    with problem.replay():
        J_v = problem.weights.along(v, lambda duals: torch.stack([tangent(problem.forward(f)) for f in problem.forwards]))
    return problem.average([J_v])[0] if problem.average_losses else J_v


def double_backward(problem: Any, v: Vector) -> Tensor:
    """J v as the derivative of c -> <J' c, v>."""
    with problem.replay():
        l = torch.stack([problem.forward(forward) for forward in problem.forwards])
        c = torch.zeros_like(l, requires_grad=True)
        J_c = problem.weights.differentiate(l, grad_outputs=c, create_graph=True)
    problem.weights.passes["backward"] += 1
    (J_v,) = torch.autograd.grad(torch.stack([(x * y).sum() for x, y in zip(J_c, v.pieces)]).sum(), c)
    return problem.average([J_v])[0] if problem.average_losses else J_v


def gauss_newton(problem: Any, combiner: Combiner | Sequence[Combiner], u: Vector) -> Vector:
    """J' G J u, G = d2_ll g_phi of each micro-batch: a J v and one gradient."""
    J_u, cotangents = problem.jvp(u), []
    for g, row, along in zip(problem.each(combiner), problem.losses().detach(), J_u):
        l = row.clone().requires_grad_()
        (a,) = torch.autograd.grad(g(l), l, create_graph=True)
        curved = a.requires_grad  # a linear combiner has G = 0
        cotangents.append(torch.autograd.grad(a, l, along, materialize_grads=True, allow_unused=True)[0] if curved else 0 * along)
    return problem.gradient([partial(torch.dot, c) for c in cotangents])
