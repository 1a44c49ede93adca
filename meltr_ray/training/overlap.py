"""Examples of another split that stand in train, too: what is measured on them says little of new data."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from meltr_ray.config.user_code import called
from meltr_ray.training.origin import checksum
from meltr_ray.training.splits import examples
from meltr_ray.workload import Workload

MEASURED = ("meta", "validation", "test")
TRIED = 64
"""Examples of a split."""
SECONDS = 0.5
"""For how long train examples are read."""
MANY = 0.05
"""Share of those tried from which on it is said: few may be alike by chance."""
LEAST_NUMBERS = 8
"""In an example, or it counts as a whole: short ones are often alike."""


def overlap(workload: Workload) -> list[str]:
    """A sentence for each split of which examples stand in train, too; by their arrays, where they have any."""
    return list(_overlap(_Known(repr(workload), workload)))


@dataclasses.dataclass(frozen=True)
class _Known:
    """A workload by its settings: read once in a process."""

    settings: str
    workload: Workload = dataclasses.field(compare=False, hash=False)


@cache
def _overlap(known: _Known) -> tuple[str, ...]:
    workload, said = known.workload, []
    train, started, seen = examples(workload, "train"), time.perf_counter(), set()
    for number in range(len(train)):
        seen.add(content(called(workload, "examples", lambda number=number: train[number])))
        if time.perf_counter() - started > SECONDS:
            break
    for split in MEASURED:
        found = examples(workload, split)
        numbers = np.unique(np.linspace(0, len(found) - 1, min(TRIED, len(found))).round().astype(int)).tolist()
        alike = sum(called(workload, "examples", lambda number=number: content(found[number])) in seen for number in numbers)
        if alike > MANY * len(numbers):
            said.append(
                f"Of {len(numbers)} {split} examples tried, {alike} stand in train, too: what is measured on {split} says little of new data."
            )
    return tuple(said)


def content(example: Any) -> int:
    """Checksum of an example's arrays and tensors, without its names; of all of it where they are few numbers."""
    found = list(arrays(example))
    return checksum(found if sum(x.size if isinstance(x, np.ndarray) else x.numel() for x in found) >= LEAST_NUMBERS else example)


def arrays(x: Any) -> Iterator[np.ndarray | Tensor]:
    """Those in any nesting of sequences, dictionaries and dataclasses."""
    if isinstance(x, (np.ndarray, Tensor)):
        yield x
    elif isinstance(x, Mapping):
        for each in x.values():
            yield from arrays(each)
    elif isinstance(x, Sequence) and not isinstance(x, (str, bytes)):
        for each in x:
            yield from arrays(each)
    elif dataclasses.is_dataclass(x) and not isinstance(x, type):
        for item in dataclasses.fields(x):
            yield from arrays(getattr(x, item.name))
