"""What DeepSpeed keeps of an engine that has ended: its process trains more models, and each would stay in memory."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def let_go(engine: DeepSpeedEngine) -> None:
    """Of the model of an engine that is used no more. Python's garbage collector, run twice, then frees it: the engine has a finaliser."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    engine.destroy()  # hooks, which hold the model in C++, where no garbage collector looks
    parameter_offload.FWD_MODULE_STACK.clear()  # at stage 3, as is the cache of a method, by the object and modules that it was called with
    cached = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(cached).nonlocals["func"].cache_clear()
