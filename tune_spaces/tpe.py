"""The next configuration of a search, from those that were tried: Optuna's TPE, all settings at once, in groups of those that occur together.

Optuna keeps nothing: the study is made anew from what was tried, which the results table has, and a suggestion is a pure function of that, of
its number and of a seed. So a search that was killed goes on from whatever the table says.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from meltr_ray.config.used import DECIDERS, in_vain
from meltr_ray.errors import ConfigError
from tune_spaces.domains import Choice, Domain, Integer, LogUniform
from tune_spaces.spaces import Changes, Space, used

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

TRIES = 50
"""Suggestions that are new and can be are looked for so often, and as often again among random draws."""
FIRST = (4, 10)
"""Least and most of the trials that are drawn at random before TPE begins: a quarter of all."""


@dataclass(frozen=True)
class Tried:
    """A trial of a search."""

    changes: Changes
    """What it drew."""
    status: str = "running"
    """As in the results table; `stopped`: at a rung, for good."""
    score: float | None = None
    """The best on validation of one that has finished; higher is better."""
    steps: Mapping[int, float] = field(default_factory=dict)
    """Evaluated step -> score."""


def suggest(space: Space, values: Mapping[str, Any], tried: Mapping[int, Tried], number: int, samples: int, seed: int,
            make: Callable[[Changes], Any]) -> Changes | None:  # fmt: skip
    """Changes of trial `number` of `samples`; None where the space has no more that are new and can be.

    Args:
        values: settings of the arm that is varied: what they make nothing of isn't varied.
        tried: number -> trial.
        make: makes the configuration with changes; raises ConfigError where there is none.
    """
    from optuna.trial import TrialState

    least, most = FIRST
    study = study_of(space, tried.values(), (seed * 1_000_003 + number) % 2**32, min(most, max(least, samples // 4)))
    known = {_key(one.changes) for one in tried.values()}
    generator = np.random.RandomState([seed, number])
    for attempt in range(2 * TRIES):
        trial = study.ask() if attempt < TRIES else None
        if trial:
            drawn = _walk(space, values, lambda name: _value(space[name], _asked(trial, name, space[name])))
        else:
            drawn = used(values, {name: domain.draw(generator) for name, domain in space.items()})
        if _key(drawn) in known:
            continue  # stays open in the study, which keeps away from it
        try:
            make(drawn)
            return drawn
        except ConfigError:
            if trial:
                study.tell(trial, state=TrialState.PRUNED)  # worse than any that ended
    return None


def study_of(space: Space, tried: Sequence[Tried], seed: int, first: int = FIRST[1]) -> Study:
    """An Optuna study in memory. What diverged is worse than all that ended, what failed says nothing."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `group`; the version is pinned
        sampler = optuna.samplers.TPESampler(multivariate=True, group=True, n_startup_trials=first, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for one in tried:
        distributions = {name: distribution(space[name]) for name in one.changes if name in space}
        params = {name: _internal(space[name], one.changes[name]) for name in distributions}
        if not all(_holds(distributions[name], value) for name, value in params.items()):
            continue  # the arm as it is, outside of the ranges
        state = {"finished": TrialState.COMPLETE, "running": TrialState.RUNNING, "failed": TrialState.FAIL}.get(
            one.status, TrialState.PRUNED
        )
        steps = {} if one.status == "diverged" else {step: score for step, score in one.steps.items() if score is not None}
        study.add_trial(
            create_trial(state=state, params=params, distributions=distributions, intermediate_values=steps,
                         value=one.score if state is TrialState.COMPLETE else None)
        )  # fmt: skip
    return study


def distribution(domain: Domain) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):
        return CategoricalDistribution([_label(value) for value in domain.grid])
    if isinstance(domain, Integer):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogUniform))


def _walk(space: Space, values: Mapping[str, Any], value_of: Callable[[str], Any]) -> Changes:
    """Setting by setting, what decides whether others count first; those that don't count are left out."""
    drawn: Changes = {}
    for name in sorted(space, key=lambda name: DECIDERS.index(name) if name in DECIDERS else len(DECIDERS)):
        if name not in in_vain({**values, **drawn}):
            drawn[name] = value_of(name)
    return {name: drawn[name] for name in space if name in drawn}


def _asked(trial: Any, name: str, domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return trial.suggest_categorical(name, [_label(value) for value in domain.grid])
    if isinstance(domain, Integer):
        return trial.suggest_int(name, domain.low, domain.high, log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, log=isinstance(domain, LogUniform))


def _label(value: Any) -> Any:
    """Optuna takes plain values alone."""
    return value if isinstance(value, (str, int, float, bool, type(None))) else json.dumps(value)


def _internal(domain: Domain, value: Any) -> Any:
    return _label(value) if isinstance(domain, Choice) else value


def _value(domain: Domain, internal: Any) -> Any:
    return next(value for value in domain.grid if _label(value) == internal) if isinstance(domain, Choice) else internal


def _holds(distribution: Any, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:
        return False


def _key(changes: Changes) -> str:
    return repr(sorted(changes.items()))


def missing() -> list[str]:
    """Packages that it lacks."""
    return [] if find_spec("optuna") else ["optuna"]
