"""Predictions on disk: a table, a row an example, and what was measured of them.

    predictions.parquet   the rows, in their order, whatever columns they have; title and view in the schema's metadata
    thumbnails.parquet    pictures of the examples, by `id`, where there are any
    metrics.json          metrics with their units and labels, their intervals over sources, and notes

Known columns: `id`; `source`, what is drawn anew in an interval (by default the example itself); `correct`, right or not; `quality`,
larger is better. `view` says how analysis/page/predictions.js shows the others; without one they are a plain table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from meltr_ray.storage import put
from meltr_ray.workload import Metric

TABLE, PICTURES, MEASURED = "predictions.parquet", "thumbnails.parquet", "metrics.json"


def write(
    folder: Path,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, bytes],
    facts: Mapping[str, Any],
    metrics: Mapping[str, Metric] | None = None,
    columns: Mapping[str, pa.DataType] | None = None,
    view: Mapping[str, Any] | None = None,
) -> None:
    """Write all three files, each whole or not at all. Not finite numbers become null in `facts`.

    Args:
        title: what the page is headed by.
        pictures: `id` -> JPEG.
        facts: `metrics`, `intervals`, `notes`, `split`, `data`, `checkpoint`, and whatever else is to be kept.
        metrics: labels and units of the metrics in `facts`.
        columns: types that can't be seen from the rows, such as that of a column of nulls.
        view: how the page shows the rows.
    """
    metadata = {"version": "2", "title": title, "view": json.dumps(view or {})}
    table = as_table(rows, columns or {}).replace_schema_metadata(metadata)
    put(folder / TABLE, lambda file: pq.write_table(table, file))
    frames = pa.table({"id": pa.array(list(pictures), pa.string()), "jpeg": pa.array(list(pictures.values()), pa.binary())})
    put(folder / PICTURES, lambda file: pq.write_table(frames, file))
    known = {"title": title, "count": len(rows), "declared": {name: asdict(metric) for name, metric in (metrics or {}).items()}}
    put(folder / MEASURED, json.dumps(finite(known | dict(facts)), indent=1, ensure_ascii=False))


def as_table(rows: Sequence[Mapping[str, Any]], types: Mapping[str, pa.DataType]) -> pa.Table:
    """Rows as they come, with `id` (by default their number) and `source` (by default the id) as text in front.

    A column whose values have no type in common is kept as text: strings as they are, others as JSON.
    """
    named = [source_row(number, row) for number, row in enumerate(rows)]
    names = dict.fromkeys(["id", "source", *(name for row in named for name in row), *types])
    kinds = {"id": pa.string(), "source": pa.string()} | dict(types)
    return pa.table({name: _array([row.get(name) for row in named], kinds.get(name)) for name in names})


def source_row(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its `id` and `source` filled in, and `correct` as a truth value."""
    name, source, correct = str(row.get("id", number)), row.get("source"), finite(row.get("correct"))
    known = {"correct": None if correct is None else bool(correct)} if "correct" in row else {}
    return {**row, "id": name, "source": name if source is None else str(source), **known}


def _array(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        if kind is not None:
            raise
        return pa.array([value if value is None or isinstance(value, str) else json.dumps(finite(value), default=str) for value in values],
                        pa.string())  # fmt: skip


def finite(value: Any) -> Any:
    """`value` with None for numbers that JSON doesn't have, and Python's numbers for NumPy's."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    if hasattr(value, "item") and getattr(value, "size", None) == 1:
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
