"""A sweep's trials on Ray: run with Tune, skip what is finished."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Callable, Protocol

from ray import tune
from ray.air._internal import usage
from ray.tune.search import Searcher

from meltr_ray.cluster import rungs
from meltr_ray.cluster.budget import Budget
from meltr_ray.cluster.freed import freed_with_their_trials
from meltr_ray.cluster.left import check_left, check_settings
from meltr_ray.cluster.live import Live
from meltr_ray.cluster.lost import Lost
from meltr_ray.cluster.placement import at_once, of_trial
from meltr_ray.cluster.progress import Progress
from meltr_ray.cluster.trial import trainable
from meltr_ray.config import Config, own_file
from meltr_ray.config import file as config_file
from meltr_ray.results import table as results
from meltr_ray.storage.stop import Asked
from meltr_ray.storage.writers import Starts
from tune_spaces.arms import Trial

MACHINES_LEFT = 100
"""How often a trial may start again because its machine leaves; Tune would count that as failures, so `trainable` counts those itself."""


class Source(Protocol):
    """Where the trials of a phase come from."""

    left: int
    """Trials that it may still give."""

    def next(self) -> Trial | None:
        """None: no more."""

    def ended(self, name: str) -> None:
        """The trial of that name has ended, in whatever way."""


class InOrder:
    """Trials that are all known, in their order."""

    def __init__(self, trials: list[Trial]):
        self.trials = trials

    @property
    def left(self) -> int:
        return len(self.trials)

    def next(self) -> Trial | None:
        return self.trials.pop(0) if self.trials else None

    def ended(self, name: str) -> None:
        """Nothing hangs on it."""


class Given(Searcher):
    """Tune's face of a source: its trials, until one doesn't fit the budget or the sweep is stopped."""

    def __init__(self, source: Source, folder: Path, config: Config, cost: Callable[[Trial], float], budget: Budget):
        super().__init__()
        self.source, self.folder, self.config, self.cost, self.budget, self.stopped = source, folder, config, cost, budget, Asked(folder)
        self.shared = shared_of(folder)
        self.running: dict[str, Path] = {}
        """Tune's name of a trial -> its folder."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        trial = None if self.stopped() else self.source.next()
        if trial is None or not self.budget.start(self.folder / "trials" / trial.name, self.cost(trial)):
            return Searcher.FINISHED
        self.running[trial_id] = self.folder / "trials" / trial.name
        return {"trial": specification(trial, self.folder, self.config, self.shared)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        folder = self.running.pop(trial_id)
        self.budget.end(folder)
        self.source.ended(folder.name)

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
    check_settings(folder, trials)
    waiting = [trial for trial in trials if not results.is_final(folder / "trials" / trial.name)]
    if progress:
        progress.skip(len(trials) - len(waiting))
    run_source(InOrder(waiting), folder, config, progress, budget, cost)


def specification(trial: Trial, folder: Path, config: Config, shared: dict[str, str]) -> dict[str, Any]:
    """What a worker is told of a trial of the sweep `config`, whose trials have `shared`; its settings are written where it will read them,
    and what it goes on from is checked."""
    place = folder / "trials" / trial.name
    check_left(place, trial.config)
    config_file.write(place / "config.yaml", trial.config)
    Starts.forget(place)
    train = trial.config.train
    same = repr(trial.config.workload) == repr(config.workload)  # an arm may be on other data
    return {"name": trial.name, "folder": str(place), "arm": trial.arm, "phase": trial.phase, "test": trial.test, "stop": str(folder),
            "max_failures": train.max_failures, "steps": train.steps, "rungs": rungs.specified(trial),
            "shared": shared if same else {}}  # fmt: skip


def shared_of(folder: Path) -> dict[str, str]:
    """What all trials of a sweep have to find alike, as its first found it."""
    return own_file.facts(folder).get("shared", {})


def run_source(source: Source, folder: Path, config: Config, progress: Progress | None = None, budget: Budget | None = None,
               cost: Callable[[Trial], float] = lambda trial: 0.0) -> None:  # fmt: skip
    """Run what a source gives, as `run_trials` does."""
    if not source.left:
        return
    tuner = tune.Tuner(
        tune.with_resources(trainable, of_trial(config)),
        # A function trainable keeps its process for the next trial: that saves its imports.
        tune_config=tune.TuneConfig(
            search_alg=Given(source, folder, config, cost, budget or Budget()),
            num_samples=source.left,
            max_concurrent_trials=at_once(config),
            reuse_actors=True,
        ),  # fmt: skip
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder / "ray"),
            callbacks=[Lost(), progress, Live(folder)] if progress else [Lost()],
            failure_config=tune.FailureConfig(max_failures=config.train.max_failures + MACHINES_LEFT),
            verbose=0,
        ),
    )
    with freed_with_their_trials() if config.train.num_workers else nullcontext(), callbacks_uncounted():
        tuner.fit()


@contextmanager
def callbacks_uncounted() -> Iterator[None]:
    """Ray counts callbacks for its statistics, which are off here, and imports every tracker that is installed for that: a second."""
    count, usage.tag_callbacks = usage.tag_callbacks, lambda callbacks: False
    try:
        yield
    finally:
        usage.tag_callbacks = count
