"""From g_phi to the slopes of an inner step."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad.replayed import Replayed


def slopes(combiner: Callable[..., Tensor], losses: Tensor, *batch: Any) -> tuple[Tensor, Tensor]:
    """(g_phi(l), a) with a = d_l g_phi(l), (T,), both detached: all that an inner step on w needs to know of phi."""
    l = losses.detach().requires_grad_()
    with torch.enable_grad():
        value = combiner(l, *batch)
        (a,) = torch.autograd.grad(value, l)
    return value.detach(), a


class NonNegativeSlopes(nn.Module):
    """A combiner whose negative slopes are cut to zero: a loss that it would raise counts as a constant at this w.

    Training and hypergradient see the same function of the other losses, so its Hessian stays symmetric.
    """

    def __init__(self, combiner: nn.Module):
        super().__init__()
        self.combiner = combiner

    def forward(self, losses: Tensor, *batch: Any) -> Tensor:
        combiner = Replayed(self.combiner)  # one mask for the slopes and for the value
        _, a = slopes(combiner, losses, *batch)
        return combiner(torch.where(a < 0, losses.detach(), losses), *batch)
