"""Equal budgets: every compared arm searches its own settings by successive halving, in the same device-seconds each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import zip_longest
from typing import Any

from omegaconf import DictConfig

from meltr_ray.config import Config, SweepConfig
from meltr_ray.config.duration import in_words as in_time
from meltr_ray.config.file import make
from meltr_ray.errors import check
from tune_spaces import arms, halving
from tune_spaces.arms import SEARCH_SEED_OFFSET, TUNED, Trial, led
from tune_spaces.own_settings import candidate, space

PHASE = "settings_search"
REPLACED = ("tuned_weights", "learning_rate_seeds")
"""Settings of a sweep in whose place `budget_each` stands."""
Ended = Mapping[str, float]
"""Ended trial of the search -> its best score on validation; minus infinity where it diverged."""


class Searched:
    """An arm that searches its own settings, as it is configured.

    Raises:
        ConfigError: its runs are too short for a quarter of them.
    """

    def __init__(self, arm: str, settings: DictConfig, config: Config, count: int):
        self.arm, self.count, self.written = arm, count, settings
        self.changes = own(config, arm)
        """Settings that it gives itself."""
        self.config = make(settings, self.changes)
        self.domains = space(self.config, self.changes, weighs=arm == TUNED)
        """Setting -> what it is drawn from; empty where the arm gives all: nothing is searched."""
        self.trials: dict[tuple[int, int], Trial] = {}
        steps, least = self.config.train.steps, max(halving.RUNGS)
        check(steps >= least, "train.steps", steps, f"a search by halving trains for a part of them; give at least {least}")

    def drawn(self, number: int) -> dict[str, Any]:
        """Settings of a candidate."""
        return candidate(self.domains, self.arm, number, self.config.seed)

    def trial(self, number: int, rung: int) -> Trial:
        """A candidate's run at a rung: a whole schedule over its part of the steps, on the seed of searches."""
        if (number, rung) not in self.trials:
            changes: dict[str, Any] = {"train.steps": self.config.train.steps // rung, "seed": SEARCH_SEED_OFFSET}
            if self.config.optimizer.period:
                changes["optimizer.period"] = max(1, self.config.optimizer.period // rung)
            made = make(self.written, self.changes | self.drawn(number) | changes)
            self.trials[number, rung] = Trial(self.name(number, rung), self.arm, PHASE, made)
        return self.trials[number, rung]

    def name(self, number: int, rung: int) -> str:
        return f"{self.arm}-settings{number}-{halving.RUNGS[rung]}"

    def scores(self, ended: Ended) -> dict[int, dict[int, float]]:
        """Rung -> candidate -> score."""
        return {
            rung: {number: ended[name] for number in range(self.count) if (name := self.name(number, rung)) in ended}
            for rung in halving.RUNGS
        }

    def runs(self, ended: Ended) -> list[Trial]:
        """As far as those before them have ended."""
        course = halving.course(self.count, self.scores(ended)) if self.domains else {}
        return [self.trial(number, rung) for rung, numbers in course.items() for number in numbers]

    def chosen(self, ended: Ended) -> dict[str, Any] | None:
        """The `number` of the candidate that was chosen of `candidates`, its `score` at full length and the `settings` that it drew; None before."""
        if not self.domains:
            return {"number": 0, "candidates": 0, "score": None, "settings": {}}
        scores = self.scores(ended)
        number = halving.winner(self.count, scores)
        if number is None:
            return None
        score = scores[1][number] if number in scores[1] else -math.inf
        return {"number": number, "candidates": self.count, "score": None if score == -math.inf else score, "settings": self.drawn(number)}

    def in_words(self) -> str:
        runs = ", ".join(f"{size} x {self.config.train.steps // rung}" for rung, size in halving.sizes(self.count).items())
        return f"{self.arm}: {runs} steps: {', '.join(self.domains)}" if self.domains else f"{self.arm}: gives all of its settings itself"


class EqualBudgets:
    """The searches of a sweep.

    Args:
        counted: arm -> candidates that its budget buys; an arm that is not in it has one.
    """

    def __init__(self, settings: DictConfig, config: Config, counted: Mapping[str, int]):
        self.settings, self.config, self.counted = settings, config, counted

    @cached_property
    def arms(self) -> dict[str, Searched]:
        """Those that are compared."""
        return {arm: Searched(arm, self.settings, self.config, self.counted.get(arm, 1)) for arm in led(self.config)}

    def count(self, cost: Callable[[Trial], float]) -> dict[str, int]:
        """Arm -> candidates that `sweep.budget_each` buys; `cost`: device-seconds of a trial.

        Raises:
            ConfigError: an arm can't have one full run.
        """
        written, budget = self.config.sweep.budget_each, self.config.sweep.budget_each_seconds
        costs = {arm: {rung: cost(one.trial(0, rung)) for rung in halving.RUNGS} for arm, one in self.arms.items() if one.domains}
        for arm in sorted(costs, key=lambda arm: -costs[arm][1]):
            whole = costs[arm][1]
            check(
                whole <= budget,
                "sweep.budget_each",
                written,
                f"buys not one full run of {arm}, which takes {whole:.1f} s; give at least {math.ceil(whole)}s",
            )
        return {arm: halving.affordable(budget, each) for arm, each in costs.items()}

    def search(self, ended: Ended) -> list[Trial]:
        """Runs of every arm, as far as those before them have ended; in turn, so that a slow hour of the machine meets all alike."""
        return [trial for turn in zip_longest(*(one.runs(ended) for one in self.arms.values())) for trial in turn if trial]

    def chosen(self, ended: Ended) -> dict[str, dict[str, Any]]:
        """Arm whose search has ended -> what it chose."""
        return {arm: found for arm, one in self.arms.items() if (found := one.chosen(ended)) is not None}

    def comparison(self, ended: Ended) -> list[Trial]:
        """All arms at the settings that they chose, without those whose search has not ended.

        An arm that isn't compared takes those settings of `ours` that it would draw from the same range.
        """
        chosen, ours, ready = self.chosen(ended), self.config.sweep.ours, {}
        every = arms.all_arms(self.settings, self.config)
        every |= {TUNED: (own(self.config, TUNED), "comparison")} if TUNED in self.arms else {}
        for arm, (changes, phase) in every.items():
            found = chosen.get(arm if arm in self.arms else ours)
            if found is None:
                continue
            taken = found["settings"]
            if arm not in self.arms:
                domains = space(make(self.settings, changes), changes)
                taken = {name: value for name, value in taken.items() if domains.get(name) == self.arms[ours].domains[name]}
            ready[arm] = (changes | taken, phase)
        return arms.seeded(self.settings, self.config, ready)

    def in_words(self) -> list[str]:
        """Of the plan: candidates of each arm, the steps that they train, what they vary."""
        each = in_time(self.config.sweep.budget_each_seconds)
        return [f"settings: {each} of device time for each of {len(self.arms)} arms, by successive halving",
                *(f"  {one.in_words()}" for one in self.arms.values())]  # fmt: skip


def own(config: Config, arm: str) -> dict[str, Any]:
    """What an arm gives itself."""
    return {"combiner.name": "fixed"} if arm == TUNED else dict(config.sweep.arms[arm])


def check_equal(config: Config) -> None:
    """Refuse what equal budgets replace, and what they lack.

    Raises:
        ConfigError: names the setting.
    """
    sweep, rates = config.sweep, config.sweep.learning_rates
    for name in REPLACED:
        value = getattr(sweep, name)
        check(
            value == getattr(SweepConfig(), name),
            f"sweep.{name}",
            value,
            "has no part beside sweep.budget_each, which stands in its place; leave one of them out",
        )
    check(
        len(set(rates)) > 1, "sweep.learning_rates", rates, "sweep.budget_each draws between the least and the greatest; give at least two"
    )
    check(
        config.seed + sweep.seeds <= SEARCH_SEED_OFFSET,
        "seed",
        config.seed,
        f"seeds from {SEARCH_SEED_OFFSET} on are those of searches; lower it",
    )
