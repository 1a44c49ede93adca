"""The trials of a sweep: its arms, what is derived from them, and their seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from omegaconf import DictConfig

from meltr_ray.config import Config, SweepConfig, to_flat
from meltr_ray.config.file import make
from tune_spaces import weights
from tune_spaces.loss_sets import add_one_in, leave_one_out
from tune_spaces.rates import extended
from tune_spaces.search import Drawn, draw
from tune_spaces.spaces import space_of

TUNED = "tuned"
"""The arm whose fixed weights are searched for (`sweep.tuned_weights`)."""
SEARCHED = "searched"
"""Ending of the name of the arm that takes what the search `tpe` found."""
DRAWN = ("grid", "random")
"""Searches whose configurations are known beforehand: each is an arm on the seeds of the comparison."""
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
    return search_trials(settings, config, {arm: config.sweep.arms[arm] for arm in led(config) if arm != TUNED}, tried)


def led(config: Config) -> list[str]:
    """`ours` and the baselines: what the report compares."""
    return [config.sweep.ours, *config.sweep.baselines]


def weight_search(settings: DictConfig, config: Config, scores: dict[str, float]) -> list[Trial]:
    """Runs that look for fixed weights, as far as those before them have ended (`scores`: trial -> best score)."""
    found = _points(config, scores)
    return [Trial(_weights_name(number), TUNED, "weight_search", make(settings, _weighted(config, point) | {"seed": SEARCH_SEED_OFFSET}))
            for number, point in enumerate(found)]  # fmt: skip


def tuned(config: Config, scores: dict[str, float]) -> dict[str, Any]:
    """Settings of the arm with the weights that the search chose; before it, those of its first run."""
    found = _points(config, scores)
    ended = [(point, scores[name]) for number, point in enumerate(found) if (name := _weights_name(number)) in scores]
    point = weights.best(*zip(*ended)) if ended else None
    return _weighted(config, found[0] if point is None else point)


def _points(config: Config, scores: dict[str, float]) -> list[weights.Point]:
    numbered = {number: scores[name] for number in range(config.sweep.tuned_weights) if (name := _weights_name(number)) in scores}
    size = len(config.losses.set) - 1 + (len(config.sweep.learning_rates) > 1)
    return weights.points(config.sweep.tuned_weights, size, numbered, config.seed)


def _weighted(config: Config, point: weights.Point) -> dict[str, Any]:
    names, rates = config.losses.set, config.sweep.learning_rates
    rate = weights.rate_of(point, len(names), rates) or (rates[0] if rates else None)
    given = {"combiner.name": "fixed", "combiner.weights": weights.weights_of(point, len(names), names.index(config.losses.primary))}
    return given | ({"optimizer.learning_rate": rate} if rate else {})


def _weights_name(number: int) -> str:
    return f"{TUNED}-weights{number}"


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


def comparison(
    settings: DictConfig,
    config: Config,
    learning_rates: dict[str, float],
    scores: dict[str, float] | None = None,
    found: tuple[int, dict[str, Any]] | None = None,
) -> list[Trial]:
    """`ours`, the baselines, the other arms and those derived from `ours`, seed by seed.

    Args:
        learning_rates: arm -> learning rate found for it; an arm that is not in it takes that of `ours`.
        scores: trial of the search for weights -> its best score.
        found: number and changes of `ours` that the search `tpe` ended with; None: nothing yet, or there is none.
    """
    sweep, rated, arms = config.sweep, {}, all_arms(settings, config)
    labels = {}
    if found is not None:  # a search that grows may find another, whose trials are others
        number, changes = found
        arms[searched_arm(sweep)] = (sweep.arms[sweep.ours] | changes, "ablation")
        labels = {searched_arm(sweep): f"{searched_arm(sweep)}_{number}"}
    if sweep.tuned_weights:
        arms[TUNED] = (tuned(config, scores or {}), "comparison" if TUNED in led(config) else "ablation")
    for arm, (changes, phase) in arms.items():
        rate = learning_rates.get(arm, learning_rates.get(sweep.ours))
        rated[arm] = (changes | ({"optimizer.learning_rate": rate} if rate and "optimizer.learning_rate" not in changes else {}), phase)
    return seeded(settings, config, rated, labels)


def seeded(
    settings: DictConfig, config: Config, arms: dict[str, tuple[dict[str, Any], str]], labels: Mapping[str, str] = MappingProxyType({})
) -> list[Trial]:
    """The trials of `arms`, name -> (settings that differ, phase), on the seeds of the comparison. `labels`: arm -> its name in names of trials."""
    sweep, compared, trials = config.sweep, led(config), []
    for arm, (changes, phase) in arms.items():
        for seed in range(config.seed, config.seed + (sweep.seeds if arm in compared else sweep.other_seeds)):
            trials.append(
                Trial(f"{labels.get(arm, arm)}-seed{seed}", arm, phase, make(settings, changes | {"seed": seed}), test=arm in compared)
            )
    return sorted(trials, key=lambda trial: (trial.arm not in compared, trial.config.seed))  # what the report leads with first


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
    for number, found in searched(settings, config).found.items():
        arms[candidate_arm(sweep, number)] = (ours | found, "search")
    return arms


def candidate_arm(sweep: SweepConfig, number: int | str) -> str:
    """Of one configuration of a search over `sweep.space`; number `*`: a pattern of them all."""
    return f"{sweep.ours}_search_{number}"


def searched_arm(sweep: SweepConfig) -> str:
    """The arm that takes what a search found."""
    return f"{sweep.ours}_{SEARCHED}"


def searched(settings: DictConfig, config: Config) -> Drawn:
    """The configurations of `sweep.space`, but for that of `ours` itself, as changes of `ours`."""
    space, sweep = space_of(config), config.sweep
    if not space or sweep.search not in DRAWN:
        return Drawn()
    ours = sweep.arms[sweep.ours]
    values = to_flat(make(settings, ours)) | ({"optimizer.learning_rate": None} if sweep.learning_rates else {})  # which is found first
    drawn = draw(space, sweep.search, sweep.samples, config.seed, values, lambda changes: make(settings, ours | changes))
    drawn.found = {number: found for number, found in drawn.found.items() if any(values[name] != value for name, value in found.items())}
    return drawn
