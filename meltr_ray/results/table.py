"""The results table: one row a trial and evaluation; its schema, its atomic writer and its reader.

The table is the record of a sweep: schedulers, resuming and analysis read it and nothing else. Each trial owns one small
Parquet file, `<sweep>/trials/<trial>/results.parquet`, rewritten to a temporary name and renamed, so that a reader never
sees half a row and two trials never wait for each other. `<sweep>/results.parquet` gathers them.
"""

from __future__ import annotations

import json
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from meltr_ray import config as settings

FILE = "results.parquet"
FINAL = ("finished", "diverged", "failed")
"""Statuses of a trial that has ended. A resumed sweep runs a failed one again, whatever stopped it may be mended, but not a
diverged one, which would only diverge again."""

COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "trial": (pa.string(), "name of the trial: arm, seed and a hash of its settings"),
    "arm": (pa.string(), "name of the configuration that the trial repeats"),
    "phase": (pa.string(), "learning_rate_search, comparison, ablation, search or single"),
    "split": (pa.string(), "split that was evaluated: validation, or test (once, after training)"),
    "status": (pa.string(), "running, finished, diverged (a loss was not finite) or failed (see error)"),
    "error": (pa.string(), "one line on why a trial diverged or failed"),
    "step": (pa.int64(), "optimiser steps done (count)"),
    "best_step": (pa.int64(), "step of the best validation score so far; the test split is scored with its weights"),
    "time": (pa.timestamp("us", tz="UTC"), "when the row was written (UTC)"),
    "seconds": (pa.float64(), "training time so far, meta steps included, evaluation and checkpoints left out (s)"),
    "meta_seconds": (pa.float64(), "part of `seconds` spent in meta steps (s)"),
    "peak_memory_bytes": (pa.int64(), "largest resident memory of worker 0 so far, GPU memory if it has one (bytes)"),
    "score": (pa.float64(), "the task's headline metric, higher is better: recall_at_10 (%), accuracy (%), CIDEr or the negative MAE"),
    "recall_at_1": (pa.float64(), "text-to-video: queries whose video ranks first (%)"),
    "recall_at_5": (pa.float64(), "text-to-video: queries whose video ranks in the first 5 (%)"),
    "recall_at_10": (pa.float64(), "text-to-video: queries whose video ranks in the first 10 (%)"),
    "median_rank": (pa.float64(), "text-to-video: median rank of the right video (1 is best)"),
    "mean_rank": (pa.float64(), "text-to-video: mean rank of the right video (1 is best)"),
    "video_to_text_recall_at_10": (pa.float64(), "video-to-text, one caption a video: videos whose caption ranks in the first 10 (%)"),
    "accuracy": (pa.float64(), "questions answered right (%)"),
    "accuracy_known": (pa.float64(), "the same without questions whose answer isn't among those that can be given, which count as wrong (%)"),
    **{f"bleu_{n}": (pa.float64(), f"captions: BLEU-{n} (%)") for n in (1, 2, 3, 4)},
    "meteor": (pa.float64(), "captions: METEOR (%)"),
    "rouge_l": (pa.float64(), "captions: ROUGE-L (%)"),
    "cider": (pa.float64(), "captions: CIDEr (%)"),
    "distinct_captions": (pa.float64(), "different captions among those generated (count)"),
    "mae": (pa.float64(), "sentiment: mean absolute error, of scores in [-3, 3]"),
    "correlation": (pa.float64(), "sentiment: Pearson's correlation with the truth"),
    "accuracy_2": (pa.float64(), "sentiment: negative or not told right (%)"),
    "accuracy_2_non_zero": (pa.float64(), "sentiment: negative or positive told right where the truth isn't 0 (%)"),
    "accuracy_7": (pa.float64(), "sentiment: rounded score right (%)"),
    "f1": (pa.float64(), "sentiment: weighted F1 of negative or not (%)"),
    "f1_non_zero": (pa.float64(), "sentiment: weighted F1 of negative or positive where the truth isn't 0 (%)"),
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
    **{f"loss.{name}": (pa.float64(), f"loss {name}, mean since the last row") for name in settings.EVERY_LOSS},
    **{f"slope.{name}": (pa.float64(), f"slope d g_phi / d l of {name}, mean since the last row") for name in settings.EVERY_LOSS},
}  # fmt: skip


def _config_columns(cls: type, prefix: str = "") -> dict[str, pa.DataType]:
    columns: dict[str, pa.DataType] = {}
    for name, hint in typing.get_type_hints(cls).items():
        plain = next((a for a in typing.get_args(hint) if a is not type(None)), hint) if "Optional" in str(hint) else hint
        if plain is settings.BackboneConfig:  # a run has one; the table has the columns of all
            for backbone in settings.BACKBONES.values():
                columns |= _config_columns(backbone, f"{prefix}{name}.")
        elif plain is settings.SweepConfig:  # the same for every trial; kept in sweep.json
            continue
        elif hasattr(plain, "__dataclass_fields__"):
            columns |= _config_columns(plain, f"{prefix}{name}.")
        else:  # lists, dicts and mixed types are kept as JSON
            columns[prefix + name] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}.get(plain, pa.string())
    return columns


CONFIG_COLUMNS = {name: kind for name, kind in _config_columns(settings.Config).items() if name not in settings.ABOUT_THE_COMMAND}
SCHEMA = pa.schema([
    *(pa.field(name, kind, metadata={"meaning": meaning}) for name, (kind, meaning) in COLUMNS.items()),
    *(pa.field(name, kind, metadata={"meaning": "setting, see --help"}) for name, kind in CONFIG_COLUMNS.items()),
])  # fmt: skip


def config_row(config: settings.Config) -> dict[str, Any]:
    """The settings of `config` as columns of the table."""
    row = {key: value for key, value in settings.to_flat(config).items() if key in CONFIG_COLUMNS}
    return {
        key: json.dumps(value) if CONFIG_COLUMNS[key] == pa.string() and not isinstance(value, (str, type(None))) else value
        for key, value in row.items()
    }


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
    unknown = set(row) - set(SCHEMA.names)
    if unknown:
        raise KeyError(f"columns that the results table does not have: {', '.join(sorted(unknown))}")
    path = Path(folder) / FILE
    rows = pq.read_table(path, schema=SCHEMA).to_pylist() if path.exists() else []
    rows = [old for old in rows if old["status"] != "failed" and (old["step"], old["split"]) != (row["step"], row["split"])]
    write_atomically(path, pa.Table.from_pylist([*rows, row], schema=SCHEMA))


def read_trial(folder: Path) -> list[dict[str, Any]]:
    """Rows of one trial, oldest first; empty where it has written none."""
    path = Path(folder) / FILE
    return pq.read_table(path, schema=SCHEMA).to_pylist() if path.exists() else []


def is_final(folder: Path) -> bool:
    """Whether a resumed sweep leaves the trial in `folder` as it is."""
    return any(row["status"] in ("finished", "diverged") for row in read_trial(folder))


def gather(sweep: Path) -> pa.Table:
    """Join the tables of all trials of `sweep` into `<sweep>/results.parquet` and return it; works on a running sweep."""
    parts = sorted(Path(sweep).glob(f"trials/*/{FILE}"))
    table = pa.concat_tables([pq.read_table(part, schema=SCHEMA) for part in parts] or [SCHEMA.empty_table()])
    write_atomically(Path(sweep) / FILE, table)
    return table
