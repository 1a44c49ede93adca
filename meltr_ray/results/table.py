"""The results table: one row a trial and evaluation; its columns, its writer and its readers.

The table is the record of a sweep: schedulers, resuming and analysis read it and nothing else. Each trial owns one small
Parquet file, `<sweep>/trials/<trial>/results.parquet`, rewritten whole, so that a reader never sees half a row and two trials
never wait for each other. `<sweep>/results.parquet` gathers them.

Beside the columns that every run has stand four open families: `metric.<name>` of the workload's metrics, `loss.<name>` and
`slope.<name>` of the loss set, and `setting.<dotted name>`. A trial's file has the columns of its own run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from meltr_ray.results.migration import migrated
from meltr_ray.storage import put
from meltr_ray.workload import Metric

FILE = "results.parquet"
VERSION = "2"
"""Of the columns; tables of version 1 are migrated when they are read."""
STATUSES = ("failed", "diverged", "finished", "stopped", "running")
"""By gravity, the first that any row of a trial has is the trial's. A resumed sweep goes on with a stopped trial, and runs a failed
one again, since whatever stopped it may be mended; not a diverged one, which would only diverge again."""
ENDED = ("finished", "diverged", "failed")
FINAL = ("finished", "diverged")
"""Statuses that a resumed sweep leaves as they are."""

COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "trial": (pa.string(), "name of the trial: arm and seed"),
    "arm": (pa.string(), "name of the configuration that the trial repeats"),
    "phase": (pa.string(), "learning_rate_search, comparison, ablation, search or single"),
    "split": (pa.string(), "split that was evaluated: validation, or test (once, after training)"),
    "status": (pa.string(), "running, stopped (by Ctrl-C), finished, diverged (a loss was not finite) or failed (see error)"),
    "error": (pa.string(), "one line on why a trial diverged or failed"),
    "step": (pa.int64(), "optimiser steps done (count)"),
    "best_step": (pa.int64(), "step of the best validation score so far; the test split is scored with its weights"),
    "time": (pa.timestamp("us", tz="UTC"), "when the row was written (UTC)"),
    "seconds": (pa.float64(), "training time so far, meta steps included, evaluation and checkpoints left out (s)"),
    "meta_seconds": (pa.float64(), "part of `seconds` spent in meta steps (s)"),
    "peak_memory_bytes": (pa.int64(), "largest resident memory of worker 0 so far, GPU memory if it has one (bytes)"),
    "score": (pa.float64(), "the workload's first metric, its sign turned where lower is better: higher is better"),
    "train_loss": (pa.float64(), "g_phi(l), mean over the steps since the last row"),
    "learning_rate": (pa.float64(), "learning rate of w at this step"),
    "meta_steps": (pa.int64(), "meta steps done (count)"),
    "hypergradient_norm": (pa.float64(), "norm of phi's gradient before clipping, mean since the last row"),
    "direct_norm": (pa.float64(), "norm of the direct (regulariser) term of phi's gradient, mean since the last row"),
    "implicit_norm": (pa.float64(), "norm of the implicit term of phi's gradient, mean since the last row"),
    "solver_outcome": (pa.string(), "how the solves since the last row ended: the gravest outcome seen"),
    "solver_residual": (pa.float64(), "relative residual of the solve, mean since the last row; null where not computed"),
    "meta_forward_passes": (pa.float64(), "forward passes of a meta step beyond those of the inner step, mean since the last row"),
    "meta_backward_passes": (pa.float64(), "backward passes of a meta step, mean since the last row"),
    "jvp_error": (pa.float64(), "relative error of J v, measured every aid.check_every meta steps, mean since the last row"),
    "hvp_error": (pa.float64(), "relative error of H v, measured every aid.check_every meta steps, mean since the last row"),
    "negative_slopes": (pa.float64(), "share of losses with a negative slope, mean since the last row"),
}
"""Columns that every table has: type and meaning."""
FAMILIES = {
    "metric.": "{name}, as evaluated",
    "loss.": "loss {name}, mean since the last row",
    "slope.": "slope d g_phi / d l of {name}, mean since the last row",
    "setting.": "setting {name}, see --help",
}
"""Beginning of the names of an open family -> meaning of its columns."""


def settings_row(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted settings as columns of the table; lists, dictionaries and what else isn't plain as JSON."""
    plain = (str, bool, int, float, type(None))
    return {f"setting.{name}": value if isinstance(value, plain) else json.dumps(value) for name, value in settings.items()}


@dataclass
class RunningMeans:
    """Means of numbers since the last row; of named outcomes, the gravest one seen. Plain data, so a checkpoint keeps it."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    outcome: str | None = None
    gravity: int = -1

    def add(self, numbers: dict[str, Any]) -> None:
        """Add one observation of each name; None and NaN count as not observed."""
        for name, value in numbers.items():
            if name == "solver_outcome":
                if value.gravity > self.gravity:
                    self.outcome, self.gravity = value.name.lower(), value.gravity
            elif value is not None and value == value:
                self.sums[name] = self.sums.get(name, 0.0) + float(value)
                self.counts[name] = self.counts.get(name, 0) + 1

    def values(self) -> dict[str, Any]:
        return {name: total / self.counts[name] for name, total in self.sums.items()} | {"solver_outcome": self.outcome}


def write(path: Path, table: pa.Table) -> None:
    """Write Parquet, whole or not at all."""
    put(path, lambda file: pq.write_table(table, file))


def read(path: Path) -> pa.Table:
    """A table of this version, migrated if it was written by an older one."""
    table = pq.read_table(path)
    known = (table.schema.metadata or {}).get(b"version", b"1").decode()
    return table if known == VERSION else migrated(table, COLUMNS).replace_schema_metadata({"version": VERSION})


def append(folder: Path, row: dict[str, Any], metrics: Mapping[str, Metric] | None = None) -> None:
    """Add one row to the table of the trial in `folder`, in place of rows that it makes void.

    A resumed trial repeats evaluations: a row replaces that of the same step and split, and that of an earlier failure; a trial
    that goes on isn't stopped any more.

    Args:
        metrics: of the workload; unit and meaning of their columns.

    Raises:
        KeyError: a column of no family.
    """
    unknown = [name for name in row if name not in COLUMNS and not name.startswith(tuple(FAMILIES))]
    if unknown:
        raise KeyError(f"columns that the results table does not have: {', '.join(sorted(unknown))}")
    rows = [old for old in read_trial(folder) if old["status"] != "failed" and (old["step"], old["split"]) != (row["step"], row["split"])]
    rows = [old | {"status": "running"} if old["status"] == "stopped" else old for old in rows] + [row]
    write(Path(folder) / FILE, make(rows, metrics or {}))


def make(rows: list[dict[str, Any]], metrics: Mapping[str, Metric]) -> pa.Table:
    """A table of these rows, with the columns that any of them has."""
    names = [*COLUMNS, *sorted({name for row in rows for name in row} - COLUMNS.keys(), key=_place)]
    fields = [pa.field(name, _kind(name, [row.get(name) for row in rows]), metadata=_about(name, metrics)) for name in names]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields, metadata={"version": VERSION}))


def read_trial(folder: Path) -> list[dict[str, Any]]:
    """Rows of one trial, oldest first; empty where it has written none."""
    path = Path(folder) / FILE
    return read(path).to_pylist() if path.exists() else []


def is_final(folder: Path) -> bool:
    """Whether a resumed sweep leaves the trial in `folder` as it is."""
    return any(row["status"] in FINAL for row in read_trial(folder))


def mark_stopped(sweep: Path) -> None:
    """Say of every trial that has begun and not ended that it was stopped; after Ctrl-C, when none runs any more."""
    for path in Path(sweep).glob(f"trials/*/{FILE}"):
        rows = read_trial(path.parent)
        if rows and not any(row["status"] in ENDED for row in rows):
            append(path.parent, rows[-1] | {"status": "stopped"})


def gather(sweep: Path) -> pa.Table:
    """Join the tables of all trials of `sweep` into `<sweep>/results.parquet` and return it; works on a running sweep."""
    table = joined([read(part) for part in sorted(Path(sweep).glob(f"trials/*/{FILE}"))])
    write(Path(sweep) / FILE, table)
    return table


def joined(tables: list[pa.Table]) -> pa.Table:
    """One table with the columns of all; where kinds differ, text beats numbers and numbers with a point beat whole ones."""
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables or [make([], {})]:
        for item in table.schema:
            kinds.setdefault(item.name, set()).add(item.type)
    about = {item.name: item.metadata for table in tables for item in table.schema}
    names = [*COLUMNS, *sorted(kinds.keys() - COLUMNS.keys(), key=_place)]
    schema = pa.schema([pa.field(name, _common(kinds.get(name, {COLUMNS[name][0]} if name in COLUMNS else set())), metadata=about.get(name))
                        for name in names], metadata={"version": VERSION})  # fmt: skip
    return pa.concat_tables([_as(table, schema) for table in tables] or [schema.empty_table()])


def _as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [table[item.name].cast(item.type) if item.name in table.column_names else pa.nulls(len(table), item.type) for item in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _place(name: str) -> tuple[int, str]:
    return next((at for at, family in enumerate(FAMILIES) if name.startswith(family)), len(FAMILIES)), name


def _kind(name: str, values: list[Any]) -> pa.DataType:
    if name in COLUMNS:
        return COLUMNS[name][0]
    if not name.startswith("setting."):
        return pa.float64()
    plain = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    return _common({plain[type(value)] for value in values if value is not None})


def _common(kinds: Iterable[pa.DataType]) -> pa.DataType:
    kinds = {kind for kind in kinds if kind != pa.null()}
    if len(kinds) == 1:
        return kinds.pop()
    if not kinds:
        return pa.null()
    return pa.float64() if kinds == {pa.int64(), pa.float64()} else pa.string()


def _about(name: str, metrics: Mapping[str, Metric]) -> dict[str, str]:
    if name in COLUMNS:
        return {"meaning": COLUMNS[name][1]}
    family = next(family for family in FAMILIES if name.startswith(family))
    own = name.removeprefix(family)
    if family == "metric." and own in metrics:
        metric = metrics[own]
        return {"meaning": metric.meaning or FAMILIES[family].format(name=own), "unit": metric.unit}
    return {"meaning": FAMILIES[family].format(name=own)}
