"""Equal budgets: every compared arm searches its own settings by successive halving, in the same device-seconds each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from meltr_ray.config import Config, SweepConfig
from meltr_ray.config.duration import in_words as in_time
from meltr_ray.config.file import make
from meltr_ray.errors import check
from tune_spaces import arms, halving
from tune_spaces.arms import SEARCH_SEED_OFFSET, TUNED, Trial, led
from tune_spaces.domains import Domain
from tune_spaces.own_settings import candidate, space

PHASE = "settings_search"
REPLACED = ("tuned_weights", "learning_rate_seeds")
"""Settings of a sweep in whose place `budget_each` stands."""

Counts = Mapping[str, int]
"""Arm -> candidates that its budget buys; an arm that is not in it has one."""


@dataclass(frozen=True)
class Searched:
    """An arm that searches its own settings."""

    arm: str
    changes: dict[str, Any]
    """Settings that it gives itself."""
    config: Config
    domains: dict[str, Domain]
    """Setting -> what it is drawn from; empty where the arm pins all: nothing is searched."""

    def settings(self, number: int) -> dict[str, Any]:
        """Those that candidate `number` draws."""
        return candidate(self.domains, self.arm, number, self.config.seed)

    def trial(self, settings: DictConfig, number: int, rung: int) -> Trial:
        """A candidate's run at a rung: a whole schedule over its part of the steps, on the seed of searches."""
        shorter: dict[str, Any] = {"train.steps": self.config.train.steps // rung, "seed": SEARCH_SEED_OFFSET}
        if self.config.optimizer.period:
            shorter["optimizer.period"] = max(1, self.config.optimizer.period // rung)
        return Trial(name_of(self.arm, number, rung), self.arm, PHASE, make(settings, self.changes | self.settings(number) | shorter))


def check_equal(config: Config) -> None:
    """Refuse what equal budgets replace, and what they lack.

    Raises:
        ConfigError: names the setting.
    """
    sweep = config.sweep
    for name in REPLACED:
        value = getattr(sweep, name)
        check(value == getattr(SweepConfig(), name), f"sweep.{name}", value, "has no part beside sweep.budget_each, which stands in its place; leave one of them out")
    rates = sweep.learning_rates
    check(len(set(rates)) > 1, "sweep.learning_rates", rates, "sweep.budget_each draws between the least and the greatest; give at least two")
    check(config.seed + sweep.seeds <= SEARCH_SEED_OFFSET, "seed", config.seed, f"seeds from {SEARCH_SEED_OFFSET} on are those of searches; lower it")


def searched(settings: DictConfig, config: Config) -> list[Searched]:
    """The arms that are compared, as they are configured.

    Raises:
        ConfigError: a run too short for a quarter of it.
    """
    found = []
    for arm in led(config):
        changes = own(config, arm)
        made = make(settings, changes)
        check(made.train.steps >= max(halving.RUNGS), "train.steps", made.train.steps, f"a search by halving trains for a part of them; give at least {max(halving.RUNGS)}")
        found.append(Searched(arm, changes, made, space(made, changes, weighs=arm == TUNED)))
    return found


def own(config: Config, arm: str) -> dict[str, Any]:
    """What an arm gives itself."""
    return {"combiner.name": "fixed"} if arm == TUNED else dict(config.sweep.arms[arm])


def counts(settings: DictConfig, config: Config, cost: Callable[[Trial], float]) -> dict[str, int]:
    """Arm -> candidates that `sweep.budget_each` buys; `cost`: device-seconds of a trial.

    Raises:
        ConfigError: an arm can't have one full run.
    """
    budget, found = config.sweep.budget_each_seconds, {}
    costs = {one.arm: {rung: cost(one.trial(settings, 0, rung)) for rung in halving.RUNGS} for one in searched(settings, config) if one.domains}
    dearest = max(costs, key=lambda arm: costs[arm][1], default="")
    for arm, each in costs.items():
        found[arm] = halving.affordable(budget, each)
        check(found[arm] > 0, "sweep.budget_each", config.sweep.budget_each,
              f"buys not one full run of {dearest}, which takes {costs[dearest][1]:.1f} s; give at least {math.ceil(costs[dearest][1])}s")  # fmt: skip
    return found


def search(settings: DictConfig, config: Config, counted: Counts, scores: Mapping[str, float]) -> list[Trial]:
    """Every arm's runs, as far as those before them have ended (`scores`: ended trial -> best score on validation)."""
    return [one.trial(settings, number, rung) for one in searched(settings, config) if one.domains
            for rung, numbers in halving.course(count_of(counted, one.arm), _of_arm(one.arm, count_of(counted, one.arm), scores)).items()
            for number in numbers]  # fmt: skip


def chosen(settings: DictConfig, config: Config, counted: Counts, scores: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Arm whose search has ended -> `number` of the chosen candidate, `candidates`, `score`, `settings` that it drew, and `searched`, names."""
    found = {}
    for one in searched(settings, config):
        known = _of_arm(one.arm, count_of(counted, one.arm), scores)
        number = halving.winner(count_of(counted, one.arm), known) if one.domains else 0
        if number is not None:
            score = known[1].get(number) if one.domains else None
            found[one.arm] = {"number": number, "candidates": count_of(counted, one.arm) if one.domains else 0, "settings": one.settings(number),
                              "score": None if score == float("-inf") else score, "searched": list(one.domains)}  # fmt: skip
    return found


def comparison(settings: DictConfig, config: Config, counted: Counts, scores: Mapping[str, float]) -> list[Trial]:
    """All arms at the settings that they chose. An arm that isn't compared takes those of `ours` that it would draw alike.

    An arm whose search has not ended has no trials yet.
    """
    found, ours = chosen(settings, config, counted, scores), config.sweep.ours
    every = arms.all_arms(settings, config) | ({TUNED: (own(config, TUNED), "comparison")} if TUNED in led(config) else {})
    of_ours = next(one.domains for one in searched(settings, config) if one.arm == ours)
    ready = {}
    for arm, (changes, phase) in every.items():
        if (arm if phase == "comparison" else ours) not in found:
            continue
        if phase == "comparison":
            taken = found[arm]["settings"]
        else:
            domains = space(make(settings, changes), changes)
            taken = {name: value for name, value in found[ours]["settings"].items() if domains.get(name) == of_ours[name]}
        ready[arm] = (changes | taken, phase)
    return arms.seeded(settings, config, ready)


def in_words(settings: DictConfig, config: Config, counted: Counts) -> list[str]:
    """Lines of the plan: candidates of each arm, the steps that they train, what they vary."""
    lines = [f"settings: {in_time(config.sweep.budget_each_seconds)} of device time for each of {len(led(config))} arms, by successive halving"]
    for one in searched(settings, config):
        count = count_of(counted, one.arm)
        runs = ", ".join(f"{size} x {one.config.train.steps // rung}" for rung, size in halving.sizes(count).items())
        lines.append(f"  {one.arm}: {runs} steps: {', '.join(one.domains)}" if one.domains else f"  {one.arm}: gives all of its settings itself")
    return lines


def count_of(counted: Counts, arm: str) -> int:
    return counted.get(arm, 1)


def name_of(arm: str, number: int, rung: int) -> str:
    return f"{arm}-settings{number}-{halving.RUNGS[rung]}"


def _of_arm(arm: str, count: int, scores: Mapping[str, float]) -> dict[int, dict[int, float]]:
    return {rung: {number: scores[name] for number in range(count) if (name := name_of(arm, number, rung)) in scores} for rung in halving.RUNGS}
