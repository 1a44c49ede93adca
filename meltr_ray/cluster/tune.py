"""A sweep's trials on Ray: connect, run with Tune, skip what is finished."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from meltr_ray.cluster.progress import Progress
from meltr_ray.cluster.trial import DRIVER_CPU, ray_environment, trainable
from meltr_ray.config import Config
from meltr_ray.config import file as config_file
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from tune_spaces.arms import Trial


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """A Ray cluster as `cluster` says, shut down at the end.

    Raises:
        ConfigError: the cluster can't be reached, or runs no dashboard, without which the resources of a killed nested
            trial are never set free.
    """
    os.environ.update(ray_environment())
    import ray

    address = config.cluster
    try:
        ray.init(address=address, include_dashboard=True if address == "local" else None, log_to_driver=False,
                 logging_level="ERROR", runtime_env={"env_vars": ray_environment()})  # fmt: skip
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"cluster={address}: {str(error).splitlines()[0]}; start one with ray start, or use cluster=local") from None
    try:
        if config.train.num_workers and not ray._private.worker.global_worker.node.address_info.get("webui_url"):
            raise ConfigError(f"cluster={address}: runs no dashboard, so killed trials would hold their CPUs for ever; "
                              "install ray[default] and start Ray with it")  # fmt: skip
        yield
    finally:
        ray.shutdown()


def run_trials(trials: list[Trial], folder: Path, config: Config, progress: Progress) -> None:
    """Run those of `trials` that have not ended yet; each goes on from its last checkpoint."""
    from ray import tune

    waiting = [trial for trial in trials if not results.is_final(folder / "trials" / trial.name)]
    progress.skip(len(trials) - len(waiting))
    if not waiting:
        return
    for trial in waiting:
        config_file.write(folder / "trials" / trial.name / "config.yaml", trial.config)
    specifications = [{"name": t.name, "folder": str(folder / "trials" / t.name), "arm": t.arm, "phase": t.phase, "test": t.test,
                       "steps": t.config.train.steps}
                      for t in waiting]  # fmt: skip
    tuner = tune.Tuner(
        tune.with_resources(trainable, _resources(config)),
        param_space={"trial": tune.grid_search(specifications)},
        # A function trainable keeps its process for the next trial: that saves its imports.
        tune_config=tune.TuneConfig(max_concurrent_trials=config.sweep.max_concurrent, reuse_actors=config.train.num_workers == 0),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder / "ray"),
            callbacks=[progress],
            failure_config=tune.FailureConfig(max_failures=config.train.max_failures),
            verbose=0,
        ),
    )
    tuner.fit()


def _resources(config: Config) -> dict[str, float]:
    """Of the trial's own process: all it needs, or next to nothing where Ray Train workers do the work."""
    if config.train.num_workers:
        return {"cpu": DRIVER_CPU}
    return {"cpu": config.train.threads} | ({"gpu": 1} if config.train.use_gpu else {})
