"""The problems' losses in torch, shared by every method built on torch."""

from __future__ import annotations

from typing import Any, Callable

import torch
import torch.nn.functional as F
from peers_problems import Arrays, Problem, quadratic_value
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
"""(w, phi) -> scalar."""


class Parameter(nn.Module):
    """A module that is nothing but one parameter: w on the inner side, phi on the outer."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self) -> Tensor:
        return self.value


def torch_losses(problem: Problem) -> tuple[Loss, Loss]:
    """L and F."""
    inner, outer = _tensors(problem.inner), _tensors(problem.outer)
    if problem.kind == "quadratic":
        return (lambda w, phi: quadratic_value(inner, w, phi)), (lambda w, phi: quadratic_value(outer, w, phi))
    strength = float(inner["strength"])

    def inner_loss(w: Tensor, phi: Tensor) -> Tensor:
        losses = F.cross_entropy(inner["features"] @ w, inner["labels"], reduction="none")
        return (torch.sigmoid(phi) * losses).mean() + 0.5 * strength * (w * w).sum()

    def outer_loss(w: Tensor, phi: Tensor) -> Tensor:
        return F.cross_entropy(outer["features"] @ w, outer["labels"])

    return inner_loss, outer_loss


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
