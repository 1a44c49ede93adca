"""Columns of the results table: fixed ones, and open families that each run fills with names of its own.

    metric.<name>    what the workload measures           setting.<name>   the settings of the run, typed by their values
    loss.<name>      mean since the last row              slope.<name>     d g_phi / d l, mean since the last row
    share.<name>     of the step before the row: a_t <g_t, g> / <g, g>, g = sum_t a_t g_t; of ways that learn
    effect.<name>    how much the loss lowers the primary loss of held-out batches, mean of the looks since the last row: to first order
                     (J v, `meltr`, `own`, `aligned`), or in combiner.horizon steps (`look_ahead`, `meltr_gated`; `meltr_ahead`: for a slope of 1),
                     or at the end of its try (`tryout`)
    effect_square.<name>   mean of its square

A trial's table has the columns of its own run. Tables of several trials are joined by `unify`: what a trial lacks is null there.
Every field says in its metadata what it means, and its unit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from meltr_ray.workload import Metric

VERSION = "2"
"""Of the schema, in its metadata. Version 1, without one, had bare columns of fixed names (migration.py)."""
METRIC, LOSS, SLOPE, SHARE, EFFECT, EFFECT_SQUARE, SETTING = FAMILIES = (
    "metric.",
    "loss.",
    "slope.",
    "share.",
    "effect.",
    "effect_square.",
    "setting.",
)
SEARCHES = ("learning_rate_search", "weight_search", "settings_search", "space_search")
"""Phases that find settings for arms; none of their trials is compared."""
FIXED: dict[str, tuple[pa.DataType, str, str]] = {
    "trial": (pa.string(), "name of the trial: arm, learning rate where it is searched, and seed", ""),
    "arm": (pa.string(), "name of the configuration that the trial repeats", ""),
    "phase": (pa.string(), "learning_rate_search, weight_search, settings_search, space_search, screening, confirmation, comparison, ablation, search or single", ""),
    "split": (pa.string(), "split that was evaluated: validation, or test (once, after training)", ""),
    "status": (pa.string(), "running, stopped (by Ctrl-C; goes on when resumed; or at a rung of sweep.asha, see error), finished, diverged (a loss was not finite) or failed (see error)", ""),
    "error": (pa.string(), "one line on why a trial diverged, failed or was stopped at a rung", ""),
    "step": (pa.int64(), "optimiser steps done", "count"),
    "best_step": (pa.int64(), "step of the best validation score so far; the test split is scored with its weights", "count"),
    "time": (pa.timestamp("us", tz="UTC"), "when the row was written", "UTC"),
    "seconds": (pa.float64(), "training time so far, meta steps included, evaluation and checkpoints left out", "s"),
    "meta_seconds": (pa.float64(), "part of `seconds` spent in meta steps", "s"),
    "elapsed": (pa.float64(), "time of the run so far on each of its workers, start, evaluation and checkpoints included", "s"),
    "peak_memory_bytes": (pa.int64(), "largest resident memory of worker 0 so far, GPU memory if it has one", "bytes"),
    "score": (pa.float64(), "the workload's first metric, its negative where lower is better: higher is always better", ""),
    "resampled": (pa.list_(pa.field("element", pa.float64())), "the score on resamples of the examples' sources (bootstrap), drawn alike in every trial; null where there are no rows", ""),
    "train_loss": (pa.float64(), "g_phi(l), mean over the steps since the last row", ""),
    "learning_rate": (pa.float64(), "learning rate of w at this step", ""),
    "meta_steps": (pa.int64(), "meta steps done", "count"),
    "hypergradient_norm": (pa.float64(), "norm of phi's gradient before clipping, mean since the last row", ""),
    "direct_norm": (pa.float64(), "norm of the direct (regulariser) term of phi's gradient, mean since the last row", ""),
    "implicit_norm": (pa.float64(), "norm of the implicit term of phi's gradient, mean since the last row", ""),
    "solver_outcome": (pa.string(), "how the solves since the last row ended: the gravest outcome seen", ""),
    "solver_residual": (pa.float64(), "relative residual of the solve, mean since the last row; null where not computed", ""),
    "meta_forward_passes": (pa.float64(), "forward passes of a meta step beyond those of the inner step, mean since the last row", "count"),
    "meta_backward_passes": (pa.float64(), "backward passes of a meta step, mean since the last row", "count"),
    "jvp_error": (pa.float64(), "relative error of J v, measured every aid.check_every meta steps, mean since the last row", ""),
    "hvp_error": (pa.float64(), "relative error of H v, measured every aid.check_every meta steps, mean since the last row", ""),
    "negative_slopes": (pa.float64(), "share of losses with a negative slope, mean since the last row", ""),
}  # fmt: skip
"""Name -> type, meaning and unit, of the columns that every run has."""


@dataclass(frozen=True)
class Columns:
    """The columns of one run."""

    schema: pa.Schema
    constant: dict[str, Any]
    """Cells that are the same in every row: the settings."""

    @classmethod
    def of(cls, metrics: Mapping[str, Metric], losses: Sequence[str], settings: Mapping[str, Any], with_slopes: bool = True,
           learns: bool = False) -> Columns:  # fmt: skip
        """`settings`: dotted name -> value. A number or a truth value is kept as it is; lists and dictionaries as JSON.

        `with_slopes`: whether each loss has one slope; a loss by example has as many as a batch. `learns`: whether shares and effects are taken.
        """
        cells = {SETTING + name: value if isinstance(value, (bool, int, float, str, type(None))) else json.dumps(value)
                 for name, value in settings.items()}  # fmt: skip
        measured = [metric_field(name, metric) for name, metric in metrics.items()]
        means = [field(f"{LOSS}{loss}", pa.float64(), f"loss {loss}, mean since the last row") for loss in losses]
        slopes = [
            field(f"{SLOPE}{loss}", pa.float64(), f"slope d g_phi / d l of {loss}, mean since the last row")
            for loss in losses
            if with_slopes
        ]
        shares = [
            field(f"{SHARE}{loss}", pa.float64(), f"part of the step before the row that {loss} stands for") for loss in losses if learns
        ]
        effects = [field(f"{family}{loss}", pa.float64(), f"{meaning} {loss} lowers the primary loss of held-out batches, mean since the last row")
                   for loss in losses if learns for family, meaning in ((EFFECT, "how much"), (EFFECT_SQUARE, "square of how much"))]  # fmt: skip
        chosen = [setting_field(name, pa.scalar(value).type) for name, value in cells.items()]
        return cls(make_schema([*fixed_fields(), *measured, *means, *slopes, *shares, *effects, *chosen]), cells)


def make_schema(fields: Iterable[pa.Field]) -> pa.Schema:
    """A schema of this version: the fixed columns first, then family by family, each in the order given."""

    def family(one: pa.Field) -> int:
        return next((number for number, prefix in enumerate(FAMILIES, 1) if one.name.startswith(prefix)), 0)

    return pa.schema(sorted(fields, key=family), metadata={"version": VERSION})


def field(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> pa.Field:
    return pa.field(name, kind, metadata={"meaning": meaning, "unit": unit})


def fixed_fields() -> list[pa.Field]:
    return [field(name, *about) for name, about in FIXED.items()]


def metric_field(name: str, metric: Metric) -> pa.Field:
    return field(METRIC + name, pa.float64(), metric.meaning or metric.shown(name), metric.unit)


def setting_field(name: str, kind: pa.DataType) -> pa.Field:
    return field(name, kind, "setting, see --help")


def unify(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """The columns of all; a column has the first one's meaning, and a type that holds what each of them has."""
    fields = {one.name: one for one in fixed_fields()}
    for schema in schemas:
        for one in schema:
            known = fields.get(one.name)
            fields[one.name] = one if known is None else known.with_type(common(known.type, one.type))
    return make_schema(fields.values())


def common(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """A setting that was never set (null) takes the other's type; integers and floats are floats; all else is text."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    numbers = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (a, b))
    return pa.float64() if numbers else pa.string()


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` in the columns of a unified schema; numbers that become text are written as JSON has them."""
    if table.schema.equals(schema):
        return table.cast(schema)  # only meanings differ
    names = set(table.column_names)

    def column(one: pa.Field) -> pa.Array | pa.ChunkedArray:
        if one.name not in names:
            return pa.nulls(len(table), one.type)
        found = table[one.name]
        if pa.types.is_string(one.type) and not (pa.types.is_string(found.type) or pa.types.is_null(found.type)):
            return pa.array([None if value is None else json.dumps(value) for value in found.to_pylist()], pa.string())
        return found.cast(one.type)

    return pa.Table.from_arrays([column(one) for one in schema], schema=schema)
