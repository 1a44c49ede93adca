"""What a run starts from, as checksums: processes that have to start alike are held against each other."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from meltr_ray.errors import ConfigError
from meltr_ray.training.batches import Batches
from meltr_ray.workload import Workload

WHAT = {
    "batch": "examples('train') or batch() give",
    "validation": "examples('validation') gives",
    "weights": "module() gives",
}
"""What is compared -> what gave it."""


MEND = "let nothing hang on the process, such as the order of a set, hash() of a text or the clock"
"""What to do where the same seed gives something else in another process."""


class Ranks(Protocol):
    """Of an engine: what the other ranks have."""

    rank: int
    device: torch.device

    def gather(self, own: Tensor) -> list[Tensor]: ...


def origin(batches: Batches, validation: Sequence[Any]) -> dict[str, int]:
    """Checksums of what every process of a run has to find alike: the first batch of rank 0, and a validation example."""
    return {"batch": checksum(batches.of_rank(0)[0]), "validation": checksum(validation[0])}


def check_alike(workload: Workload, own: dict[str, int], ranks: Ranks, before: dict[str, int] | None = None) -> None:
    """Hold this process against the other ranks and, by its data, against the process that wrote a checkpoint (`before`).

    Raises:
        ConfigError: what hangs on the process.
    """
    everyone = ranks.gather(torch.tensor(list(own.values()), device=ranks.device))
    for number, name in enumerate(own):
        alike = all(int(other[number]) == int(everyone[0][number]) for other in everyone)
        again = name == "weights" or before is None or before.get(name, own[name]) == own[name]
        if not (alike and again):
            where = "another when the run goes on" if alike else "another on each worker"
            raise ConfigError(f"workload={workload.source}: {WHAT[name]} {where}, with the same seed; {MEND}")


def check_as_known(workload: Workload, batch: Any, known: int | None) -> None:
    """Raises ConfigError: a process that makes batches ahead makes another than the training process, whose checksum is `known`."""
    if known is not None and checksum(batch) != known:
        raise ConfigError(
            f"workload={workload.source}: {WHAT['batch']} another in a process of train.loader_workers, with the same seed; {MEND}"
        )


def checksum(x: Any) -> int:
    """63 bits of any nesting of tensors, arrays, lists, dictionaries, dataclasses and plain values; other objects count by their type."""
    digest = hashlib.blake2b(digest_size=8)
    _add(digest, x)
    return int.from_bytes(digest.digest(), "big") >> 1


def _add(digest: Any, x: Any) -> None:
    digest.update(type(x).__name__.encode())
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    if isinstance(x, (np.ndarray, np.generic)) and x.dtype != object:
        digest.update(f"{x.dtype}{x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    elif isinstance(x, np.ndarray):
        _add(digest, x.tolist())
    elif isinstance(x, Mapping):
        _add(digest, list(x.items()))
    elif isinstance(x, (list, tuple)):
        for each in x:
            _add(digest, each)
    elif dataclasses.is_dataclass(x) and not isinstance(x, type):
        _add(digest, [getattr(x, item.name) for item in dataclasses.fields(x)])
    elif isinstance(x, (int, float, str, bytes, bool, type(None))):
        digest.update(repr(x).encode())
