"""The hypergradient by unrolling: reverse mode through K steps of gradient descent, for small modules and for comparison.

It differentiates what training did, K plain steps from the present w, where implicit differentiation differentiates the
optimum that training is heading for. Neither is the other's error: with K small the unrolled one is short-sighted.
"""

from __future__ import annotations

from typing import Callable, Sequence

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad.arguments import check_count, check_number, check_passes
from meltr_ray.hypergrad.generators import get_generators
from meltr_ray.hypergrad.graph import graph_of
from meltr_ray.hypergrad.products import NotAdmitted, radius_of
from meltr_ray.hypergrad.structure import (
    check_apart,
    check_combined,
    check_combiner,
    check_finite,
    check_scalar,
    check_values,
    check_vector_of_losses,
)
from meltr_ray.hypergrad.tested_mixed import moved_along, random_unit
from meltr_ray.hypergrad.weights import ModuleWeights

ALLOWED = {torch.float64: 1e-3, torch.float32: 0.1}
"""Relative error beside a difference in phi, by the type of the weights; of half precision nothing can be told."""


def unrolled_hypergradient(module: nn.Module, losses: Callable[[], Tensor], primary: Callable[[], Tensor], combiner: nn.Module,
                           steps: int, learning_rate: float, trust: bool = False) -> list[Tensor]:  # fmt: skip
    """d l_primary(w_K) / d phi, w_{k+1} = w_k - learning_rate d_w g_phi(l(w_k)), w_0 the module's weights, which stay as they are.

    Memory grows with `steps`: the graph of every step is kept. Every step sees the same dropout masks, as in the implicit one.

    Args:
        losses: forward pass on the training batch, () -> (T,).
        primary: forward pass on the meta batch, () -> scalar.
        steps: K, at least 1.
        trust: leave out the test beside a difference in phi: training four times over, each step a forward and a backward pass.

    Returns:
        A tensor for each parameter of the combiner, zero for a frozen one.

    Raises:
        ValueError: losses or primary read weights otherwise than from the module, or don't depend on them.
        NotAdmitted: the derivative isn't that of what training does: an operator has no second derivative, or a gradient is stopped.
    """
    check_passes("losses", [losses])
    check_passes("primary", [primary])
    check_count("steps", steps, mend="with none, phi has no effect")
    check_number("learning_rate", learning_rate, above=True)
    check_combiner(combiner)
    weights, phi = ModuleWeights(module), [p for p in combiner.parameters() if p.requires_grad]
    check_apart("combiner", phi, zip(weights.names, weights.parameters))
    states = get_generators(weights.device)

    def at(w: list[Tensor], function: Callable[[], Tensor]) -> Tensor:
        with weights.replayed(states):
            return weights.swapped(w, lambda tensors: function())

    def outer(with_graph: bool) -> Tensor:
        w = [p.detach().clone().requires_grad_() for p in weights.parameters]
        for _ in range(steps):
            gradient = torch.autograd.grad(
                at(w, lambda: combiner(losses())), w, create_graph=with_graph, allow_unused=True, materialize_grads=True
            )
            w = [x - learning_rate * g if with_graph else (x - learning_rate * g).detach().requires_grad_() for x, g in zip(w, gradient)]
        return check_scalar("primary", at(w, primary))

    start = [p.detach().clone().requires_grad_() for p in weights.parameters]
    l = check_vector_of_losses(at(start, losses), 0)
    check_values(l.detach()[None])
    check_combined(combiner, l.detach(), phi)
    for name, value in (("losses", l), ("primary", check_scalar("primary", at(start, primary)))):
        _check_read(name, value, start, weights.parameters)
    value = outer(with_graph=True)
    found = list(torch.autograd.grad(value, phi, allow_unused=True, materialize_grads=True)) if phi and value.requires_grad else []
    check_finite("combiner: the hypergradient is", found, "lower the learning rate")
    if found and not trust and weights.dtype in ALLOWED:
        _check_beside_a_difference(found, phi, lambda: float(outer(with_graph=False).detach()), weights.dtype)
    by_parameter = {id(p): g for p, g in zip(phi, found)}
    return [by_parameter[id(p)] if id(p) in by_parameter else torch.zeros_like(p) for p in combiner.parameters()]


def _check_read(name: str, value: Tensor, w: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    leaves, moved, own = graph_of([value]).leaves, {id(x) for x in w}, {id(p) for p in parameters}
    if any(id(leaf) in own for leaf in leaves):
        raise ValueError(f"{name}: weights are read past the module (a list, an attribute or an optimiser's groups made before); "
                         "read them from the module inside the pass, or use ModuleProblem")  # fmt: skip
    if not any(id(leaf) in moved for leaf in leaves):
        raise ValueError(f"{name}: it doesn't depend on the module's weights; compute it with this module, not with a copy or another one")
    if any(isinstance(leaf, nn.Parameter) and id(leaf) not in moved for leaf in leaves):
        raise ValueError(f"{name}: it depends on a parameter that isn't in the module; give a module that holds all, or freeze it")


def _check_beside_a_difference(found: Sequence[Tensor], phi: Sequence[Tensor], value: Callable[[], float], dtype: torch.dtype) -> None:
    """Along a random direction and along the answer itself; nothing is told where two lengths of the difference disagree."""
    step = radius_of("central", dtype) * max(1.0, float(torch.stack([p.detach().norm() for p in phi]).norm()))
    length = float(torch.stack([g.norm() for g in found]).norm())
    x = random_unit(phi)
    if length > 0:
        x = [piece + g / length for piece, g in zip(x, found)]
    own = float(sum((g.double() * piece.double()).sum() for g, piece in zip(found, x)))

    def along(step: float) -> float:
        ends = []
        for side in (step, -step):
            with moved_along(phi, x, side):
                ends.append(value())
        return (ends[0] - ends[1]) / (2 * step)

    near, further = along(step), along(3 * step)
    scale, noise = max(abs(near), abs(own)), 16 * torch.finfo(dtype).eps * abs(value()) / step
    off = min(abs(own - near), abs(own - further))
    if off > ALLOWED[dtype] * scale + noise and abs(near - further) <= max(0.1 * scale, off / 2) + noise:
        raise NotAdmitted(f"unrolled: it is off by {off / scale:.0%} beside a difference in phi (an operator without a second derivative, or a "
                          "stopped gradient); use hypergradient() with Identity(), or trust=True")  # fmt: skip
