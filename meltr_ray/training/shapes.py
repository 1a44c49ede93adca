"""Modules of names and shapes alone, without numbers."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWS = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_, nn.init.kaiming_uniform_}
"""Torch asks the mode about these; what else draws calls one of them."""


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Modules made inside are on the `meta` device, and nothing is drawn: torch imports its compiler for that (4 CPU-seconds)."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        return (kwargs["tensor"] if "tensor" in kwargs else args[0]) if func in DRAWS else func(*args, **kwargs)
