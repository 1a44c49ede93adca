"""Calls into a workload that must leave the seed to the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from meltr_ray.config.user_code import called
from meltr_ray.errors import check
from meltr_ray.workload import Workload

T = TypeVar("T")
SEED = 20230613
"""Torch's, one that a workload is unlikely to set itself."""


def seeded_by_the_run(workload: Workload, member: str, function: Callable[[], T]) -> T:
    """`function()`, which leaves the seed of torch's generator as it is."""
    before = torch.initial_seed()
    found = called(workload, member, function)
    check(
        torch.initial_seed() == before,
        "workload",
        workload.source,
        f"{member} sets the seed of torch's generator, so every seed of a sweep would draw the same; leave the seed to the run",
    )
    return found
