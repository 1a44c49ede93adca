"""From g_phi to the slopes of an inner step, and combiners that hold slopes within bounds."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad.replayed import Replayed

SLOPES = ("any", "non_negative", "simplex")
"""Of `combiner.slopes`."""
FLOOR = 0.25
"""Default of `combiner.floor`."""


def slopes(combiner: Callable[..., Tensor], losses: Tensor, *batch: Any) -> tuple[Tensor, Tensor]:
    """(g_phi(l), a) with a = d_l g_phi(l), (T,), both detached: all that an inner step on w needs to know of phi."""
    l = losses.detach().requires_grad_()
    with torch.enable_grad():
        value = combiner(l, *batch)
        (a,) = torch.autograd.grad(value, l)
    return value.detach(), a


class Bounded(nn.Module):
    """A combiner made of another, `combiner`, and called as that one is."""

    combiner: nn.Module

    def __init__(self, combiner: nn.Module):
        super().__init__()
        self.combiner = combiner


class NonNegativeSlopes(Bounded):
    """A combiner whose negative slopes are cut to zero: a loss that it would raise counts as a constant at this w.

    Training and hypergradient see the same function of the other losses, so its Hessian stays symmetric.
    """

    def forward(self, losses: Tensor, *batch: Any) -> Tensor:
        combiner = Replayed(self.combiner)  # one mask for the slopes and for the value
        _, a = slopes(combiner, losses, *batch)
        return combiner(torch.where(a < 0, losses.detach(), losses), *batch)


class SimplexSlopes(Bounded):
    """a @ l with a = T ((1 - floor) softmax(s) + floor e_primary), s the slopes of the inner combiner at these values of the losses.

    So a is positive, its sum is T, and the primary has at least `floor` of it: what one loss gains, the others lose. Values enter a
    detached, so that the slopes of this function are a, their derivative in phi is that of a, and its Hessian in l is 0.

    Args:
        primary: number of the primary loss.
        floor: its least share of the sum, in [0, 1).
    """

    def __init__(self, combiner: nn.Module, primary: int, floor: float = FLOOR):
        super().__init__(combiner)
        self.primary, self.floor = primary, floor

    def forward(self, losses: Tensor, *batch: Any) -> Tensor:
        l = losses.detach().requires_grad_()
        with torch.enable_grad():
            (s,) = torch.autograd.grad(self.combiner(l, *batch), l, create_graph=True)
        shares = (1 - self.floor) * s.softmax(0)
        shares = shares + self.floor * torch.eye(len(s), dtype=s.dtype, device=s.device)[self.primary]
        return len(s) * shares @ losses


class Gated(Bounded):
    """A combiner some of whose losses may be switched off: they count as constants. `open` (T,), 1 or 0, is set from outside."""

    open: Tensor

    def __init__(self, combiner: nn.Module, num_losses: int):
        super().__init__(combiner)
        self.register_buffer("open", torch.ones(num_losses))

    def forward(self, losses: Tensor, *batch: Any) -> Tensor:
        return self.combiner(torch.where(self.open > 0, losses, losses.detach()), *batch)


def with_slopes(combiner: nn.Module, kind: str, primary: int, floor: float) -> nn.Module:
    """`combiner` with slopes of a `kind` of SLOPES."""
    made: dict[str, Callable[[], nn.Module]] = {
        "any": lambda: combiner,
        "non_negative": lambda: NonNegativeSlopes(combiner),
        "simplex": lambda: SimplexSlopes(combiner, primary, floor),
    }
    return made[kind]()


def innermost(combiner: nn.Module) -> nn.Module:
    """The combiner within all that bounds its slopes."""
    while isinstance(combiner, Bounded):
        combiner = combiner.combiner
    return combiner
