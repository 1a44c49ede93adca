"""What a workload declares, losses, metrics and bounds, checked once its settings are known."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from meltr_ray.config.user_code import called
from meltr_ray.errors import ConfigError, check
from meltr_ray.workload import Metric, Workload

NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*")
"""Of a loss or a metric: it becomes part of names of folders and columns."""


def check_declared(workload: Workload) -> None:
    """Raises ConfigError: a name that can't be one, stands twice or is that of no loss; bounds of what isn't bounded by them."""
    losses = called(workload, "losses", lambda: workload.losses)
    _check_names(workload, "losses", losses)
    metrics = called(workload, "metrics", lambda: workload.metrics)
    check(isinstance(metrics, Mapping), "workload", workload.source, f"metrics is a {type(metrics).__name__}; give a dictionary, name -> Metric")
    _check_names(workload, "metrics", list(metrics))
    for name, metric in metrics.items():
        check(isinstance(metric, Metric), "workload", workload.source, f"metrics[{name!r}] is a {type(metric).__name__}; give a Metric, such as Metric('%')")
    for member in ("controls", "primaries", "default_losses"):
        value = called(workload, member, lambda: getattr(workload, member))
        if value:
            _check_names(workload, member, value)
            _check_known(workload, member, value, workload.offered(), "loss")
    for name, chosen in called(workload, "loss_sets", lambda: workload.loss_sets).items():
        _check_known(workload, f"loss_sets[{name!r}]", chosen, workload.offered(), "loss")
    check_bounds(workload)


def check_bounds(workload: Workload) -> None:
    settings = [item.name for item in dataclasses.fields(workload)]
    _check_known(workload, "bounds", workload.bounds, settings, "setting")
    for name, pair in workload.bounds.items():
        good = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(end, (int, float)) for end in pair)
        check(good, "workload", workload.source, f"bounds of {name} are {pair}; give (least, greatest)")
        value = getattr(workload, name)
        if value is not None:
            check(isinstance(value, (int, float)), "workload", workload.source, f"bounds has {name}, which is {value!r} and no number; take it out")
            check(pair[0] <= value <= pair[1], f"workload.{name}", value, f"must lie between {pair[0]:g} and {pair[1]:g}; change it")


def _check_names(workload: Workload, member: str, names: Any) -> None:
    good = isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)
    check(good, "workload", workload.source, f"{member} is {names!r}; give a tuple of names, such as ({str(names)[:20]!r},)")
    check(bool(names), "workload", workload.source, f"names no {member}; give at least one")
    for name in names:
        check(NAME.fullmatch(name) is not None, "workload", workload.source,
              f"{member} has {name!r}, and names become parts of file names; take letters, digits, _ and -")
        check(list(names).count(name) == 1, "workload", workload.source, f"{member} names {name} twice; remove one")


def _check_known(workload: Workload, member: str, names: Iterable[str], known: Iterable[str], kind: str) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), 1)
            raise ConfigError(f"workload={workload.source}: {member} names {name}, which is no {kind}; "
                              + (f"did you mean {near[0]}" if near else f"use one of {', '.join(known)}"))  # fmt: skip
