"""The evaluation of a workload, by its metrics or by rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from meltr_ray.config.user_code import called
from meltr_ray.errors import check
from meltr_ray.training.difference import copied, difference
from meltr_ray.training.evaluation import checked, predicted, quietly
from meltr_ray.training.splits import Part, examples
from meltr_ray.workload import Workload

EVALUATED = 64
"""Validation examples that the evaluation is tried on."""
CLOSE = 1e-4
"""Difference, also relative, up to which two values of one metric are alike."""


def check_evaluation(workload: Workload, module: nn.Module) -> dict[str, float]:
    """Every declared metric is there, finite and the same at every call; there is a row for each example. Returns the metrics."""
    some, cpu = some_of(examples(workload, "validation")), torch.device("cpu")
    member = member_that_scores(workload)
    found, again = (metrics_of(workload, module, some, cpu) for _ in range(2))
    for name in workload.metrics:
        check(
            bool(np.isfinite(found[name])),
            "workload",
            workload.source,
            f"{member} gave {name} = {found[name]} on {len(some)} validation examples; return a finite number",
        )
        check(
            found[name] == again[name],
            "workload",
            workload.source,
            f"two evaluations of the same weights give {name} = {found[name]:g} and {again[name]:g}; leave out what is random, or draw it from torch's generator",
        )
    if workload.defines("predict"):
        rows = called(workload, "predict", lambda: predicted(workload, module, some, cpu))
        check_rows(workload, rows)
        if workload.defines("evaluate") and workload.defines("measure"):
            check_agree(workload, found, rows)
    return found


def member_that_scores(workload: Workload) -> str:
    """The method that metrics come from, as its author knows it."""
    return "evaluate" if workload.defines("evaluate") else "measure"


def metrics_of(workload: Workload, module: nn.Module, some: Sequence[Any], device: torch.device) -> dict[str, float]:
    """A value for each metric; the module comes back in the mode that evaluation puts it in."""

    member = member_that_scores(workload)

    def evaluated() -> dict[str, float]:
        if member == "evaluate":
            found = workload.evaluate(module, some, device)
        else:
            rows = predicted(workload, module, some, device)
            found = called(workload, member, lambda: workload.measure(rows))
        on = next((name or "the module" for name, each in module.named_modules() if each.training), None)
        check(on is None, "workload", workload.source, f"an evaluation puts {on} into training mode; leave it in evaluation mode")
        return checked(workload, found, member)

    return called(workload, "evaluate" if member == "evaluate" else "predict", lambda: quietly(module, evaluated))


def check_agree(workload: Workload, found: dict[str, float], rows: list[dict[str, Any]]) -> None:
    """Training takes `evaluate`, evaluate.py takes rows: both measure the same."""
    measured = checked(workload, called(workload, "measure", lambda: workload.measure(rows)), "measure")
    for name in workload.metrics:
        check(math.isclose(found[name], measured[name], rel_tol=CLOSE, abs_tol=CLOSE), "workload", workload.source,
              f"evaluate gives {name} = {found[name]:g} where measure gives {measured[name]:g} for predict's rows; let both measure the same, "
              "or leave one out")  # fmt: skip


def some_of(split: Sequence[Any]) -> Sequence[Any]:
    """Examples from the first to the last, or all where there are few."""
    if len(split) <= EVALUATED:
        return split
    return Part(split, tuple(np.linspace(0, len(split) - 1, EVALUATED).round().astype(int).tolist()))


def check_rows(workload: Workload, rows: list[dict[str, Any]]) -> None:
    """`measure` leaves them as they are."""
    if not workload.defines("measure"):
        return
    before = copied(rows)
    called(workload, "measure", lambda: workload.measure(rows))
    where = difference(before, rows)
    check(where is None, "workload", workload.source, f"measure changes its rows{f' in {where}' if where else ''}; leave them as they are")
