"""The tensors in a nested value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors(x: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """(place, such as `['x'][0]`, tensor) of all tensors in any nesting of lists, tuples, dictionaries and dataclasses."""
    if isinstance(x, Tensor):
        yield place, x
    elif isinstance(x, Mapping):
        for key, value in x.items():
            yield from tensors(value, f"{place}[{key!r}]")
    elif isinstance(x, (list, tuple)):
        for number, value in enumerate(x):
            yield from tensors(value, f"{place}[{number}]")
    elif dataclasses.is_dataclass(x) and not isinstance(x, type):
        for item in dataclasses.fields(x):
            yield from tensors(getattr(x, item.name), f"{place}.{item.name}")
