"""Which examples make up which batch: pure functions of seed, index and rank, so the data position is one integer.

Nothing has to be saved to go on at step n, and every run with the same seed sees the same examples, captions and masks in
the same order, with or without meta steps: that is what pairs two configurations.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from meltr_ray.combining.way import Key
from meltr_ray.config.user_code import called
from meltr_ray.errors import check
from meltr_ray.training.loss_vector import WithControl
from meltr_ray.training.splits import examples
from meltr_ray.workload import SHUFFLED, Workload

SMALLEST = 2
"""`train.batch_size` at least."""
RECENT = 10
"""Training batches that `aid.meta_batch=recent` draws from, as published."""


class Batches:
    """Micro-batch number i of an endless, reshuffled pass over a split.

    In another process the examples are made anew from the workload, so nothing of them is sent there.

    Args:
        workload: makes examples and batches; all randomness of a batch comes from the generator that it is given.
        batch_size: examples a micro-batch on one rank; ranks take disjoint parts of one permutation.
        seed: seed of the order and of the batches.
    """

    def __init__(self, workload: Workload, split: str, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        self.workload, self.split, self.batch_size, self.seed = workload, split, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.examples = examples(workload, split)
        self.per_epoch = len(self.examples) // (batch_size * world_size)
        check_enough(workload, split, len(self.examples), batch_size, world_size)
        self.with_control = SHUFFLED in workload.loss_set and SHUFFLED not in workload.losses

    def __getitem__(self, index: int) -> Any:
        epoch, within = divmod(index, self.per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
        start = (within * self.world_size + self.rank) * self.batch_size
        numbers = order[start : start + self.batch_size].tolist()
        chosen = called(self.workload, "examples", lambda: [self.examples[number] for number in numbers])
        generator = np.random.default_rng(_mix(self.seed, index, self.rank))
        batch = called(self.workload, "batch", lambda: self.workload.batch(chosen, generator))
        if not self.with_control:
            return batch
        return WithControl((batch, called(self.workload, "control", lambda: self.workload.control(batch, generator))))

    def of_rank(self, rank: int) -> Batches:
        """Those of another rank, from the same examples."""
        other = object.__new__(type(self))  # not by copy, which would make the examples anew
        vars(other).update(vars(self), rank=rank)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "examples"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.examples = examples(self.workload, self.split)


class MetaBatches:
    """The batches of the outer loss for the meta step before optimiser step `step`, as `aid.meta_batch` says.

    `recent`: training batches, each one of the last 10, with the masks it had (published); `next`: the training batches that
    come next; `held_out`: batches of the meta split, which nothing else trains on.

    Args:
        micro_batches: micro-batches an optimiser step.
        count: batches that the outer loss is the mean of.
    """

    def __init__(self, kind: str, train: Batches, held_out: Batches | None, micro_batches: int = 1, count: int = 1):
        self.kind, self.train, self.held_out = kind, train, held_out
        self.micro_batches, self.count = micro_batches, count

    def __getitem__(self, step: int) -> list[Any]:
        sources = {"train": self.train, "held_out": self.held_out}
        return [sources[source][index] for source, index in self.keys(step)]

    def trained(self, step: int) -> list[Key]:
        """The micro-batches of an optimiser step."""
        first = step * self.micro_batches
        return [("train", first + number) for number in range(self.micro_batches)]

    def ahead(self, first: int, steps: int) -> Key:
        """All micro-batches of `steps` steps, the first of which is `first`."""
        return "train", range(first * self.micro_batches, (first + steps) * self.micro_batches)

    def keys(self, step: int) -> list[Key]:
        """The meta batches before it."""
        if self.kind == "held_out":
            return [("held_out", step * self.count + j) for j in range(self.count)]
        first = step * self.micro_batches
        if self.kind == "next":
            return [("train", first + self.micro_batches + j) for j in range(self.count)]
        back = [np.random.default_rng([self.train.seed, first, 1 + j]).integers(1, RECENT + 1) for j in range(self.count)]
        return [("train", max(0, first - int(b))) for b in back]


def check_enough(workload: Workload, split: str, count: int, batch_size: int, world_size: int) -> None:
    """Raises ConfigError where `count` examples of a split can't fill a batch on every worker."""
    mend = "lower it" if count >= SMALLEST * world_size else more_of(split)
    check(
        count >= batch_size * world_size,
        "train.batch_size",
        batch_size,
        f"all workers together take {batch_size * world_size} examples at once and the {split} split has {count}; {mend}",
    )


def more_of(split: str) -> str:
    """The mend where no batch is small enough: two examples a worker are the least."""
    other = ", or let training do without it by aid.meta_batch=next" if split == "meta" else ""
    return f"no batch is that small, so give the split more examples (video: prepare the data with a larger data.held_out), or take fewer workers{other}"


def to_device(x: Any, device: torch.device) -> Any:
    """Any nesting of tuples, lists, dictionaries and dataclasses of tensors, on `device`; an object with `to` goes by that."""
    if isinstance(x, torch.Tensor):
        return x.to(device)
    if isinstance(x, (WithControl, list)):
        return type(x)(to_device(each, device) for each in x)
    if isinstance(x, tuple):
        moved = [to_device(each, device) for each in x]
        return type(x)(*moved) if hasattr(x, "_fields") else tuple(moved)
    if isinstance(x, dict):
        return type(x)((key, to_device(value, device)) for key, value in x.items())
    if hasattr(x, "to"):
        return x.to(device)
    if dataclasses.is_dataclass(x):
        return dataclasses.replace(
            x, **{item.name: to_device(getattr(x, item.name), device) for item in dataclasses.fields(x) if item.init}
        )
    return x


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])
