"""Which losses a model's output holds, by rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

TOTAL = "loss"
"""The sum that a model makes of its losses: one itself only where there is no other."""
ENDING = "_loss"
DICTIONARIES = ("loss_dict", "loss_info", "losses")
"""Fields whose entries are losses."""


def by_rule(outputs: Any) -> dict[str, Tensor]:
    """Losses of an output: fields that end in `_loss`, entries of `loss_dict`, `loss_info` and `losses`; else its `loss`.

    What is None or holds more than one number is no loss; a tensor of one number becomes a scalar.
    """
    found = dict(_scalars(_candidates(outputs)))
    return found or dict(_scalars((name, value) for name, value in outputs.items() if name == TOTAL))


def _candidates(outputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in outputs.items():
        if name.endswith(ENDING):
            yield name, value
        elif name in DICTIONARIES and isinstance(value, Mapping):
            yield from value.items()


def _scalars(pairs: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    return ((str(name), value.reshape(())) for name, value in pairs if isinstance(value, Tensor) and value.numel() == 1)
