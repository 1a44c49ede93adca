"""Calls into a workload that must leave the seed to the run, and torch's settings of the process as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from meltr_ray.config.user_code import called
from meltr_ray.errors import check
from meltr_ray.workload import Workload

T = TypeVar("T")
SEED = 20230613
"""Torch's, one that a workload is unlikely to set itself."""


def seeded_by_the_run(workload: Workload, member: str, function: Callable[[], T]) -> T:
    """`function()`, which leaves the seed of torch's generator as it is, and torch's settings of the process."""
    before, settings = torch.initial_seed(), of_the_process()
    try:
        found = called(workload, member, function)
        changed = [name for name, value in of_the_process().items() if value != settings[name]]
    finally:
        torch.set_default_dtype(settings["default type"])
        torch.set_grad_enabled(settings["gradients"])
    check(not changed, "workload", workload.source, f"{member} changes torch's {' and '.join(changed)} for the whole process; "
          "put that back, or give it to each tensor and module")  # fmt: skip
    check(
        torch.initial_seed() == before,
        "workload",
        workload.source,
        f"{member} sets the seed of torch's generator, so every seed of a sweep would draw the same; leave the seed to the run",
    )
    return found


def of_the_process() -> dict[str, Any]:
    """What torch keeps for the whole process, and a run counts on."""
    return {
        "default type": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }
