"""State of optimisers and of torchjd's objects as tensors by name, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def of_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Its moments and counts, `<prefix>/<number of the parameter>/<name>`."""
    return {f"{prefix}/{index}/{key}": value for index, entry in optimizer.state_dict()["state"].items() for key, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, prefix: str, state: dict[str, Tensor]) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(prefix, state).items():
        index, key = name.split("/")
        entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def of_attributes(holder: Any, names: Sequence[str], prefix: str) -> dict[str, Tensor]:
    """Tensors, whole numbers and lists of tensors that `holder` has under `names`; what is None is left out."""
    found: dict[str, Tensor] = {}
    for name in names:
        value = getattr(holder, name)
        if isinstance(value, list):
            found |= {f"{prefix}/{name}/{index}": each for index, each in enumerate(value)}
        elif value is not None:
            found[f"{prefix}/{name}"] = torch.as_tensor(value)
    return found


def load_attributes(holder: Any, names: Sequence[str], prefix: str, state: dict[str, Tensor]) -> None:
    known = _under(prefix, state)
    for name in names:
        now = getattr(holder, name)
        if isinstance(now, list):
            listed = _under(name, known)
            setattr(holder, name, [listed[str(index)] for index in range(len(listed))])
        else:
            value = known.get(name)
            setattr(holder, name, int(value) if isinstance(now, int) and value is not None else value)


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in state.items() if name.startswith(f"{prefix}/")}
