"""Ray Train's trainer as a trial uses it: no new start after an error that is certain, and no process for what isn't there."""

from __future__ import annotations

from typing import Any, Callable

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.failure_handling import FailurePolicy

from meltr_ray.cluster.failures import UnlessCertain
from meltr_ray.cluster.local import OverLoopback
from meltr_ray.cluster.placement import of_worker
from meltr_ray.config import Config
from meltr_ray.config.run import LOCAL


class Trainer(TorchTrainer):
    """Calls `worker` with `given` on each of `train.num_workers` ranks.

    Args:
        name: of the folder in `folder` in which Ray Train keeps its own records.
    """

    def __init__(self, config: Config, worker: Callable[[dict[str, Any]], Any], given: dict[str, Any], folder: str, name: str = "ray"):
        super().__init__(
            worker,
            train_loop_config=given,
            torch_config=(OverLoopback if config.cluster == LOCAL else TorchConfig)(backend="nccl" if config.train.use_gpu else "gloo"),
            scaling_config=scaling_of(config),
            run_config=RunConfig(name=name, storage_path=folder, failure_config=FailureConfig(max_failures=config.train.max_failures)),
        )

    def _register_sigint_handler(self, controller: Any) -> None:
        """The command has one: Ray's would end the run without a checkpoint."""

    def _initialize_and_run_controller(self, failure_policy: FailurePolicy, **parts: Any) -> Any:
        """Ray has no setting that says after which errors not to start again."""
        return super()._initialize_and_run_controller(failure_policy=UnlessCertain(failure_policy), **parts)

    def _create_default_callbacks(self) -> list[Any]:
        """Without those that start a process for Ray's data sets, which aren't there, and one for what a killed trial holds (freed.py)."""
        left_out = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, left_out)]


def scaling_of(config: Config) -> ScalingConfig:
    """How many workers a trial has, what each takes of the cluster, and where they may be."""
    return ScalingConfig(
        num_workers=config.train.num_workers,
        use_gpu=config.train.use_gpu,
        resources_per_worker=of_worker(config),
        placement_strategy=config.train.placement,
    )
