"""Ray Train's trainer as a trial uses it: fewer processes under Tune, and no new start after an error that is certain."""

from __future__ import annotations

import asyncio
from typing import Any

import ray.tune
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailurePolicy

from meltr_ray.cluster.failures import UnlessCertain
from meltr_ray.cluster.local import OverLoopback
from meltr_ray.cluster.placement import of_worker
from meltr_ray.config import Config
from meltr_ray.config.run import LOCAL


class Trainer(TorchTrainer):
    """With Ray Train's controller in a process of its own, as it comes."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """The command has one: Ray's would end the run without a checkpoint."""

    def _initialize_and_run_controller(self, failure_policy: FailurePolicy, **parts: Any) -> Any:
        """Ray has no setting that says after which errors not to start again."""
        return self._run_controller(failure_policy=UnlessCertain(failure_policy), **parts)

    def _run_controller(self, **parts: Any) -> Any:
        return super()._initialize_and_run_controller(**parts)

    def _create_default_callbacks(self) -> list[Any]:
        """Without that for Ray's data sets, which starts a process for them where there are none, as here."""
        return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]


class InTrial(Trainer):
    """With the controller in the trial's own process, which does nothing else and is kept for the next trial.

    A controller of its own, and the actor that passes its rows to Tune, would be two more processes for each trial, which import torch and Ray.
    """

    def _run_controller(self, **parts: Any) -> Any:
        controller = TrainController(**parts)
        asyncio.run(controller.run())
        return controller.get_result()


class ToTune(UserCallback):
    """Rank 0's rows, to Tune."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        ray.tune.report(metrics[0])


def trainer_of(config: Config, worker: Any, trial: dict[str, Any], in_tune: bool) -> TorchTrainer:
    """Calls `worker` with `trial` on each of `train.num_workers` ranks."""
    return (InTrial if in_tune else Trainer)(
        worker,
        train_loop_config=trial,
        torch_config=(OverLoopback if config.cluster == LOCAL else TorchConfig)(backend="nccl" if config.train.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.train.num_workers,
            use_gpu=config.train.use_gpu,
            resources_per_worker=of_worker(config),
            placement_strategy=config.train.placement,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=trial["folder"],
            failure_config=FailureConfig(max_failures=config.train.max_failures),
            callbacks=[ToTune()] if in_tune else [],
        ),
    )
