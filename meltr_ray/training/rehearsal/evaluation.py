"""The evaluation of a workload, by its metrics or by rows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from meltr_ray.config.user_code import called
from meltr_ray.errors import check
from meltr_ray.training.difference import difference
from meltr_ray.training.evaluation import checked, quietly
from meltr_ray.training.splits import Part, examples
from meltr_ray.workload import Workload

EVALUATED = 64
"""Validation examples that the evaluation is tried on."""


def check_evaluation(workload: Workload, module: nn.Module) -> dict[str, float]:
    """Every declared metric is there, finite and the same at every call; there is a row for each example. Returns the metrics."""
    some, cpu = some_of(examples(workload, "validation")), torch.device("cpu")
    found, again = (
        called(workload, "evaluate", lambda: checked(workload, quietly(module, lambda: workload.evaluate(module, some, cpu))))
        for _ in range(2)
    )
    for name in workload.metrics:
        check(
            bool(np.isfinite(found[name])),
            "workload",
            workload.source,
            f"evaluate gave {name} = {found[name]} on {len(some)} validation examples; return a finite number",
        )
        check(
            found[name] == again[name],
            "workload",
            workload.source,
            f"two evaluations of the same weights give {name} = {found[name]:g} and {again[name]:g}; leave out what is random, or draw it from torch's generator",
        )
    if not workload.defines("evaluate"):
        check_rows(workload, called(workload, "predict", lambda: quietly(module, lambda: workload.predict(module, some, cpu))), len(some))
    return found


def some_of(split: Sequence[Any]) -> Sequence[Any]:
    """Examples from the first to the last, or all where there are few."""
    if len(split) <= EVALUATED:
        return split
    return Part(split, tuple(np.linspace(0, len(split) - 1, EVALUATED).round().astype(int).tolist()))


def check_rows(workload: Workload, rows: list[dict[str, Any]], count: int) -> None:
    """A row an example at least, and `measure` leaves them as they are."""
    check(len(rows) >= count, "workload", workload.source, f"predict gave {len(rows)} rows for {count} examples; return one for each")
    before = copy.deepcopy(rows)
    called(workload, "measure", lambda: workload.measure(rows))
    where = difference(before, rows)
    check(where is None, "workload", workload.source, f"measure changes its rows{f' in {where}' if where else ''}; leave them as they are")
