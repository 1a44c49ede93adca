"""The space of a search, as `sweep.space` gives it: dotted setting -> what it is drawn from, checked before anything is started.

    space:
      aid.solver: [identity, cg]                        # one of these
      aid.iterations: {low: 1, high: 10}                # whole numbers, as the setting is one
      aid.damping: {low: 1e-3, high: 1, log: true}      # of logarithms alike
      aid.gamma:                                        # its own range (aid.py)

On the command line the same, or names alone: `sweep.space=[aid.damping,aid.inner_steps]`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from meltr_ray.config import ABOUT_THE_COMMAND, Config
from meltr_ray.config.fields import Field, fields
from meltr_ray.config.used import in_vain
from meltr_ray.errors import ConfigError, check, shown
from tune_spaces.aid import SPACE
from tune_spaces.domains import Choice, Domain, Integer, LogUniform, Uniform, points

Space = dict[str, Domain]
Changes = dict[str, Any]
"""Dotted setting -> value."""
OF_A_PLACE = tuple(
    f"train.{name}" for name in ("num_workers", "threads", "use_gpu", "cpus_per_worker", "accelerator", "resources", "placement")
)
OF_THE_SWEEP = ("seed", "workload.source", *OF_A_PLACE, *ABOUT_THE_COMMAND)
"""Settings that all trials of a sweep share, or that tell its trials apart."""
KEYS = ("low", "high", "log", "grid")
TRIES = 20
"""Configurations that are made, at most, to find one in which a value can stand."""


def space_of(config: Config) -> Space:
    """Setting -> domain; in the order in which they are given.

    Raises:
        ConfigError: a setting is unknown or can't be searched, its range is none, or leaves the setting's bounds.
    """
    written = config.sweep.space or {}
    known = {item.name: item for item in fields(type(config.workload))}
    entries = written.items() if isinstance(written, Mapping) else ((name, None) for name in written)
    found: Space = {}
    for key, about in entries:
        name = _full_name(str(key), known, config)
        check(name not in found, "sweep.space", name, "stands there twice; remove one")
        found[name] = _domain(f"sweep.space.{name}", known[name], about, SPACE.get(name))
    return found


def _full_name(key: str, known: Mapping[str, Field], config: Config) -> str:
    """Those of `aid` may stand without it, as in older sweeps."""
    name = f"aid.{key}" if f"aid.{key}" in SPACE else config.workload.aliases.get(key, key)
    if name not in known:
        close = difflib.get_close_matches(name, list(known), 1)
        raise ConfigError(
            f"sweep.space={key}: no setting of that name; {f'did you mean {close[0]}' if close else 'see --help for all of them'}"
        )
    check(
        name not in OF_THE_SWEEP and not name.startswith("sweep."),
        "sweep.space",
        name,
        "is the same for all trials of a sweep; leave it out",
    )
    return name


def _domain(name: str, item: Field, about: Any, own: Domain | None) -> Domain:
    if about is None:
        own = own or (Choice((False, True)) if item.kind == "bool" else None)
        check(own is not None, name, "null", "has no range of its own; give one, such as [a,b] or {low: 1, high: 10}")
        return own
    if isinstance(about, Mapping):
        return _range(name, item, about)
    check(isinstance(about, (list, tuple)), name, about, "is no range; give a list of values, or such as {low: 1, high: 10}")
    check(len(about) > 0, name, "[]", "has no value; give at least one")
    for place, value in enumerate(about):
        check(value not in about[:place], name, about, f"has {shown(value)} twice; remove one")
        _check_value(name, item, value)
    return Choice(tuple(float(value) if item.kind.endswith("float") and type(value) is int else value for value in about))


def _range(name: str, item: Field, about: Mapping[str, Any]) -> Domain:
    for key in about:
        check(key in KEYS, name, key, f"is no part of a range; use {', '.join(KEYS)}")
    low, high, log = about.get("low"), about.get("high"), about.get("log", False)
    kind = item.kind.removeprefix("Optional[").removesuffix("]")
    check(kind in ("int", "float"), name, about, "is a range, and the setting is no number; give a list of values")
    check(low is not None and high is not None, name, about, "has an open end; give low and high")
    check(isinstance(log, bool), f"{name}.log", log, "is neither true nor false; give one of them")
    for end in (low, high):
        _check_value(name, item, end)
    check(low < high, name, about, "has a low that isn't below its high; change one")
    check(not log or low > 0, name, about, "has a logarithm of what isn't positive; raise low, or leave log out")
    grid = about.get("grid")
    check(grid is None or isinstance(grid, (list, tuple)), f"{name}.grid", grid, "is no list; give the values of a grid search")
    for value in grid or ():
        _check_value(f"{name}.grid", item, value)
    taken = tuple(grid) if grid else points(low, high, log, kind == "int")
    if kind == "int":
        return Integer(low, high, taken, log)
    return (LogUniform if log else Uniform)(float(low), float(high), tuple(map(float, taken)))


def _check_value(name: str, item: Field, value: Any) -> None:
    """Raises ConfigError: it is of another type than the setting, or out of its bounds."""
    kind = item.kind.removeprefix("Optional[").removesuffix("]")
    whole, number = isinstance(value, int) and not isinstance(value, bool), isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {"int": whole, "float": number, "bool": isinstance(value, bool), "str": isinstance(value, str)}.get(kind, True)
    check(
        fits or (value is None and item.kind.startswith("Optional[")), name, value, f"doesn't fit the setting; give a value of type {kind}"
    )
    if item.bounds is not None and number:
        item.bounds.check(name, value)


def used(values: Mapping[str, Any], drawn: Changes) -> Changes:
    """Those of `drawn` that the configuration makes something of, `values` being the settings of the arm that is varied."""
    vain = in_vain({**values, **drawn})
    return {name: value for name, value in drawn.items() if name not in vain}


def check_possible(space: Space, values: Mapping[str, Any], make: Callable[[Changes], Any], seed: int) -> None:
    """Refuse a setting that no configuration of the space uses, and a value that none can have.

    Args:
        values: settings of the arm that is varied.
        make: makes the configuration with changes; raises ConfigError where there is none.

    Raises:
        ConfigError: names the setting.
    """
    for name, domain in space.items():
        for value in domain.grid if isinstance(domain, Choice) else (domain.low, domain.high):
            _check_one(space, name, value, values, make, np.random.RandomState(seed))


def _check_one(
    space: Space, name: str, value: Any, values: Mapping[str, Any], make: Callable[[Changes], Any], generator: np.random.RandomState
) -> None:
    refused, reason = None, ""
    others = [{}, *({other: domain.draw(generator) for other, domain in space.items()} for _ in range(TRIES))]
    for drawn in others:
        drawn = drawn | {name: value}
        vain = in_vain({**values, **drawn})
        if name in vain:
            reason = reason or vain[name]
            continue
        try:
            make(used(values, drawn))
            return
        except ConfigError as error:
            refused = refused or error
    if refused:
        raise ConfigError(f"sweep.space.{name}={shown(value)}: no configuration of the space can have it ({refused}); take it out")
    raise ConfigError(f"sweep.space={name}: {reason} makes nothing of it; leave it out, or search what decides that, too")
