"""What DeepSpeed trains: a workload's module, its named losses as one vector in the order of the loss set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from meltr_ray.errors import ConfigError
from meltr_ray.workload import CONSTANT, SHUFFLED, Workload

PREFIX = "of."
"""In front of the names of weights, as this module has them; state on disk is without it."""


class LossVector(nn.Module):
    """forward(batch, names=None) -> losses (T,), of `names` or of the loss set; per example (T B,).

    Adds the planted controls that the module doesn't compute itself.

    Args:
        module: forward(batch, names) -> {name: scalar}.
        workload: whose losses they are; its loss set is known.
    """

    def __init__(self, module: nn.Module, workload: Workload):
        super().__init__()
        self.of = module
        self.loss_set, self.primary = tuple(workload.loss_set), workload.primary
        self.own, self.per_example = frozenset(workload.losses), workload.per_example
        self.source = workload.source

    def forward(self, batch: Any, names: tuple[str, ...] | None = None) -> Tensor:
        names = self.loss_set if names is None else names
        batch, permuted = batch if isinstance(batch, WithControl) else (batch, None)
        asked = tuple(name for name in names if name in self.own)
        found = self.named(batch, asked) if asked else {}
        if SHUFFLED in names and SHUFFLED not in self.own:
            found[SHUFFLED] = self.named(permuted, (self.primary,))[self.primary]
        if CONSTANT in names and CONSTANT not in self.own:
            like = next(iter(found.values()), next(self.of.parameters()))
            found[CONSTANT] = torch.ones((), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
        return (torch.cat if self.per_example else torch.stack)([found[name] for name in names])

    def named(self, batch: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The module's own losses, checked.

        Raises:
            ConfigError: one is missing, no tensor, or of another shape than declared.
        """
        found = self.of(batch, names)
        if not isinstance(found, Mapping):
            raise ConfigError(f"workload={self.source}: forward gave a {type(found).__name__}; return a dictionary, loss name -> scalar")
        lacking = [name for name in names if name not in found]
        if lacking:
            raise ConfigError(f"losses.set={lacking[0]}: the module returned {', '.join(map(str, found)) or 'nothing'} when asked for "
                              f"{', '.join(names)}; return every loss that it is asked for, by its declared name")  # fmt: skip
        for name in names:
            if not isinstance(found[name], Tensor):
                raise ConfigError(f"losses.set={name}: is a {type(found[name]).__name__}; return a tensor")
            shape, wanted = tuple(found[name].shape), 1 if self.per_example else 0
            if found[name].dim() != wanted:
                raise ConfigError(
                    f"losses.set={name}: has the shape {shape}; return {'a number for each example, (B,)' if wanted else 'a scalar'}"
                )
        return {name: found[name] for name in names}


class WithControl(tuple):
    """(batch, the same with targets of other examples): what the planted control `shuffled` is computed of."""


def named_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by their names in the workload's own module."""
    return ((name.removeprefix(PREFIX), p) for name, p in model.named_parameters())
