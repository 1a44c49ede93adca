"""What MELTR's tokens are made of: values of losses as they are, or brought to a size that doesn't saturate its layer norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DECAY = 0.9
"""Of the exponential mean that `Relative` divides by, from one observation to the next."""


class Log(nn.Module):
    """l -> asinh l: near 0 the loss itself, beyond it the logarithm of twice its size, with its sign."""

    def forward(self, losses: Tensor) -> Tensor:
        return losses.asinh()


class Relative(nn.Module):
    """l -> l over an exponential mean of |l|, (T,); the loss itself before the first observation."""

    LEAST = 1e-6
    scale: Tensor
    observed: Tensor

    def __init__(self, num_losses: int):
        super().__init__()
        self.register_buffer("scale", torch.ones(num_losses))
        self.register_buffer("observed", torch.zeros((), dtype=torch.long))

    def observe(self, losses: Tensor) -> None:
        """`losses` (T,), alike on every rank; what isn't finite is left out."""
        size = losses.detach().abs().to(self.scale)
        mean = DECAY * self.scale + (1 - DECAY) * size if self.observed else size
        self.scale = torch.where(size.isfinite(), mean, self.scale)
        self.observed = self.observed + 1

    def forward(self, losses: Tensor) -> Tensor:
        return losses / self.scale.clamp(min=self.LEAST).to(losses.dtype)


INPUTS = {"raw": lambda count: nn.Identity(), "log": lambda count: Log(), "relative": Relative}
"""Name in `combiner.inputs` -> what makes of T losses the values that tokens are made of."""
