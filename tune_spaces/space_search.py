"""`sweep.search=tpe`: a search that learns from its own trials, one at a time, and the arm that takes what it found.

Its trials run on the seed of searches and never see the test split. The first is `ours` as it is configured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from omegaconf import DictConfig

from meltr_ray.config import Config, to_flat
from meltr_ray.config.file import make
from meltr_ray.config.used import DECIDERS
from meltr_ray.errors import ConfigError, check
from meltr_ray.extras import needs
from meltr_ray.results.columns import SETTING
from tune_spaces import tpe
from tune_spaces.arms import SEARCH_SEED_OFFSET, Trial, candidate_arm, searched_arm
from tune_spaces.search import combinations
from tune_spaces.spaces import Changes, Space, space_of, used

PHASE = "space_search"
TPE = "tpe"


class SpaceSearch:
    """The search of a sweep.

    Args:
        settings, config: of the sweep.
        rates: arm -> learning rate that was found for it; the search takes that of `ours`.
    """

    def __init__(self, settings: DictConfig, config: Config, rates: Mapping[str, float]):
        self.settings, self.config, self.samples = settings, config, config.sweep.samples
        rate = rates.get(config.sweep.ours)
        self.ours = dict(config.sweep.arms[config.sweep.ours])
        if rate and "optimizer.learning_rate" not in self.ours:
            self.ours["optimizer.learning_rate"] = rate
        self.arm = searched_arm(config.sweep)

    @cached_property
    def space(self) -> Space:
        return space_of(self.config)

    @cached_property
    def values(self) -> dict[str, Any]:
        """Settings of the arm that is varied."""
        return to_flat(make(self.settings, self.ours))

    @property
    def names(self) -> str:
        """Pattern of the names of its trials."""
        return f"{candidate_arm(self.config.sweep, '*')}-seed{SEARCH_SEED_OFFSET}"

    def trial(self, number: int, changes: Changes) -> Trial:
        name = self.names.replace("*", str(number))
        return Trial(name, self.arm, PHASE, make(self.settings, self.ours | changes | {"seed": SEARCH_SEED_OFFSET}))

    def number_of(self, name: str) -> int:
        before, after = self.names.split("*")
        return int(name.removeprefix(before).removesuffix(after))

    def drawn_by(self, config: Config) -> Changes:
        """What a trial of the search drew, from its configuration."""
        flat = to_flat(config)
        return used(flat, {name: flat[name] for name in self.space})

    def drawn_by_row(self, row: Mapping[str, Any]) -> Changes | None:
        """The same from a row of its table; None where the table, of an older version, lacks a setting."""
        if any(SETTING + name not in row for name in (*self.space, *DECIDERS)):
            return None
        flat = {name: self._setting(name, row[SETTING + name]) for name in (*self.space, *DECIDERS)}
        return used(flat, {name: flat[name] for name in self.space})

    def _setting(self, name: str, cell: Any) -> Any:
        """Of a cell, which has lists and dictionaries as JSON."""
        written = isinstance(cell, str) and cell.startswith(("[", "{")) and not isinstance(self.values[name], str)
        return json.loads(cell) if written else cell

    def ask(self, tried: Mapping[int, tpe.Tried]) -> Trial | None:
        """The next trial; None at the end of the search."""
        number = max(tried, default=-1) + 1
        if len(tried) >= self.samples:
            return None
        if number == 0:
            return self.trial(0, {})
        changes = tpe.suggest(self.space, self.values, tried, number, self.samples, self.config.seed,
                              lambda changes: make(self.settings, self.ours | changes))  # fmt: skip
        return None if changes is None else self.trial(number, changes)

    def supposed(self) -> list[Trial]:
        """As many trials as there can be, drawn at random, for the plan. Those that can't be are left out, as the search does."""
        found = [self.trial(0, {})]
        for number, combination in enumerate(combinations(self.space, self.config.seed), 1):
            if number == self.samples:
                return found
            try:
                found.append(self.trial(number, used(self.values, combination)))
            except ValueError:
                found.append(self.trial(number, {}))


def asks(config: Config) -> bool:
    """Whether a sweep has such a search."""
    return config.sweep.search == TPE and bool(config.sweep.space)


def best(tried: Mapping[int, tpe.Tried]) -> tuple[int, Changes] | None:
    """Number and changes, of those that finished; of equal ones the first. None where none has."""
    ended = {number: one.score for number, one in tried.items() if one.status == "finished" and one.score is not None}
    first = max(ended, key=lambda number: (ended[number], -number), default=None)
    return None if first is None else (first, tried[first].changes)


def check_search(config: Config) -> None:
    """Refuse a search that can't be.

    Raises:
        ConfigError: names the setting.
    """
    sweep = config.sweep
    check(sweep.search != TPE or bool(sweep.space), "sweep.search", TPE, "has nothing to search; give sweep.space, or leave it out")
    if not asks(config):
        return
    if missing := tpe.missing():
        raise ConfigError(f"sweep.search={TPE}: {needs('search', missing)}")
    check(
        sweep.budget_each is None,
        "sweep.search",
        TPE,
        "has no part beside sweep.budget_each, in which arms search for themselves; use random or grid",
    )
    check(
        searched_arm(config.sweep) not in sweep.arms,
        "sweep.arms",
        searched_arm(config.sweep),
        "is the arm that takes what the search found; call it otherwise",
    )
