"""What a workload says of itself has the form that the report and a checkpoint need."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from meltr_ray.config.declared import NAME
from meltr_ray.config.user_code import called
from meltr_ray.errors import check
from meltr_ray.training.splits import SPLITS
from meltr_ray.workload import Workload


def check_said(workload: Workload) -> None:
    """What the report and a checkpoint take from a workload has the form that they need."""

    def checked(member: str, good: Callable[[Any], bool], wanted: str) -> None:
        found = called(workload, member, getattr(workload, member))
        said = f"a {type(found).__name__}" if isinstance(found, (str, dict, list, tuple)) and not isinstance(found, str) else repr(found)
        check(called(workload, member, lambda: good(found)), "workload", workload.source, f"{member} gave {said}; return {wanted}")

    checked("title", lambda x: isinstance(x, str) and NAME.fullmatch(x) is not None, "a name of letters, digits, _ and -, for folders")
    checked("caveats", lambda x: isinstance(x, (list, tuple)) and all(isinstance(each, str) for each in x), "a list of sentences")
    checked(
        "fingerprint", lambda x: isinstance(x, dict) and all(isinstance(each, str) for each in x.values()), "a dictionary, name -> text"
    )
    checked("fingerprint", lambda x: x == workload.fingerprint(), "the same at every call, as it tells whether data are the same")
    checked("describe", lambda x: isinstance(x, dict) and bool(json.dumps(x)), "a dictionary, with `name` and `description`")
    checked("baselines", _nested_numbers, "{split: {name: {metric: number}}}")
    check_baselines(workload)


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


def _nested_numbers(x: Any) -> bool:
    named = list(x.values()) if isinstance(x, dict) else [None]
    values = [each for one in named for each in (one.values() if isinstance(one, dict) else [None])]
    numbers = [number for each in values for number in (each.values() if isinstance(each, dict) else [None])]
    return all(isinstance(number, (int, float)) and np.isfinite(number) for number in numbers)
