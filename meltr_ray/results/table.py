"""The results table: one row a trial and evaluation; its writer and its reader (columns.py says what stands in it).

The table is the record of a sweep: schedulers, resuming and analysis read it and nothing else. Each trial owns one small
Parquet file, `<sweep>/trials/<trial>/results.parquet`, replaced as a whole at each row, so that a reader never sees half a row
and two trials never wait for each other. `<sweep>/results.parquet` gathers them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from meltr_ray.errors import check
from meltr_ray.results import migration
from meltr_ray.results.columns import VERSION, Columns, conform, unify
from meltr_ray.storage import put
from meltr_ray.storage.saying import say
from meltr_ray.storage.sealed import Damaged, check_file
from meltr_ray.storage.whole import stamp

FILE, SEAL = "results.parquet", b"sha256"
STATUSES = ("failed", "diverged", "finished", "stopped", "running")
"""The status of a trial is the gravest of its rows, which is the first here."""
FINAL = ("finished", "diverged")
"""Statuses that a resumed sweep leaves as they are. A stopped trial goes on, unless its `error` says that a rung ended it, and so does a failed
one, whatever stopped it may be mended; a diverged one would only diverge again."""


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


def append(folder: Path, row: dict[str, Any], columns: Columns) -> None:
    """Add one row to the table of the trial in `folder`, in place of rows that it makes void; the settings are filled in.

    A resumed trial repeats evaluations: a row replaces that of the same step and split, and that of an earlier failure; a trial
    that was stopped runs again.

    Raises:
        KeyError: the row has a column that the run does not declare.
    """
    unknown = set(row) - set(columns.schema.names)
    if unknown:
        raise KeyError(f"columns that the run does not declare: {', '.join(sorted(unknown))}")
    path = Path(folder) / FILE
    new = pa.Table.from_pylist([columns.constant | row], schema=columns.schema)
    old = load(path) if path.exists() else new.schema.empty_table()
    kept = [each | ({"status": "running"} if each["status"] == "stopped" else {}) for each in old.to_pylist()
            if each["status"] != "failed" and (each["step"], each["split"]) != (row["step"], row["split"])]  # fmt: skip
    write(path, join([pa.Table.from_pylist(kept, schema=old.schema), new]))


def load(path: Path) -> pa.Table:
    """A table of this version, whatever version the file has.

    Raises:
        ConfigError: it is damaged, or of a version to come.
    """
    check_file(path)
    try:
        with open(path, "rb") as file:  # by its path, pyarrow opens it twice, and a row may have been added in between
            table = pq.read_table(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Damaged(
            f"table={path}: can't be read as Parquet ({str(error).splitlines()[0]}); restore it, or delete it to run its trial again"
        ) from error
    table, seal = unsealed(table)
    if seal not in (None, seal_of(table)):
        raise Damaged(f"table={path}: isn't as it was written; restore it, or delete it to run its trial again")
    version = (table.schema.metadata or {}).get(b"version", b"1").decode()
    check(
        version in ("1", VERSION), "table", path, f"has version {version}, and this is a reader of {VERSION}; use the project's newer code"
    )
    return migration.migrate_table(table) if version == "1" else table


def load_of_trial(path: Path) -> pa.Table:
    """The table of a sweep's trial, which has the name of its folder.

    Raises:
        Damaged: as `load`, or the table is that of another trial.
    """
    table = load(path)
    for name in set(table["trial"].to_pylist()) - {path.parent.name}:
        raise Damaged(f"table={path}: is that of trial {name}; put it back, or delete it to run this trial again")
    return table


def write(path: Path, table: pa.Table) -> None:
    """Pages with their checksums; columns and number of rows are sealed in the file's metadata."""
    sealed = table.replace_schema_metadata((table.schema.metadata or {}) | {SEAL: seal_of(table)})
    put(path, lambda file: pq.write_table(sealed, file, write_page_checksum=True))


def unsealed(table: pa.Table) -> tuple[pa.Table, bytes | None]:
    """The table without its seal, and the seal; None of an older version."""
    metadata = dict(table.schema.metadata or {})
    seal = metadata.pop(SEAL, None)
    return table.replace_schema_metadata(metadata or None), seal


def seal_of(table: pa.Table) -> bytes:
    """SHA-256 of what a page's checksum doesn't cover: columns with their types and meanings, metadata, number of rows."""
    fields = [(field.name, str(field.type), sorted((field.metadata or {}).items())) for field in table.schema]
    return hashlib.sha256(repr((fields, sorted((table.schema.metadata or {}).items()), len(table))).encode()).hexdigest().encode()


def set_aside(folder: Path, gathered: pa.Table | None = None, then: Callable[[], str] = lambda: "its trial runs again") -> None:
    """Of a trial whose table is damaged, another trial's, or an older one than it had: rename it; one line says so.

    Args:
        gathered: the sweep's table, `whole_gathered`; what it has of the trial takes the table's place.
        then: what the line says comes next where it has nothing.
    """
    path = Path(folder) / FILE
    rows = gathered.filter(pc.equal(gathered["trial"], path.parent.name)) if gathered is not None else None
    try:
        if path.exists():
            table = (load_of_trial if path.parent.parent.name == "trials" else load)(path)
            if rows and _newest(table) < _newest(rows):
                raise Damaged(f"table={path}: is older than what the sweep's own table has of its trial")
    except Damaged as error:
        os.replace(path, path.with_name(f"{FILE}.damaged"))
        if rows:
            write(path, rows)
        what = "what the sweep's own table has of it takes its place" if rows else then()
        say(f"{str(error).partition(';')[0]}; it is set aside as {path.name}.damaged, and {what}")


def whole_gathered(sweep: Path) -> pa.Table | None:
    """The sweep's own table, if it is whole and was made of the tables that its trials have: it may have rows that those have lost.

    None where most trials lack rows that it has of them, as is so of that of another sweep, or where there is nothing to compare; and, with a
    line, where it is damaged.
    """
    path = Path(sweep) / FILE
    if not path.exists():
        return None
    try:
        table = load(path)
    except Damaged as error:
        say(f"{str(error).partition(';')[0]}; it is made anew of the tables of its trials")
        return None
    times: dict[str, set[Any]] = {}
    for name, time in zip(table["trial"].to_pylist(), table["time"].to_pylist()):
        times.setdefault(name, set()).add(time)
    own = {name: _times(path.parent / "trials" / name / FILE) for name in times}
    agreeing = [seen <= own[name] for name, seen in times.items() if own[name]]
    return table if 2 * sum(agreeing) > len(agreeing) else None


def _times(path: Path) -> set[Any]:
    """When the rows of a table were written; empty where it can't be read, or isn't there."""
    try:
        check_file(path)
        return set(pq.read_table(path, columns=["time"])["time"].to_pylist())
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return set()


def _newest(table: pa.Table) -> float:
    """Seconds since the epoch, of its newest row; 0 where no row has a time."""
    return max((time.timestamp() for time in table["time"].to_pylist() if time is not None), default=0.0)


def join(tables: Iterable[pa.Table]) -> pa.Table:
    """All rows, with the columns of all."""
    tables = list(tables)
    schema = unify(table.schema for table in tables)
    return pa.concat_tables([schema.empty_table(), *(conform(table, schema) for table in tables)])


def read_trial(folder: Path) -> list[dict[str, Any]]:
    """Rows of one trial, oldest first; empty where it has written none."""
    path = Path(folder) / FILE
    return load(path).to_pylist() if path.exists() else []


def status_of(statuses: Iterable[str]) -> str:
    """The status of a trial from those of its rows."""
    seen = set(statuses)
    return next((status for status in STATUSES if status in seen), "running")


def is_final(folder: Path) -> bool:
    """Whether a resumed sweep leaves the trial in `folder` as it is."""
    return any(row["status"] in FINAL or (row["status"] == "stopped" and row["error"]) for row in read_trial(folder))


def device_seconds(rows: Iterable[dict[str, Any]]) -> float:
    """What a trial cost until its last row: its time on each of its workers, times their number; NaN where no row has it.

    Time after the last row of a trial that diverged, failed or was killed is not in it.
    """
    found = [(row["elapsed"], row.get("setting.train.num_workers")) for row in rows if row.get("elapsed") is not None]
    return max((elapsed * max(1, workers or 0) for elapsed, workers in found), default=float("nan"))


def mark_stopped(sweep: Path) -> list[str]:
    """After Ctrl-C: trials of `sweep` that were running are `stopped`, by their last row. Returns their names."""
    return [path.parent.name for path in sorted(Path(sweep).glob(f"trials/*/{FILE}")) if stop(path.parent)]


def stop(folder: Path) -> bool:
    """The trial in `folder`, if it was running, is `stopped`, by its last row. Returns whether it was."""
    path = Path(folder) / FILE
    try:
        table = load(path)
    except Damaged:  # what resumes sets it aside
        return False
    rows = table.to_pylist()
    if not rows or status_of(row["status"] for row in rows) != "running":
        return False
    rows[-1]["status"] = "stopped"
    write(path, pa.Table.from_pylist(rows, schema=table.schema))
    return True


class Gathered:
    """`<sweep>/results.parquet`, made of the tables of its trials as often as it is asked for; what is as it was isn't read again."""

    def __init__(self, sweep: Path):
        self.sweep = Path(sweep)
        self.versions: dict[Path, tuple[int, int, int]] = {}
        """File of a trial -> what tells its versions apart."""
        self.tables: dict[bytes, pa.Table] = {}
        """Schema -> all rows that have it. One table for each trial would take 0.25 MB, whatever stands in it."""

    def __call__(self) -> pa.Table:
        """Join them, write the file and return the table; works on a running sweep."""
        table = self.joined()
        write(self.sweep / FILE, table)
        return table

    def joined(self) -> pa.Table:
        """The table alone, by trial. That of a trial which is damaged, or another trial's, is left out, and a line says so."""
        versions = {path: stamp(path) for path in sorted(self.sweep.glob(f"trials/*/{FILE}"))}
        void = pa.array([path.parent.name for path, version in self.versions.items() if versions.get(path) != version], pa.string())
        new = [self._load(path) for path, version in versions.items() if self.versions.get(path) != version]
        alike: dict[bytes, list[pa.Table]] = {}
        for table in (*(old.filter(pc.invert(pc.is_in(old["trial"], void))) for old in self.tables.values()), *new):
            if table:  # neither left out nor without rows
                alike.setdefault(table.schema.serialize().to_pybytes(), []).append(table)
        self.versions, self.tables = versions, {schema: pa.concat_tables(found).combine_chunks() for schema, found in alike.items()}
        table = join(self.tables.values())
        return table.take(pc.sort_indices(table["trial"]))  # which is stable: a trial's rows stay in their order

    def _load(self, path: Path) -> pa.Table | None:
        try:
            return load_of_trial(path)
        except Damaged as error:
            say(f"{error}; it is left out")
            return None


def gather(sweep: Path) -> pa.Table:
    """`Gathered`, once."""
    return Gathered(sweep)()
