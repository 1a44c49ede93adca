"""Ray Train's trainer as a trial uses it: no new start after an error that is certain, and no process for what isn't there."""

from __future__ import annotations

from typing import Any, Callable

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailurePolicy

from meltr_ray.cluster.failures import UnlessCertain
from meltr_ray.cluster.freed import OwnedWorkers
from meltr_ray.cluster.local import OverLoopback
from meltr_ray.cluster.placement import of_worker
from meltr_ray.config import Config
from meltr_ray.config.run import LOCAL


class Controller(TrainController):
    """Ray's own, but for what becomes of workers that don't start, or whose trial is killed."""

    worker_group_cls = OwnedWorkers


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

    def _initialize_and_run_controller(self, failure_policy: FailurePolicy, **parts: Any) -> Any:
        """Ray has no setting that says after which errors not to start again, and its handler of SIGINT would end the run without a checkpoint."""
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        actor = ray.remote(num_cpus=0, label_selector=here, runtime_env={"env_vars": get_env_vars_to_propagate()})(Controller)
        controller = actor.remote(failure_policy=UnlessCertain(failure_policy), **parts)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())

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
