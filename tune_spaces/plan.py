"""The phases of a sweep: which trials there are, and what of earlier phases each of them waits for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Callable

from omegaconf import DictConfig

from meltr_ray.config import Config
from meltr_ray.errors import check
from tune_spaces import arms, screening
from tune_spaces.arms import Trial


@dataclass(frozen=True)
class Known:
    """What earlier phases found."""

    rates: dict[str, float]
    """Arm -> learning rate."""
    best: tuple[str, ...] | None = None
    """Auxiliary losses that the screening chose; empty: none helps; None: not screened yet."""


@dataclass(frozen=True)
class Phase:
    """Trials that may run at the same time."""

    trials: Callable[[Known], list[Trial]]
    needs_best: bool = False
    """Whether they hang on what the screening chose."""


def phases(settings: DictConfig, config: Config) -> list[Phase]:
    """In their order.

    Raises:
        ConfigError: a plan that can't be.
    """
    sweep = config.sweep
    if sweep.design == "none":
        check(bool(sweep.arms), "sweep.arms", "{}", "nothing to compare; choose an experiment with arms, or sweep.design=full")
        return [Phase(lambda known: arms.learning_rate_search(settings, config)),
                Phase(lambda known: arms.comparison(settings, config, known.rates))]  # fmt: skip
    screening.check_plan(config)
    early = list(dict.fromkeys([screening.NONE, screening.ALL, *sweep.confirm]))
    return [
        Phase(lambda known: screening.search(settings, config, early, ())),
        Phase(lambda known: screening.screening(settings, config, known.rates)),
        Phase(lambda known: screening.search_of_best(settings, config, known.best), needs_best=True),
        Phase(lambda known: screening.confirmation(settings, config, known.rates, known.best), needs_best=True),
    ]


def in_words(config: Config, trials: list[Trial]) -> list[str]:
    """The plan, a line a phase, for the terminal. `trials`: those of `all_trials`."""
    count, seeds = Counter(trial.phase for trial in trials), config.sweep.seeds
    if config.sweep.design == "none":
        return [f"{count.total()} trials of {len({trial.arm for trial in trials})} configurations"]
    design, rows = screening.design_of(config), screening.rows(config)
    beside = [f"{control} beside the first and the last of them" for control in screening.factors(config)[1]]
    beside += [f"{arm} with all of losses.set" for arm in config.sweep.arms]
    lines = [f"screening: {', '.join(design.losses)}: {design.kind}, {len(design.rows)} rows" + "".join(f", {one}" for one in beside)
             + f"; {len(rows) + len(config.sweep.arms)} x {seeds} seeds = {count['screening']} trials"]  # fmt: skip
    lines += [f"  not told apart: {' = '.join(f'{a} x {b}' for a, b in group)}" for group in design.aliased]
    if count["confirmation"]:
        arms = [screening.BEST, *config.sweep.confirm]
        lines.append(f"confirmation: {' against '.join([arms[0], ', '.join(arms[1:])])}, {config.sweep.confirmation_seeds} fresh seeds, "
                     f"at most {count['confirmation']} trials; the test split is scored in them alone")  # fmt: skip
    if count["learning_rate_search"]:
        lines.insert(0, f"learning rates: {', '.join(f'{rate:g}' for rate in config.sweep.learning_rates)}: at most {count['learning_rate_search']} trials")
    return lines


def all_trials(settings: DictConfig, config: Config) -> list[Trial]:
    """Every trial that there can be, with the learning rates as they are given; of a screening, as if all losses but the last helped."""
    losses = tuple(screening.factors(config)[0])
    supposed = Known({}, losses[:-1] or losses)
    return [trial for phase in phases(settings, config) for trial in phase.trials(supposed)]
