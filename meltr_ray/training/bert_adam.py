"""BertAdam, the optimiser of w in the published code, and its learning-rate schedules.

Legend: g gradient, m and v moments, w weights. Source: modules/optimization.py of github.com/mlvlab/MELTR, univl/, which goes
back to BERT's own (github.com/google-research/bert, optimization.py).
"""

from __future__ import annotations

import math
from typing import Any, Callable, Iterable, Optional

import torch
from torch import Tensor


class BertAdam(torch.optim.Optimizer):
    """Adam without correction of the moments' bias, weight decay beside the update:

        m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  w = w - lr (m / (sqrt(v) + eps) + weight_decay w)

    Without the correction the first update is (1 - b1) / sqrt(1 - b2) = 3.2 times as long as Adam's. A parameter without a
    gradient keeps its value and its moments. State and groups have the keys of `torch.optim.AdamW`; the rule makes no use of
    `step`, which is counted for whoever reads it. Differs from the published class in that it knows no schedule: set
    `group["lr"]` before each step (`learning_rate_factor`).

    Args:
        clip: largest norm of the gradient of each parameter alone (published: 1), where a clip of the whole gradient is up to
            the caller; 0: none. Published runs clip the whole gradient to 1 before this, which leaves nothing for it to do.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
                 weight_decay: float = 0.01, clip: float = 0.0):  # fmt: skip
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, clip=clip))

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], Tensor]] = None) -> Optional[Tensor]:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        gradients = _clipped([p.grad for p in parameters], group["clip"])
        m, v = ([self.state[p][key] for p in parameters] for key in ("exp_avg", "exp_avg_sq"))
        (b1, b2), rate = group["betas"], group["lr"]
        torch._foreach_add_([self.state[p]["step"] for p in parameters], 1)
        torch._foreach_lerp_(m, gradients, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, gradients, gradients, 1 - b2)
        scale = torch._foreach_sqrt(v)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, m, scale, -rate)


def _clipped(gradients: list[Tensor], largest: float) -> list[Tensor]:
    """Each gradient, scaled down to the norm `largest`; 0: as they are."""
    if not largest:
        return gradients
    return [g * (largest / (torch.linalg.vector_norm(g) + 1e-6)).clamp(max=1) for g in gradients]


def _rising(x: float, warmup: float, after: float) -> float:
    return x / warmup if x < warmup else after


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "warmup_linear": lambda x, warmup: _rising(x, warmup, (1 - x) / (1 - warmup)),
    "warmup_cosine": lambda x, warmup: _rising(x, warmup, (1 + math.cos(math.pi * x)) / 2),
    "warmup_constant": lambda x, warmup: _rising(x, warmup, 1.0),
    "warmup_linear_down": lambda x, warmup: 1 - x,
}
"""Published name -> factor of the learning rate at x in [0, 1), of which the share `warmup`, in [0, 1), rises from 0."""


def learning_rate_factor(schedule: str, step: int, period: int, warmup: float) -> float:
    """Factor of the learning rate at optimiser step `step`, counted from 0, as the published BertAdam takes it.

    Its x is n / (period + 1) for the n-th step of a period, n = 1 .. period: no step of a first period has rate 0. One more
    step ends the period, at x = 0, and the next period starts: published runs have a period of 4 epochs (`scheduler_epoch`).
    """
    return SCHEDULES[schedule]((step + 1) % (period + 1) / (period + 1), warmup)
