"""ZeRO 3 gathers weights by module: where are they used?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from meltr_ray.errors import ConfigError
from meltr_ray.training.loss_vector import PREFIX
from meltr_ray.training.tensors import tensors

FACTS = ("device", "dtype", "requires_grad", "is_cuda", "layout")
"""Attributes of a weight that sharding leaves alone: a model asks the first of its weights where it lies."""


@contextmanager
def used_by_their_owners(model: nn.Module) -> Iterator[None]:
    """ZeRO 3 gathers a parameter for the forward of the module that owns it: refuse one that is used elsewhere."""
    owners: dict[int, tuple[str, list[nn.Module]]] = {}
    for name, owner in model.named_modules():
        for own, p in owner.named_parameters(recurse=False):
            owners.setdefault(id(p), (f"{name}.{own}".removeprefix(PREFIX), []))[1].append(owner)
    active: list[nn.Module] = []

    def within_torch(whose: list[nn.Module]) -> bool:
        """Whether a layer of torch's own that holds the owner runs: its attention takes weights of its projection, and DeepSpeed sees it."""
        return any(type(at).__module__.startswith("torch.nn.") and any(owner in set(at.modules()) for owner in whose) for at in active)

    handles = [m.register_forward_pre_hook(lambda m, _: active.append(m)) for m in model.modules()]
    handles += [m.register_forward_hook(lambda m, _, __: active.pop() and None) for m in model.modules()]

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            fact = getattr(getattr(function, "__self__", None), "__name__", "") in FACTS
            for _, p in [] if fact else tensors([args, kwargs or {}]):
                name, whose = owners.get(id(p), ("", []))
                if whose and not any(owner is at for owner in whose for at in active) and not within_torch(whose):
                    raise ConfigError(f"engine.zero_stage=3: {name} is used outside the forward of the module that owns it, "
                                      f"{type(whose[0]).__name__}; use it there, or take engine.zero_stage=2")  # fmt: skip
            return function(*args, **(kwargs or {}))

    try:
        with torch.no_grad(), Watch():
            yield
    finally:
        for handle in handles:
            handle.remove()
