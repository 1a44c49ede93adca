"""Fixed weights, the baseline of everything that learns."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, ClassVar, Sequence

import torch
from torch import Tensor, nn

from meltr_ray.combining.way import Way
from meltr_ray.errors import check
from meltr_ray.workload import Workload


class FixedWeights(nn.Module):
    """g(l) = sum_t weights_t l_t; nothing to learn."""

    weights: Tensor

    def __init__(self, weights: Sequence[float]):
        super().__init__()
        given = weights.tolist() if isinstance(weights, Tensor) else list(weights)
        check(len(given) > 0, "weights", given, "has none; give one for each loss")
        for weight in given:
            check(isinstance(weight, Real) and math.isfinite(weight), "weights", weight, "is no finite number; give one for each loss")
        self.register_buffer("weights", torch.tensor(given))

    def forward(self, losses: Tensor) -> Tensor:
        return self.weights.to(losses.dtype) @ losses


class Fixed(Way):
    """Slopes that stay as they are."""

    learns: ClassVar[bool] = False
    per_example = True
    uses: ClassVar[Sequence[str]] = ("combiner.weights",)

    @classmethod
    def of(cls, config: Any, workload: Workload) -> Fixed:
        return cls(weights_of(config.combiner.weights, config.losses.set, config.losses.primary), workload.per_example)

    def __init__(self, weights: Sequence[float], per_example: bool = False):
        self.combiner, self.by_example = FixedWeights(weights), per_example

    def to(self, device: torch.device) -> Fixed:
        self.combiner.to(device)
        return self

    def slopes(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        weights = self.combiner.weights.to(losses.dtype)
        a = weights.expand_as(losses) / len(losses) if self.by_example else weights  # per example: the mean of all
        return a @ losses, a

    def state(self) -> dict[str, Tensor]:
        return {"combiner/weights": self.combiner.weights}


def weights_of(weights: str | Sequence[float], loss_set: Sequence[str], primary: str) -> list[float]:
    """The numbers that `combiner.weights` stands for."""
    if weights == "uniform":
        return [1.0] * len(loss_set)
    if weights == "primary":
        return [float(name == primary) for name in loss_set]
    return [float(weight) for weight in weights]
