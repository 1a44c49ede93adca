"""Weights that stay between two numbers, such as the temperature of a contrastive loss: put back there after each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from meltr_ray.training.loss_vector import named_weights

Bounded = list[tuple[nn.Parameter, float, float]]


def bounded_weights(model: nn.Module, within: Mapping[str, tuple[float, float]]) -> Bounded:
    """(weight, least, greatest) of those that train; LoRA leaves the others as they are.

    Args:
        within: name in the workload's module -> bounds.
    """
    return [(p, *within[name]) for name, p in named_weights(model) if name in within and p.requires_grad]


@torch.no_grad()
def keep_within(bounded: Bounded, stage: int) -> None:
    """Clamp what this rank holds of each: the weight itself, and the copy that ZeRO's optimiser steps on. No communication."""
    for p, low, high in bounded:
        for held in _held(p, stage):
            held.clamp_(low, high)


def _held(p: nn.Parameter, stage: int) -> Iterator[Tensor]:
    from deepspeed.utils import safe_get_local_fp32_param  # not before training/zero.py, which tells it what machine this is

    yield p.data  # under ZeRO 3 empty unless it is gathered
    if stage == 3:
        yield p.ds_tensor.data
        yield safe_get_local_fp32_param(p).data
    elif stage and p._hp_mapping is not None:  # a part of it is this rank's
        yield p._hp_mapping.get_hp_fragment().data
