"""A sweep's trials on Ray: connect, run with Tune, skip what is finished."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Callable, Iterator

from ray import tune
from ray.tune.search import Searcher

from meltr_ray.cluster.budget import Budget
from meltr_ray.cluster.local import LOCAL, kept_to_this_machine
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

    address, ours = config.cluster, config.cluster == LOCAL
    try:
        with kept_to_this_machine() if ours else nullcontext():
            ray.init(address=address, include_dashboard=True if ours else None, log_to_driver=False,
                     logging_level="ERROR", runtime_env={"env_vars": ray_environment()})  # fmt: skip
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"cluster={address}: {str(error).splitlines()[0]}; start one with ray start, or use cluster=local") from None
    except Exception as error:  # as Ray says that its processes didn't start in time
        if not ours or "startup" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(f"cluster={address}: Ray doesn't start ({reason}); try again when the machine is less busy") from None
    try:
        if config.train.num_workers and not ray._private.worker.global_worker.node.address_info.get("webui_url"):
            raise ConfigError(f"cluster={address}: runs no dashboard, so killed trials would hold their CPUs for ever; "
                              "install ray[default] and start Ray with it")  # fmt: skip
        yield
    finally:
        ray.shutdown()


class InOrder(Searcher):
    """Tune's source of trials: those that are waiting, in their order, until one doesn't fit the budget."""

    def __init__(self, waiting: list[tuple[dict[str, Any], float]], budget: Budget):
        super().__init__()
        self.waiting, self.budget = waiting, budget
        self.running: dict[str, Path] = {}
        """Tune's name of a trial -> its folder."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if not self.waiting or not self.budget.start(Path(self.waiting[0][0]["folder"]), self.waiting[0][1]):
            return Searcher.FINISHED
        specification, _ = self.waiting.pop(0)
        self.running[trial_id] = Path(specification["folder"])
        return {"trial": specification}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.budget.end(self.running.pop(trial_id))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a resumed sweep asks the results table."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError


def run_trials(trials: list[Trial], folder: Path, config: Config, progress: Progress | None = None, budget: Budget | None = None,
               cost: Callable[[Trial], float] = lambda trial: 0.0) -> None:  # fmt: skip
    """Run those of `trials` that have not ended yet; each goes on from its last checkpoint.

    Args:
        cost: device-seconds that a trial should take, which `budget` is asked for before it starts.
    """
    waiting = [trial for trial in trials if not results.is_final(folder / "trials" / trial.name)]
    if progress:
        progress.skip(len(trials) - len(waiting))
    if not waiting:
        return
    for trial in waiting:
        config_file.write(folder / "trials" / trial.name / "config.yaml", trial.config)
    specifications = [{"name": t.name, "folder": str(folder / "trials" / t.name), "arm": t.arm, "phase": t.phase, "test": t.test,
                       "steps": t.config.train.steps}
                      for t in waiting]  # fmt: skip
    source = InOrder(list(zip(specifications, map(cost, waiting))), budget or Budget())
    tuner = tune.Tuner(
        tune.with_resources(trainable, _resources(config)),
        # A function trainable keeps its process for the next trial: that saves its imports.
        tune_config=tune.TuneConfig(
            search_alg=source, num_samples=len(waiting), max_concurrent_trials=config.sweep.max_concurrent, reuse_actors=True
        ),  # fmt: skip
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder / "ray"),
            callbacks=[progress] if progress else [],
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
