"""The trials of a sweep: its arms, what is derived from them, and their seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from meltr_ray.config import Config
from meltr_ray.config.file import make
from tune_spaces.loss_sets import add_one_in, leave_one_out
from tune_spaces.rates import extended
from tune_spaces.search import draw

SEARCH_SEED_OFFSET = 1000
"""Seeds of the learning-rate search start here, so that none is used twice."""
Tried = dict[str, dict[float, float]]
"""Arm -> learning rate -> mean score of its trials, which have all ended; minus infinity where one diverged."""


@dataclass(frozen=True)
class Trial:
    """One run of one arm with one seed."""

    name: str
    arm: str
    phase: str
    config: Config
    test: bool = False
    """Whether the test split is scored, once, with the best weights."""


def learning_rate_search(settings: DictConfig, config: Config, tried: Tried) -> list[Trial]:
    """The same learning rates for `ours` and each baseline, on seeds that the comparison does not use."""
    return search_trials(settings, config, {arm: config.sweep.arms[arm] for arm in [config.sweep.ours, *config.sweep.baselines]}, tried)


def search_trials(settings: DictConfig, config: Config, arms: dict[str, dict[str, Any]], tried: Tried) -> list[Trial]:
    """The learning rates of the sweep for each arm, whose settings are given; and those that what was tried asks for."""
    sweep = config.sweep
    return [
        Trial(f"{arm}-lr{rate:g}-seed{seed}", arm, "learning_rate_search",
              make(settings, changes | {"optimizer.learning_rate": rate, "seed": seed}))
        for seed in range(SEARCH_SEED_OFFSET, SEARCH_SEED_OFFSET + sweep.learning_rate_seeds)
        for arm, changes in arms.items()
        for rate in extended(sweep.learning_rates, tried.get(arm, {}))
    ]  # fmt: skip


def comparison(settings: DictConfig, config: Config, learning_rates: dict[str, float]) -> list[Trial]:
    """`ours`, the baselines, the other arms and those derived from `ours`, seed by seed.

    Args:
        learning_rates: arm -> learning rate found for it; an arm that is not in it takes that of `ours`.
    """
    sweep = config.sweep
    led = [sweep.ours, *sweep.baselines]
    trials = []
    for arm, (changes, phase) in all_arms(settings, config).items():
        rate = learning_rates.get(arm, learning_rates.get(sweep.ours))
        changes = changes | ({"optimizer.learning_rate": rate} if rate and "optimizer.learning_rate" not in changes else {})
        for seed in range(config.seed, config.seed + (sweep.seeds if arm in led else sweep.other_seeds)):
            trials.append(Trial(f"{arm}-seed{seed}", arm, phase, make(settings, changes | {"seed": seed}), test=arm in led))
    return sorted(trials, key=lambda trial: (trial.arm not in led, trial.config.seed))  # what the report leads with first


def all_arms(settings: DictConfig, config: Config) -> dict[str, tuple[dict[str, Any], str]]:
    """Arm -> (settings that differ, phase): those given, leave-one-out, add-one-in and those of a search."""
    sweep, ours = config.sweep, config.sweep.arms[config.sweep.ours]
    loss_set = make(settings, ours).losses.set
    arms = {arm: (dict(changes), "comparison" if arm in (sweep.ours, *sweep.baselines) else "ablation")
            for arm, changes in sweep.arms.items()}  # fmt: skip
    derived = {f"{sweep.ours}_without_": leave_one_out} if sweep.leave_one_out else {}
    derived |= {f"{sweep.ours}_only_": add_one_in} if sweep.add_one_in else {}
    for prefix, function in derived.items():
        for loss, reduced in function(loss_set, config.losses.primary).items():
            arms[prefix + loss] = (ours | {"losses.set": reduced}, "ablation")
    for number, found in enumerate(draw(sweep.space, sweep.search, sweep.samples, config.seed) if sweep.space else []):
        arms[f"{sweep.ours}_search_{number}"] = (ours | found, "search")
    return arms
