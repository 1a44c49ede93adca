"""The hypergradient by unrolling: reverse mode through K steps of gradient descent, for small modules and for comparison.

It differentiates what training did, K plain steps from the present w, where implicit differentiation differentiates the
optimum that training is heading for. Neither is the other's error: with K small the unrolled one is short-sighted.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from meltr_ray.hypergrad.generators import get_generators
from meltr_ray.hypergrad.weights import ModuleWeights, Run


def unrolled_hypergradient(module: nn.Module, losses: Callable[[], Tensor], primary: Callable[[], Tensor], combiner: nn.Module,
                           steps: int, learning_rate: float) -> list[Tensor]:  # fmt: skip
    """d l_primary(w_K) / d phi, w_{k+1} = w_k - learning_rate d_w g_phi(l(w_k)), w_0 the module's weights, which stay as they are.

    Memory grows with `steps`: the graph of every step is kept. Every step sees the same dropout masks, as in the implicit one.

    Args:
        losses: forward pass on the training batch, () -> (T,).
        primary: forward pass on the meta batch, () -> scalar.
        steps: K, at least 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: at least 1 is needed; with none, phi has no effect")
    weights, phi = ModuleWeights(module), [p for p in combiner.parameters() if p.requires_grad]
    states, runner = get_generators(weights.device), Run(module)

    def at(w: list[Tensor], function: Callable[[], Tensor]) -> Tensor:
        named = {f"module.{name}": tensor for name, tensor in zip(weights.names, w)}
        with weights.replayed(states):
            return functional_call(runner, named, (lambda tensors: function(), w))

    w = [p.detach().clone().requires_grad_() for p in weights.parameters]
    for _ in range(steps):
        gradient = torch.autograd.grad(at(w, lambda: combiner(losses())), w, create_graph=True, allow_unused=True, materialize_grads=True)
        w = [x - learning_rate * g for x, g in zip(w, gradient)]
    return list(torch.autograd.grad(at(w, primary), phi, allow_unused=True, materialize_grads=True))
