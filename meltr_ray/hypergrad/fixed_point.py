"""What the inner optimiser makes of the inner problem: weight decay belongs in H, and Adam has a fixed point of its own.

AdamW moves w by -rate (D m + decay w), with D = 1 / (sqrt(second moment) + epsilon) on the diagonal. It rests where
d_w L + decay D^-1 w = 0, so H gains decay D^-1; with L2 decay inside L, or plain SGD, it gains decay I.

D serves two ends that are kept apart. As a preconditioner it changes the way of a solve and not its answer. As part of the
fixed point D d_w L = 0 (SAMA, Choe et al. 2023, arXiv 2310.05674) it cancels in an exact, undamped solve, but not in a truncated or
damped one: there the identity becomes v = D b, and damping I becomes damping D^-1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence

import torch
from torch import Tensor

from meltr_ray.hypergrad.vectors import Vector


@dataclass(frozen=True)
class FixedPoint:
    """Weight decay and Adam's diagonal at one w.

    Args:
        decay: weight decay of each parameter, one number a piece of w.
        scale: D^-1 = sqrt(second moment, its bias corrected) + epsilon; None for an optimiser without.
        decoupled: AdamW's decay, which the scale multiplies; False: L2.
    """

    decay: Sequence[float]
    scale: Optional[Vector] = None
    decoupled: bool = True

    def add_decay(self, product: Vector, u: Vector) -> Vector:
        """H u plus what weight decay adds to it."""
        if not any(self.decay):
            return product
        decayed = torch._foreach_mul(u.pieces, list(self.decay))
        if self.decoupled and self.scale is not None:
            torch._foreach_mul_(decayed, self.scale.pieces)
        return product + Vector(tuple(decayed), u.reduce)

    def relative_scale(self) -> Vector:
        """D^-1 over its mean, so that damping keeps its meaning.

        Raises:
            ValueError: the optimiser has no second moments yet.
        """
        if self.scale is None:
            raise ValueError("adam: the inner optimiser has no second moments; use adam='ignore', or take an optimiser step first")
        return 1 / self.scale.mean() * self.scale

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> FixedPoint:
        """Fixed point of torch's SGD, Adam or AdamW over whole `parameters`.

        A parameter that never had a gradient has no second moment: it counts with the mean of the others, so that nothing else
        changes by it, as if it were frozen.
        """
        group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
        decay = [group_of[p]["weight_decay"] if p in group_of else 0.0 for p in parameters]
        states = [optimizer.state.get(p, {}) for p in parameters]
        if not any("exp_avg_sq" in state for state in states):
            return cls(decay, None, decoupled=False)
        known = [adam_scale(state.get("max_exp_avg_sq", state["exp_avg_sq"]), state["step"], float(group_of[p]["betas"][1]), float(group_of[p]["eps"]))
                 if "exp_avg_sq" in state else None for p, state in zip(parameters, states)]  # fmt: skip
        mean = Vector(tuple(scale for scale in known if scale is not None)).mean()
        pieces = tuple(torch.full_like(p, mean, requires_grad=False) if scale is None else scale for p, scale in zip(parameters, known))
        decoupled = isinstance(optimizer, torch.optim.AdamW) or bool(optimizer.defaults.get("decoupled_weight_decay"))
        return cls(decay, Vector(pieces), decoupled)


def adam_scale(second_moment: Tensor, step: Tensor | float, beta: float, epsilon: float) -> Tensor:
    """sqrt of the bias-corrected second moment, plus epsilon."""
    return (second_moment / (1 - beta ** float(step))).sqrt() + epsilon
