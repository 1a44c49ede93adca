"""The phases of a sweep: which trials there are, and what of earlier phases each of them waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Callable

from omegaconf import DictConfig

from meltr_ray.config import Config, SweepConfig, to_flat
from meltr_ray.config.duration import in_words as in_time
from meltr_ray.config.file import make
from meltr_ray.errors import check
from meltr_ray.results.columns import SEARCHES
from tune_spaces import arms, asha, equal_budgets, leaders, screening, space_search, spaces, tpe
from tune_spaces.arms import TUNED, Trial, Tried
from tune_spaces.cost import Timed
from tune_spaces.size import check_size
from tune_spaces.space_search import SpaceSearch


@dataclass(frozen=True)
class Known:
    """What earlier phases found."""

    rates: dict[str, float]
    """Arm -> learning rate."""
    best: tuple[str, ...] | None = None
    """Auxiliary losses that the screening chose; empty: none helps; None: not screened yet."""
    tried: Tried = field(default_factory=dict)
    """What the learning-rate searches found so far."""
    weighed: dict[str, float] = field(default_factory=dict)
    """Ended trial of the search for weights -> its best score; minus infinity if it diverged."""
    halved: dict[str, float] = field(default_factory=dict)
    """The same of the searches in equal budgets."""
    compared: dict[str, float] = field(default_factory=dict)
    """The same of the comparison."""
    searched: dict[int, tpe.Tried] = field(default_factory=dict)
    """Number -> trial of the search `tpe`."""


@dataclass(frozen=True)
class Phase:
    """Trials that may run at the same time."""

    trials: Callable[[Known], list[Trial]]
    """Asked again when they have ended, as a search may go on where it found its best on an edge."""
    needs_best: bool = False
    """Whether they hang on what the screening chose."""
    is_counted: bool = False
    """Whether `all_trials` has those that it asks for later."""
    asks: Callable[[Known], SpaceSearch] | None = None
    """What gives its trials one after the other; `trials` are then those that there can be."""


def phases(settings: DictConfig, config: Config, counted: Mapping[str, int] | None = None) -> list[Phase]:
    """In their order. `counted`: arm -> candidates that `sweep.budget_each` buys.

    Raises:
        ConfigError: a plan that can't be.
    """
    sweep = config.sweep
    if sweep.design == "none":
        check_used(sweep)
        check(bool(sweep.arms), "sweep.arms", "{}", "nothing to compare; choose an experiment with arms, or sweep.design=full")
        leaders.check_leaders(config)
        space_search.check_search(config)
        asha.check_asha(config)
        if sweep.budget_each:
            equal_budgets.check_equal(config)
            equal = equal_budgets.EqualBudgets(settings, config, counted or {})
            searches = [Phase(lambda known: equal.search(known.halved), is_counted=True)]
            return [*searches, *_compared(config, lambda known: equal.comparison(known.halved))]
        searches = [Phase(lambda known: arms.learning_rate_search(settings, config, known.tried)),
                    Phase(lambda known: arms.weight_search(settings, config, known.weighed))]  # fmt: skip

        def search(known: Known) -> SpaceSearch:
            return SpaceSearch(settings, config, known.rates)

        searches += [Phase(lambda known: search(known).supposed(), asks=search)] if space_search.asks(config) else []
        return [*searches, *_compared(config, lambda known: arms.comparison(settings, config, known.rates, known.weighed, found(known)))]
    screening.check_plan(config)
    check_used(sweep)
    early = list(dict.fromkeys([screening.NONE, screening.ALL, *sweep.confirm]))
    return [
        Phase(lambda known: screening.search(settings, config, early, known.tried)),
        Phase(lambda known: screening.screening(settings, config, known.rates)),
        Phase(lambda known: screening.search_of_best(settings, config, known.best, known.tried), needs_best=True),
        Phase(lambda known: screening.confirmation(settings, config, known.rates, known.best), needs_best=True),
    ]


def found(known: Known) -> tuple[int, dict[str, Any]] | None:
    """What the search `tpe` ends with."""
    return space_search.best(known.searched)


def _compared(config: Config, comparison: Callable[[Known], list[Trial]]) -> list[Phase]:
    """The comparison and, if they are asked for, its leaders, in which alone the test split is scored then."""
    if not config.sweep.leaders:
        return [Phase(comparison)]
    return [Phase(lambda known: [replace(trial, test=False) for trial in comparison(known)]),
            Phase(lambda known: leaders.fresh(config, comparison(known), known.compared))]  # fmt: skip


OF_A_COMPARISON = (
    "ours",
    "baselines",
    "charged",
    "other_seeds",
    "leave_one_out",
    "add_one_in",
    "space",
    "search",
    "samples",
    "asha",
    "tuned_weights",
    "budget_each",
    "leaders",
)
OF_A_SCREENING = ("looks", "confirm", "confirmation_seeds")
"""Settings of a sweep that the other kind of sweep doesn't look at."""
OF_BOTH = "confirmation_seeds"
"""Of these, the one that `leaders` takes."""


def check_used(sweep: SweepConfig) -> None:
    """Refuse what would be set in vain.

    Raises:
        ConfigError: names the setting.
    """
    screens, defaults = sweep.design != "none", SweepConfig()
    kind, mend = (
        ("a screening", "compare arms with sweep.design=none")
        if screens
        else ("a comparison of arms", "screen with such as sweep.design=full")
    )
    vain = OF_A_COMPARISON if screens else [name for name in OF_A_SCREENING if not (sweep.leaders and name == OF_BOTH)]
    for name in vain:
        value = getattr(sweep, name)
        check(value == getattr(defaults, name), f"sweep.{name}", value, f"has no part in {kind}; leave it out, or {mend}")


def in_words(config: Config, trials: list[Trial]) -> list[str]:
    """The plan, a line a phase, for the terminal. `trials`: those of `all_trials`."""
    count, seeds = Counter(trial.phase for trial in trials), config.sweep.seeds
    if config.sweep.design == "none":
        more = config.sweep.tuned_weights - count["weight_search"]
        searched = (
            [f"weights: {config.sweep.tuned_weights} runs for the arm {TUNED}, {more} of them at the best point of a fit to the others"]
            if more
            else []
        )
        confirmed = [trial.arm for trial in trials if trial.phase == "confirmation"]
        searched += [f"leaders: the best {config.sweep.leaders} on validation and {', '.join(config.sweep.baselines[:1])}: {config.sweep.confirmation_seeds} fresh seeds, "
                     f"at most {len(confirmed)} trials; the test split is scored in them alone"] if confirmed else []  # fmt: skip
        searched += [
            f"charged to {arm}: {in_time(length)} of device time before this sweep" for arm, length in config.sweep.charged_seconds.items()
        ]
        return [*searched, f"{count.total() + more} trials of {len({trial.arm for trial in trials})} configurations"]
    design, rows = screening.design_of(config), screening.rows(config)
    beside = [f"{control} beside the first and the last of them" for control in screening.factors(config)[1]]
    beside += [f"{arm} with all of losses.set" for arm in config.sweep.arms]
    lines = [f"screening: {', '.join(design.losses)}: {design.kind}, {len(design.rows)} rows" + "".join(f", {one}" for one in beside)
             + f"; {len(rows) + len(config.sweep.arms)} x {seeds} seeds = {count['screening']} trials"]  # fmt: skip
    lines += [f"  the design can't distinguish: {' = '.join(f'{a} x {b}' for a, b in group)}" for group in design.aliased]
    if count["confirmation"]:
        arms = [screening.BEST, *config.sweep.confirm]
        lines.append(f"confirmation: {' against '.join([arms[0], ', '.join(arms[1:])])}, {config.sweep.confirmation_seeds} fresh seeds, "
                     f"at most {count['confirmation']} trials; the test split is scored in them alone")  # fmt: skip
    if count["learning_rate_search"]:
        lines.insert(0, f"learning rates: {', '.join(f'{rate:g}' for rate in config.sweep.learning_rates)}: {count['learning_rate_search']} trials, "
                        "and more if the best lies on an edge of the grid")  # fmt: skip
    return lines


def search_in_words(settings: DictConfig, config: Config) -> list[str]:
    """What `sweep.space` comes to."""
    space = spaces.space_of(config)
    if not space:
        return []
    halved = asha.in_words(config)
    if space_search.asks(config):
        line = f"search (tpe): {config.sweep.samples} configurations of {', '.join(space)}, each chosen after the scores of those before it"
        return [line + halved, f"{arms.searched_arm(config.sweep)} takes the best of them"]
    drawn, how = arms.searched(settings, config), config.sweep.search
    line = f"search ({how}): {len(drawn.found)} configurations of {', '.join(space)}, of {drawn.looked_at} combinations: equal ones are one"
    left = len(drawn.refused)
    return [line + halved + (f"; {left} are impossible, such as {drawn.refused[0].partition('; ')[0]}" if left else "")]


def check_space(settings: DictConfig, config: Config) -> None:
    """Refuse, of a sweep that begins, a space with a setting that nothing uses or a value that can't be.

    Raises:
        ConfigError: names the setting.
    """
    if space := spaces.space_of(config):
        ours = config.sweep.arms[config.sweep.ours]
        values = to_flat(make(settings, ours))
        spaces.check_possible(space, values, lambda changes: make(settings, ours | changes), config.seed)


def cost_in_words(config: Config, trials: list[Trial], timed: Timed) -> list[str]:
    """What a plan costs, a line a phase, and how far a budget goes.

    Raises:
        ConfigError: the budget is below one block: a seed of the screening or of what is compared.
    """
    costs = [timed.cost(trial) for trial in trials]
    by_phase: dict[str, float] = {}
    for trial, cost in zip(trials, costs):
        name = trial.phase.replace("_", " ")
        by_phase[name] = by_phase.get(name, 0.0) + cost
    each = [f"{arm} {in_time(timing.of_trial(trial.config, False))}" for arm, (trial, timing) in timed.of_arms.items()]
    parts = [f"{name} {in_time(cost)}" for name, cost in by_phase.items()]
    lines = [
        f"estimated device time of a trial: {', '.join(each)}",
        f"device time in all: about {in_time(sum(costs))}{': ' + ', '.join(parts) if len(parts) > 1 else ''}",
    ]
    if config.sweep.budget is None:
        return lines
    budget = config.sweep.budget_seconds
    search = sum(cost for trial, cost in zip(trials, costs) if trial.phase in SEARCHES)
    block = sum(cost for trial, cost in zip(trials, costs) if trial.phase != "confirmation" and trial.config.seed == config.seed)
    check(budget >= search + block, "sweep.budget", config.sweep.budget,
          f"is below one block: the trials of one seed take {in_time(block)}{f' after {in_time(search)} of searches' if search else ''}; give more")  # fmt: skip
    if budget < sum(costs):
        fitting = sum(total <= budget for total in accumulate(costs))
        lines.append(f"sweep.budget={config.sweep.budget} ends the sweep after about {fitting} of {len(trials)} trials")
    return lines


def all_trials(settings: DictConfig, config: Config, counted: Mapping[str, int] | None = None) -> list[Trial]:
    """Every trial that there can be, with the learning rates as they are given; of a screening, as if all losses but the last helped; of a
    search in equal budgets, and of leaders, as if each candidate and arm were better than the next."""
    check_size(config)
    losses, found = tuple(screening.factors(config)[0]), []
    supposed = Known({}, losses[:-1] or losses)
    for phase in phases(settings, config, counted):
        trials = phase.trials(supposed)
        while phase.is_counted and len(trials) > len(supposed.halved):
            supposed = replace(supposed, halved={trial.name: -float(place) for place, trial in enumerate(trials)})
            trials = phase.trials(supposed)
        first = config.sweep.baselines[:1]  # supposed to lead the least, so that it is one more
        supposed = replace(
            supposed, compared={trial.name: float("-inf") if trial.arm in first else -float(place) for place, trial in enumerate(trials)}
        )
        if phase.asks:
            supposed = replace(supposed, searched={0: tpe.Tried({}, "finished", 0.0)})
        found += trials
    names = Counter(trial.name for trial in found)
    twice = next((trial.arm for trial in found if names[trial.name] > 1), None)
    check(twice is None, "sweep.arms", twice, "is the name of two arms, one of which the sweep makes itself; call yours otherwise")
    return found
