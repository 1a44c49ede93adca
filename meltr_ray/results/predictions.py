"""Predictions on disk: a table, a row a query, question or clip, and what was measured of them.

    predictions.parquet   the rows, in their order; the task in the schema's metadata
    thumbnails.parquet    pictures of the clips, where the data set has videos
    metrics.json          metrics, their intervals over videos, and notes
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from meltr_ray.results.table import write as write_table

_COMMON = {"id": pa.string(), "source": pa.string(), "correct": pa.bool_(), "quality": pa.float64()}
_QUESTION = {"question_id": pa.string(), "question": pa.string(), "type": pa.string(), "answer": pa.string(),
             "options": pa.list_(pa.string()), "predicted": pa.string(), "confidence": pa.float64(), "known": pa.bool_()}  # fmt: skip
COLUMNS = {
    "retrieval": {"query": pa.string(), "caption_number": pa.int32(), "rank": pa.float64(), "video_rank": pa.float64(),
                  "top_ids": pa.list_(pa.string()), "top_scores": pa.list_(pa.float64())},
    "multiple_choice": _QUESTION,
    "open_ended": _QUESTION,
    "captioning": {"caption": pa.string(), "references": pa.list_(pa.string()), "log_probability": pa.float64()},
    "sentiment": {"transcript": pa.string(), "truth": pa.float64(), "predicted": pa.float64()},
}  # fmt: skip
"""Task -> columns of its own; those of all tasks: the clip, its source video, right or not, and how good (larger is better)."""


def write(folder: Path, task: str, rows: list[dict[str, Any]], thumbnails: dict[str, bytes], facts: dict[str, Any]) -> None:
    """Write all three files to temporary names and rename them. Not finite numbers become null in `facts`."""
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([pa.field(name, kind) for name, kind in (_COMMON | COLUMNS[task]).items()], metadata={"task": task})
    write_table(folder / "predictions.parquet", pa.Table.from_pylist(rows, schema=schema))
    pictures = pa.table({"id": pa.array(list(thumbnails), pa.string()), "jpeg": pa.array(list(thumbnails.values()), pa.binary())})
    write_table(folder / "thumbnails.parquet", pictures)
    temporary = folder / f".metrics.json.{os.getpid()}"
    temporary.write_text(json.dumps(finite({"task": task, "count": len(rows)} | facts), indent=1, ensure_ascii=False))
    os.replace(temporary, folder / "metrics.json")


def finite(value: Any) -> Any:
    """`value` with None for numbers that JSON doesn't have."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
