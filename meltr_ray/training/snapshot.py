"""All that optimiser steps change, kept in memory and put back bit for bit: for a look ahead that leaves no trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from meltr_ray.hypergrad.generators import get_generators, set_generators

if TYPE_CHECKING:  # which imports this file
    from meltr_ray.training.engine import Engine

COUNTS = ("global_steps", "micro_steps", "global_samples", "skipped_steps")
"""DeepSpeed's own."""


@dataclass(frozen=True)
class Snapshot:
    """Of one rank. Copies of its weights and both moments: 12 bytes a weight under ZeRO 0, 4 + 12 / R under 1 and 2, at most 16 / R under 3."""

    tensors: list[Tensor]
    counts: list[int]
    generators: dict[str, Tensor]

    @classmethod
    def of(cls, engine: Engine) -> Snapshot:
        """Of an engine between two optimiser steps (`training/engine.py`)."""
        tensors = [t.detach().clone() for t in live_tensors(engine)]
        return cls(tensors, [getattr(engine.deepspeed, name) for name in COUNTS], get_generators(engine.device))

    def put_back(self, engine: Engine) -> None:
        """Into the engine that it was taken of."""
        for there, kept in zip(live_tensors(engine), self.tensors):
            there.data.copy_(kept)
        for name, count in zip(COUNTS, self.counts):
            setattr(engine.deepspeed, name, count)
        set_generators(self.generators, engine.device)


def live_tensors(engine: Engine) -> list[Tensor]:
    """Weights, master weights, moments, their counts and the module's buffers, as this rank holds them, each memory once."""
    engine.link_moments()
    optimizer, adam = engine.deepspeed.optimizer, engine.adam()
    if engine.stage == 0:
        weights = list(engine.w.parameters)
    elif engine.stage == 3:
        weights = [*engine.w.shards(), *optimizer.fp32_partitioned_groups_flat]
    else:
        weights = [*optimizer.bit16_groups_flat, *optimizer.single_partition_of_fp32_groups]
    moments = [value for entry in adam.state.values() for value in entry.values() if isinstance(value, Tensor)]
    seen: set[tuple[int, int]] = set()
    found = []
    for tensor in [*weights, *moments, *engine.module.buffers()]:
        memory = (tensor.data_ptr(), tensor.numel())
        if memory not in seen:
            found.append(tensor)
            seen.add(memory)
    return found
