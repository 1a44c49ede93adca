"""What trials of a plan cost: a few of them, cut short, run as the others will."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

from meltr_ray.cluster.connection import connected
from meltr_ray.cluster.placement import check_holds
from meltr_ray.cluster.tune import run_trials
from meltr_ray.combining.named import WAYS
from meltr_ray.config import Config
from meltr_ray.errors import check
from meltr_ray.results import table as results
from tune_spaces.arms import Trial
from tune_spaces.cost import Timed, Timing, to_time

AGAIN = "-again"
LEAST_STEPS = 5
"""Between two evaluations of a trial that is timed."""
EVALUATIONS = 3
"""Of such a trial: a window less. Two trials and two windows each, so that a moment's other work doesn't count."""


def timed(trials: list[Trial], folder: Path, config: Config) -> Timed:
    """Run short trials of the plan `trials` in `folder`, which is used for nothing else.

    Raises:
        ConfigError: the cluster can't be reached, or a short trial ended badly: the plan would too.
    """
    chosen = to_time(trials)
    short = [dataclasses.replace(trial, name=trial.arm, config=cut(trial.config), phase="single", test=False) for trial in chosen]
    again = [dataclasses.replace(trial, name=f"{trial.name}{AGAIN}") for trial in short]  # most trials find a process that has run one
    with connected(config):
        check_holds(config)
        run_trials([*short, *again], folder, config)
    found = {}
    for trial in chosen:
        timings = [results.read_trial(folder / "trials" / name) for name in (trial.arm, f"{trial.arm}{AGAIN}")]
        for rows in timings:
            check(len(rows) == EVALUATIONS and rows[-1]["status"] == "finished", "plan_only", trial.arm,
                  f"its first steps, run to time them, ended with: {rows[-1]['error'] if rows else 'no result'}; mend that")  # fmt: skip
        found[trial.arm] = (trial, Timing.of(*timings))
    return Timed(found)


def cut(config: Config) -> Config:
    """The same run, evaluated `EVALUATIONS` times with a few steps between, and shown in no logger."""
    config = copy.deepcopy(config)
    config.loggers = []
    combiner, least = config.combiner, LEAST_STEPS
    if combiner.horizon:  # as large a share of steps is looked ahead, only sooner
        share, rests = combiner.horizon / combiner.every, WAYS[combiner.name].rests
        least = max(least, math.ceil((config.aid.inner_steps + 1) / (1 - share))) if rests else least
        combiner.every, combiner.horizon = least, max(1, int(least * share) if rests else round(least * share))
    steps = config.aid.inner_steps * -(-least // config.aid.inner_steps)
    config.train.steps, config.train.evaluate_every, config.train.checkpoint_every = EVALUATIONS * steps, steps, steps
    return config
