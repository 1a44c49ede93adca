"""Uncertainty weighting with its optimum in closed form (Kirchdorfer et al., 2024, arXiv 2408.07985)."""

from __future__ import annotations

from typing import Any, ClassVar, Sequence

import torch
from torch import Tensor

from meltr_ray.combining.way import Way, check_positive
from meltr_ray.workload import Workload


class SoftOptimal(Way):
    """a = softmax(1 / (l tau)): the weights at which uncertainty weighting would rest, made softer by a temperature tau. No state."""

    learns: ClassVar[bool] = False
    averages: ClassVar[bool] = True
    positive: ClassVar[bool] = True
    temperature: ClassVar[float] = 1.0

    @classmethod
    def of(cls, config: Any, workload: Workload) -> SoftOptimal:
        return cls(config.combiner.temperature, config.losses.set)

    def __init__(self, temperature: float, names: Sequence[str]):
        self.tau, self.names = temperature, list(names)

    def slopes(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        check_positive(losses, self.names)
        a = torch.softmax(1 / (losses.detach() * self.tau), dim=0)
        return a @ losses.detach(), a
