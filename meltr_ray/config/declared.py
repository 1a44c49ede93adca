"""What a workload declares, losses, metrics and bounds, checked once its settings are known."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from meltr_ray.bounds import check_finite
from meltr_ray.config.user_code import called
from meltr_ray.errors import ConfigError, check
from meltr_ray.workload import CONSTANT, OWN_SETS, SHUFFLED, Metric, Workload

MOST_RESAMPLES = 100_000
NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*")
"""Of a loss or a metric: it becomes part of names of folders and columns."""


def check_declared(workload: Workload) -> None:
    """Raises ConfigError: a name that can't be one, stands twice or is that of no loss; bounds of what isn't bounded by them."""
    losses = called(workload, "losses", lambda: workload.losses)
    _check_names(workload, "losses", losses)
    metrics = called(workload, "metrics", lambda: workload.metrics)
    check(
        isinstance(metrics, Mapping),
        "workload",
        workload.source,
        f"metrics is a {type(metrics).__name__}; give a dictionary, name -> Metric",
    )
    _check_names(workload, "metrics", list(metrics))
    for name, metric in metrics.items():
        check(
            isinstance(metric, Metric),
            "workload",
            workload.source,
            f"metrics[{name!r}] is a {type(metric).__name__}; give a Metric, such as Metric('%')",
        )
        check_metric(workload, name, metric)
    for member in ("controls", "primaries", "default_losses"):
        value = called(workload, member, lambda: getattr(workload, member))
        if value:
            _check_names(workload, member, value)
            _check_known(workload, member, value, workload.offered(), "loss")
    sets = called(workload, "loss_sets", lambda: workload.loss_sets)
    check(
        isinstance(sets, Mapping),
        "workload",
        workload.source,
        f"loss_sets is a {type(sets).__name__}; give a dictionary, name -> auxiliary losses",
    )
    for name, chosen in sets.items():
        check(
            name not in OWN_SETS,
            "workload",
            workload.source,
            f"loss_sets names {name}, which losses.set={name} has already; call it otherwise",
        )
        _check_names(workload, f"loss_sets[{name!r}]", chosen)
        _check_known(workload, f"loss_sets[{name!r}]", chosen, workload.offered(), "loss")
    check_planted(workload)
    for member in ("paths", "prediction_settings", "preparation_settings"):
        if not (given := getattr(workload, member)):
            continue
        _check_names(workload, member, given)
        bare = [name.removeprefix("workload.") for name in given]
        known = [item.name for item in dataclasses.fields(workload)]
        _check_known(workload, member, [name for name in bare if name.partition(".")[0] not in workload.groups], known, "setting")
    for name in (name.removeprefix("workload.") for name in workload.paths):
        value = getattr(workload, name, None)
        check(
            value is None or isinstance(value, (str, Path)),
            "workload",
            workload.source,
            f"paths names {name}, which is {value!r}; make it a text, or take it out",
        )
    workers = workload.loader_workers
    check(
        isinstance(workers, int) and workers >= 0, "workload", workload.source, f"loader_workers is {workers!r}; give a number of processes"
    )
    resamples = workload.resamples
    check(isinstance(resamples, int) and 0 <= resamples <= MOST_RESAMPLES, "workload", workload.source,
          f"resamples is {resamples!r}; give a number from 0 to {MOST_RESAMPLES}")  # fmt: skip
    encoders = called(workload, "encoders", lambda: workload.encoders)
    check(isinstance(encoders, (tuple, list)) and all(isinstance(each, (tuple, list)) and all(isinstance(name, str) for name in each) for each in encoders),
          "workload", workload.source, f"encoders is {encoders!r}; give a tuple of tuples of names, such as (('body',),)")  # fmt: skip
    for member in ("rehearsed", "per_example"):
        value = getattr(workload, member)
        check(isinstance(value, bool), "workload", workload.source, f"{member} is {value!r}; give True or False")
    for item in dataclasses.fields(workload):
        check_finite(f"workload.{item.name}", getattr(workload, item.name))
    check_bounds(workload)


def check_metric(workload: Workload, name: str, metric: Metric) -> None:
    wanted = {
        "unit": (str, "a text"),
        "higher": (bool, "True or False"),
        "digits": (int, "a whole number"),
        "label": (str, "a text"),
        "meaning": (str, "a text"),
    }
    for field, (kind, words) in wanted.items():
        value = getattr(metric, field)
        check(
            isinstance(value, kind) and not (kind is int and isinstance(value, bool)),
            "workload",
            workload.source,
            f"metrics[{name!r}] has {field}={value!r}; give {words}",
        )
    check(metric.digits >= 0, "workload", workload.source, f"metrics[{name!r}] has digits={metric.digits}; give 0 or more")
    good = metric.margin is None or (isinstance(metric.margin, (int, float)) and 0 < metric.margin < float("inf"))
    check(good, "workload", workload.source, f"metrics[{name!r}] has margin={metric.margin!r}; give a number above 0")


def check_planted(workload: Workload) -> None:
    """A control is none of what it is held against, and a loss of one's own doesn't take the name of one that is planted."""
    genuine = [loss for loss in workload.losses if loss not in workload.controls]
    check(bool(genuine), "workload", workload.source, "controls names every loss; leave the primary out")
    for primary in workload.primaries or workload.losses[:1]:
        check(
            primary not in workload.controls,
            "workload",
            workload.source,
            f"controls names {primary}, which is the primary loss; take it out",
        )
    taken = [CONSTANT] + [SHUFFLED] * workload.defines("control")
    for name in taken:
        check(
            name not in workload.losses or name in workload.controls,
            "workload",
            workload.source,
            f"losses names {name}, as the planted control is called; call it otherwise",
        )


def check_bounds(workload: Workload) -> None:
    settings = [item.name for item in dataclasses.fields(workload)]
    _check_known(workload, "bounds", workload.bounds, settings, "setting")
    for name, pair in workload.bounds.items():
        good = (
            isinstance(pair, (tuple, list))
            and len(pair) == 2
            and all(isinstance(end, (int, float)) and not math.isnan(end) for end in pair)
        )
        check(good and pair[0] <= pair[1], "workload", workload.source, f"bounds of {name} are {pair}; give (least, greatest)")
        value = getattr(workload, name)
        if value is not None:
            check(
                isinstance(value, (int, float)),
                "workload",
                workload.source,
                f"bounds has {name}, which is {value!r} and no number; take it out",
            )
            check(pair[0] <= value <= pair[1], f"workload.{name}", value, f"must lie between {pair[0]:g} and {pair[1]:g}; change it")


def _check_names(workload: Workload, member: str, names: Any) -> None:
    good = isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)
    check(good, "workload", workload.source, f"{member} is {names!r}; give a tuple of names, such as {_as_names(names)}")
    check(bool(names), "workload", workload.source, f"names no {member}; give at least one")
    for name in names:
        check(
            NAME.fullmatch(name) is not None,
            "workload",
            workload.source,
            f"{member} has {name!r}, and names become parts of file names; take letters, digits and _ - + . after the first",
        )
        check(list(names).count(name) == 1, "workload", workload.source, f"{member} names {name} twice; remove one")


def _as_names(given: Any) -> str:
    """What was meant, as far as that can be told."""
    if isinstance(given, (tuple, list, set, dict)) and given:
        names = [str(name) for name in given]
    else:
        names = [given[:20]] if isinstance(given, str) else ["one", "another"]
    return str(tuple(names[:3]))


def _check_known(workload: Workload, member: str, names: Iterable[str], known: Iterable[str], kind: str) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), 1)
            raise ConfigError(f"workload={workload.source}: {member} names {name}, which is no {kind}; "
                              + (f"did you mean {near[0]}" if near else f"use one of {', '.join(known)}"))  # fmt: skip
