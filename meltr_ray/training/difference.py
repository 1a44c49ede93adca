"""Where two nested values differ: tensors, arrays, lists, dictionaries, dataclasses, plain values."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def copied(x: Any) -> Any:
    """A deep copy, to compare with later; the value itself where it holds what can't be copied."""
    try:
        return copy.deepcopy(x)
    except Exception:  # whatever the classes of a user's values raise
        return x


def difference(a: Any, b: Any, place: str = "", form: bool = False) -> str | None:
    """Where two nested values differ, such as `.x[0]`; None where they don't. `form`: in types and keys alone."""
    if type(a) is not type(b):
        return place or "its type"
    if form and not isinstance(a, (Mapping, list, tuple)) and not dataclasses.is_dataclass(a):
        return None
    if isinstance(a, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and torch.equal(torch.nan_to_num(a) if a.is_floating_point() else a,
                                                                         torch.nan_to_num(b) if b.is_floating_point() else b)  # fmt: skip
        return None if same else place or "a tensor"
    if isinstance(a, np.ndarray):
        return None if np.array_equal(a, b) else place or "an array"
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(a, Mapping):  # a BatchFeature of transformers, too
        if a.keys() != b.keys():
            return place or "its keys"
        pairs = [(f"{place}[{key!r}]", a[key], b[key]) for key in a]
    elif isinstance(a, (list, tuple)):
        if len(a) != len(b) and not form:
            return place or "its length"
        pairs = [(f"{place}[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b))]
    elif dataclasses.is_dataclass(a):
        pairs = [(f"{place}.{item.name}", getattr(a, item.name), getattr(b, item.name)) for item in dataclasses.fields(a)]
    elif isinstance(a, (int, float, str, bool, type(None))):
        return None if a == b or (a != a and b != b) else place or "a value"
    return next((found for name, x, y in pairs if (found := difference(x, y, name, form)) is not None), None)
