"""What the trials of a sweep share: they are compared, so a resumed sweep, and each trial, has to find the data of the first."""

from __future__ import annotations

import torch

from meltr_ray.config.user_code import called
from meltr_ray.errors import ConfigError
from meltr_ray.training.origin import checksum
from meltr_ray.training.splits import SPLITS, examples
from meltr_ray.workload import Workload

SEED = 20230613


def named(workload: Workload) -> dict[str, str]:
    """What the workload says of itself: name -> checksum."""
    return {f"{name} of its {member}": text for member in ("fingerprint", "identity")
            for name, text in called(workload, member, getattr(workload, member)).items()}  # fmt: skip


def shared(workload: Workload) -> dict[str, str]:
    """That, the number of examples of each split, and the first validation example: name -> checksum."""
    found = {split: examples(workload, split) for split in SPLITS}
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        first = checksum(called(workload, "examples", lambda: found["validation"][0]))
    counts = {f"number of {split} examples": str(len(each)) for split, each in found.items()}
    return named(workload) | counts | {"first validation example": str(first)}


def check_shared(workload: Workload, known: dict[str, str], now: dict[str, str]) -> None:
    """Raises ConfigError: something isn't as the sweep's first trials had it."""
    for name, text in now.items():
        if known.get(name, text) != text:
            what = f" (it was {known[name]}, and is {text})" if name.startswith("number") else ""
            raise ConfigError(f"workload={workload.source}: the {name} isn't that of the sweep's first trials{what}, and trials are compared; "
                              "put the data back, or start another sweep")  # fmt: skip
