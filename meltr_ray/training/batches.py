"""Which clips make up which batch: pure functions of seed, index and rank, so the data position is one integer.

Nothing has to be saved to go on at step n, and every run with the same seed sees the same clips, captions and masks in
the same order, with or without meta steps: that is what pairs two configurations.
"""

from __future__ import annotations

from typing import Any, Callable, Protocol

import numpy as np

from meltr_ray.config import ConfigError
from meltr_ray.video.clips.clip import Clip

RECENT = 10
"""Training batches that `aid.meta_batch=recent` draws from, as published."""
Key = tuple[str, int]
"""Names a batch: `train` or `held_out`, and its number there."""


class Clips(Protocol):
    """A `ClipStore`, or those `Examples` of it that a task uses; pickled for worker processes."""

    split: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Clip: ...


class Batches:
    """Micro-batch number i of an endless, reshuffled pass over a split.

    Args:
        clips: what batches are made of.
        make: (clips, seed) -> batch; all randomness of captions and masks comes from `seed`.
        batch_size: clips a micro-batch on one rank; ranks take disjoint parts of one permutation.
        seed: seed of the order and of the masks.
    """

    def __init__(self, clips: Clips, make: Callable[[list[Clip], int], Any], batch_size: int, seed: int,
                 rank: int = 0, world_size: int = 1):  # fmt: skip
        self.clips, self.make, self.batch_size, self.seed = clips, make, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.per_epoch = len(clips) // (batch_size * world_size)
        if self.per_epoch == 0:
            raise ConfigError(f"train.batch_size={batch_size}: {world_size} worker(s) need {batch_size * world_size} clips and the "
                              f"{clips.split} split has {len(clips)}; lower it")  # fmt: skip

    def __getitem__(self, index: int) -> Any:
        epoch, within = divmod(index, self.per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.clips))
        start = (within * self.world_size + self.rank) * self.batch_size
        chosen = [self.clips[int(i)] for i in order[start : start + self.batch_size]]
        return self.make(chosen, seed=_mix(self.seed, index, self.rank))


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

    def keys(self, step: int) -> list[Key]:
        """Which batches those are."""
        if self.kind == "held_out":
            return [("held_out", step * self.count + j) for j in range(self.count)]
        first = step * self.micro_batches
        if self.kind == "next":
            return [("train", first + self.micro_batches + j) for j in range(self.count)]
        back = [np.random.default_rng([self.train.seed, first, 1 + j]).integers(1, RECENT + 1) for j in range(self.count)]
        return [("train", max(0, first - int(b))) for b in back]


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])
