"""The results table: one row a trial and evaluation; its schema, its atomic writer and its reader.

The table is the record of a sweep: schedulers, resuming and analysis read it and nothing else. Each trial owns one small
Parquet file, `<sweep>/trials/<trial>/results.parquet`, rewritten to a temporary name and renamed, so that a reader never
sees half a row and two trials never wait for each other. `<sweep>/results.parquet` gathers them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FILE = "results.parquet"
FINAL = ("finished", "diverged", "failed")
"""Statuses of a trial that has ended. A resumed sweep runs a failed one again, whatever stopped it may be mended, but not a
diverged one, which would only diverge again."""

def config_row(config) -> dict[str, Any]:
    from meltr_ray.config import ABOUT_THE_COMMAND, to_flat
    return {f"setting.{k}": (json.dumps(v) if isinstance(v, (list, dict)) else v) for k, v in to_flat(config).items() if k not in ABOUT_THE_COMMAND and not k.startswith("sweep.")}


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


def write_atomically(path: Path, table: pa.Table) -> None:
    """Write Parquet to a temporary name beside `path`, flush it to disk and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "wb") as file:
        pq.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def append(folder: Path, row: dict[str, Any]) -> None:
    """Add one row to the table of the trial in `folder`, in place of rows that it makes void.

    A resumed trial repeats evaluations: a row replaces that of the same step and split, and that of an earlier failure.

    Raises:
        KeyError: the row has a column that the schema does not know.
    """
    path = Path(folder) / FILE
    rows = pq.read_table(path).to_pylist() if path.exists() else []
    rows = [old for old in rows if old["status"] != "failed" and (old["step"], old["split"]) != (row["step"], row["split"])]
    write_atomically(path, pa.Table.from_pylist([{k: r.get(k) for k in dict.fromkeys([*row, *(rows[0] if rows else [])])} for r in [*rows, row]]))


def read_trial(folder: Path) -> list[dict[str, Any]]:
    """Rows of one trial, oldest first; empty where it has written none."""
    path = Path(folder) / FILE
    return pq.read_table(path).to_pylist() if path.exists() else []


def is_final(folder: Path) -> bool:
    """Whether a resumed sweep leaves the trial in `folder` as it is."""
    return any(row["status"] in ("finished", "diverged") for row in read_trial(folder))


def gather(sweep: Path) -> pa.Table:
    """Join the tables of all trials of `sweep` into `<sweep>/results.parquet` and return it; works on a running sweep."""
    parts = sorted(Path(sweep).glob(f"trials/*/{FILE}"))
    table = pa.concat_tables([pq.read_table(part) for part in parts] or [pa.table({'phase': pa.array([], pa.string())})], promote_options='permissive')
    write_atomically(Path(sweep) / FILE, table)
    return table
