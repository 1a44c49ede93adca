"""What a workload says of itself has the form that the report and a checkpoint need."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from meltr_ray.config.declared import NAME
from meltr_ray.config.user_code import called
from meltr_ray.errors import check
from meltr_ray.training.splits import SPLITS
from meltr_ray.workload import Workload


def check_said(workload: Workload) -> None:
    """What the report and a checkpoint take from a workload has the form that they need."""

    def checked(member: str, fault_in: Callable[[Any], str | None], wanted: str) -> None:
        found = called(workload, member, getattr(workload, member))
        fault = called(workload, member, lambda: fault_in(found))
        check(fault is None, "workload", workload.source, f"{member} gave {fault}; return {wanted}")

    checked("title", _in_title, "a name of letters, digits, _ and -, for folders")
    checked("caveats", _in_sentences, "a list of sentences")
    checked("fingerprint", _in_checksums, "a dictionary, name -> text")
    checked("identity", _in_checksums, "a dictionary, name -> text")
    checked("describe", _in_description, "a dictionary, with `name` and `description`")
    checked("baselines", _in_baselines, "{split: {name: {metric: number}}}")
    check_checksums_stay(workload)
    check_baselines(workload)


def check_checksums_stay(workload: Workload) -> None:
    """They tell whether data are the same, so the same data give them again."""
    for member in ("fingerprint", "identity"):
        first, again = (called(workload, member, getattr(workload, member)) for _ in range(2))
        other = sorted(name for name in first.keys() | again.keys() if first.get(name) != again.get(name))
        check(not other, "workload", workload.source, f"{member} gave two texts for {', '.join(other)}; return the same at every call, "
              "as it tells whether data are the same")  # fmt: skip


def check_baselines(workload: Workload) -> None:
    """Their splits are known, and each has one of the metrics at least, or the report would leave them out."""
    known = (*workload.metrics, *workload.reported_metrics)
    for split, named in workload.baselines().items():
        check(split in SPLITS, "workload", workload.source, f"baselines has the split {split}; use {', '.join(SPLITS)}")
        for name, values in named.items():
            check(
                any(metric in known for metric in values),
                "workload",
                workload.source,
                f"baselines gives {', '.join(values) or 'nothing'} for {name}, which is no metric; use one of {', '.join(known)}",
            )


def _in_title(x: Any) -> str | None:
    return None if isinstance(x, str) and NAME.fullmatch(x) else repr(x)


def _in_sentences(x: Any) -> str | None:
    if not isinstance(x, (list, tuple)):
        return _shown(x)
    return next((_shown(each) for each in x if not isinstance(each, str)), None)


def _in_checksums(x: Any) -> str | None:
    if not isinstance(x, dict):
        return _shown(x)
    return next((f"{_shown(each)} for {name!r}" for name, each in x.items() if not isinstance(each, str)), None)


def _in_description(x: Any) -> str | None:
    return None if isinstance(x, dict) and json.dumps(x) else _shown(x)


def _in_baselines(x: Any, depth: int = 0, place: str = "") -> str | None:
    """Dictionaries down to the numbers, three of them."""
    where = f" for {place}" if place else ""
    if depth == 3:
        return (
            None if isinstance(x, (int, float)) and math.isfinite(x) else f"{_shown(x)}{where}, where a finite number of Python's is needed"
        )
    if not isinstance(x, dict):
        return f"{_shown(x)}{where}"
    return next((fault for name, each in x.items() if (fault := _in_baselines(each, depth + 1, f"{place}[{name!r}]"))), None)


def _shown(x: Any) -> str:
    return f"a {type(x).__name__}" if isinstance(x, (dict, list, tuple, bytes)) else repr(x)
