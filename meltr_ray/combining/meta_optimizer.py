"""How phi moves, however its gradient comes about: Adam with L2 decay, as published, and a clip."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor, nn

from meltr_ray.combining import kept

OF_PHI = (
    "aid.inner_steps",
    "aid.learning_rate",
    "aid.betas",
    "aid.weight_decay",
    "aid.gamma",
    "aid.clip",
    "combiner.slopes",
    "combiner.floor",
)
"""Settings of every g_phi that is learned, however its gradient comes about."""
DECAY = 0.9
"""Of the exponential mean of the alignments' length, from one meta step to the next."""


class MetaOptimizer:
    """Moves phi, the parameters of a combiner that ask for a gradient, alike on every rank.

    Args:
        combiner: g_phi.
        aid: settings `aid.*`.
    """

    def __init__(self, combiner: nn.Module, aid: Any):
        self.phi = [p for p in combiner.parameters() if p.requires_grad]
        self.adam = torch.optim.Adam(self.phi, aid.learning_rate, tuple(aid.betas), weight_decay=aid.weight_decay)
        self.clip = aid.clip
        self.length = torch.zeros((), dtype=torch.float64)
        """Exponential mean of the alignments' lengths, from 0; stays there where nobody asks for a unit."""

    def unit(self, alignments: Tensor, number: int) -> float:
        """Exponential mean of the lengths of `alignments` (T,), these of meta step `number` included; 1 if it is 0 or not finite."""
        length = torch.linalg.vector_norm(alignments.double()).cpu()
        self.length = DECAY * self.length + (1 - DECAY) * length if length.isfinite() else DECAY * self.length
        found = float(self.length / (1 - DECAY ** (number + 1)))
        return found or 1.0

    def descend(self, gradient: Sequence[Tensor]) -> float:
        """A step along -`gradient`, clipped; none if it isn't finite. Returns its norm before the clip."""
        norm = norm_of(gradient)
        if norm.isfinite():
            scale = min(1.0, self.clip / (float(norm) + 1e-6)) if self.clip else 1.0  # as torch clips
            for p, g in zip(self.phi, gradient):
                p.grad = scale * g
            self.adam.step()
        return float(norm)

    def state(self) -> dict[str, Tensor]:
        lengths = {"length": self.length} if self.length else {}
        return kept.of_optimizer(self.adam, "meta_optimizer") | lengths

    def load_state(self, state: dict[str, Tensor]) -> None:
        kept.load_optimizer(self.adam, "meta_optimizer", state)
        self.length = state.get("length", self.length)


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """Of all of them as one vector."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))
