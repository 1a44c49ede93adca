"""A sweep's trials on Ray: run with Tune, skip what is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from ray import tune
from ray.tune.search import Searcher

from meltr_ray.cluster.budget import Budget
from meltr_ray.cluster.placement import at_once, of_trial
from meltr_ray.cluster.progress import Progress
from meltr_ray.cluster.trial import trainable
from meltr_ray.config import Config
from meltr_ray.config import file as config_file
from meltr_ray.results import table as results
from meltr_ray.storage.stop import Asked
from meltr_ray.storage.writers import Starts
from tune_spaces.arms import Trial

MACHINES_LEFT = 100
"""How often a trial may start again because its machine leaves; Tune would count that as failures, so `trainable` counts those itself."""


class InOrder(Searcher):
    """Tune's source of trials: those that are waiting, in their order, until one doesn't fit the budget or the sweep is stopped."""

    def __init__(self, waiting: list[tuple[dict[str, Any], float]], budget: Budget, stopped: Callable[[], bool]):
        super().__init__()
        self.waiting, self.budget, self.stopped = waiting, budget, stopped
        self.running: dict[str, Path] = {}
        """Tune's name of a trial -> its folder."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if not self.waiting or self.stopped() or not self.budget.start(Path(self.waiting[0][0]["folder"]), self.waiting[0][1]):
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
        Starts.forget(folder / "trials" / trial.name)
    specifications = [{"name": t.name, "folder": str(folder / "trials" / t.name), "arm": t.arm, "phase": t.phase, "test": t.test,
                       "stop": str(folder), "max_failures": t.config.train.max_failures, "steps": t.config.train.steps}
                      for t in waiting]  # fmt: skip
    source = InOrder(list(zip(specifications, map(cost, waiting))), budget or Budget(), Asked(folder))
    tuner = tune.Tuner(
        tune.with_resources(trainable, of_trial(config)),
        # A function trainable keeps its process for the next trial: that saves its imports.
        tune_config=tune.TuneConfig(
            search_alg=source, num_samples=len(waiting), max_concurrent_trials=at_once(config), reuse_actors=True
        ),  # fmt: skip
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder / "ray"),
            callbacks=[progress] if progress else [],
            failure_config=tune.FailureConfig(max_failures=config.train.max_failures + MACHINES_LEFT),
            verbose=0,
        ),
    )
    tuner.fit()
