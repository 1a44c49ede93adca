"""The page of a model's predictions: `predictions.html`, to search, filter and sort them beside frames of their videos.

    python -m analysis.predictions <checkpoint>/predictions/<split>

One file that needs no network. It holds all predictions as JSON and draws the rows in view alone; a browser's limit on the
height of a page keeps it smooth to some 100,000 rows.
"""

from __future__ import annotations

import base64
import json
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import predictions_script, predictions_template, template
from analysis.records import Metric
from meltr_ray.errors import ConfigError
from meltr_ray.results.predictions import COLUMNS

COMMON = ("id", "source", "correct", "quality")


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise ConfigError(f"predictions={path}: is not there; write the predictions first")
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"predictions={path}: can't be read as Parquet; write the predictions anew") from error


def _read_metrics(path: Path) -> dict[str, Any]:
    """Contents of `metrics.json`; empty where it is missing or broken, which the page says."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return metrics if isinstance(metrics, dict) else {}


def _task(table: pa.Table, metrics: dict[str, Any], path: Path) -> str:
    task = (table.schema.metadata or {}).get(b"task", b"").decode() or metrics.get("task")
    if task not in COLUMNS:
        raise ConfigError(f"predictions={path}: is of task {task}; the page shows {', '.join(COLUMNS)}")
    missing = [name for name in (*COMMON, *COLUMNS[task]) if name not in table.column_names]
    if missing:
        raise ConfigError(f"predictions={path}: lacks {', '.join(missing)}; write the predictions anew")
    return task


def _plain(value: Any) -> Any:
    """A value of a column for JSON: no NaN or infinity, and six digits of a number."""
    match value:
        case float():
            return float(f"{value:.6g}") if math.isfinite(value) else None
        case list():
            return [_plain(item) for item in value]
    return value


def _columns(table: pa.Table, task: str) -> dict[str, list]:
    return {name: [_plain(value) for value in table[name].to_pylist()] for name in (*COMMON, *COLUMNS[task])}


def _thumbnails(path: Path, columns: dict[str, list]) -> dict[str, str]:
    """Clip -> JPEG in base64, of those that the predictions name; empty without the file."""
    if not path.is_file():
        return {}
    named = {clip for clips in columns.get("top_ids", []) for clip in clips or ()} | set(columns["id"])
    table = pq.read_table(path, columns=["id", "jpeg"])
    pairs = zip(table["id"].to_pylist(), table["jpeg"].to_pylist(), strict=True)
    return {clip: base64.b64encode(jpeg).decode() for clip, jpeg in pairs if jpeg and clip in named}


def _number(value: Any) -> str:
    return f"{value:.4g}".replace("-", "−") if isinstance(value, int | float) and math.isfinite(value) else "–"


def _metric_rows(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and interval of each metric, as text."""
    intervals, rows = metrics.get("intervals") or {}, []
    for name, value in (metrics.get("metrics") or {}).items():
        ends = [_number(end) for end in intervals.get(name) or () if end is not None]
        rows.append((Metric(name).label, _number(value), f"[{', '.join(ends)}]" if ends else "–"))
    return rows


def _missing(metrics: dict[str, Any], count: int, columns: dict[str, list], thumbnails: dict[str, str]) -> list[str]:
    lines = [] if metrics else ["metrics.json is missing or can't be read, so no metric is shown."]
    if metrics.get("count") not in (None, count):
        lines.append(f"The metrics are of {metrics['count']} predictions, the table has {count}: they are of different runs.")
    clips = set(columns["id"])
    if bare := len(clips - thumbnails.keys()):
        lines.append(f"Clips without frames here: {bare} of {len(clips)}; a grey box with the clip's name stands for them.")
    return lines


def _facts(metrics: dict[str, Any], count: int) -> str:
    named = [f"{name}: {metrics[name]}" for name in ("split", "data", "checkpoint") if metrics.get(name)]
    return " · ".join([f"{count:,} prediction{'' if count == 1 else 's'}", *named])


def write_page(folder: str | Path) -> Path:
    """Write `predictions.html` into a folder of predictions; returns its path.

    Reads `predictions.parquet` (a row a prediction; the task is in its metadata), `metrics.json` and `thumbnails.parquet`
    (clip and JPEG); the page says what is missing of the last two.

    Raises:
        ConfigError: there are no predictions, or not in the columns of a known task.
    """
    folder = Path(folder)
    source = folder / "predictions.parquet"
    table, metrics = _read_table(source), _read_metrics(folder / "metrics.json")
    task = _task(table, metrics, source)
    columns = _columns(table, task)
    thumbnails = _thumbnails(folder / "thumbnails.parquet", columns)
    environment = jinja2.Environment(autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
    page = environment.from_string(predictions_template.PAGE).render(
        title=f"Predictions: {task.replace('_', ' ')}", css=template.CSS + predictions_template.CSS, task=task,
        facts=_facts(metrics, len(table)), metrics=_metric_rows(metrics), notes=metrics.get("notes") or [],
        care=_missing(metrics, len(table), columns, thumbnails), script=predictions_script.SCRIPT,
        judged=any(right is not None for right in columns["correct"]),
        types=sorted(Counter(kind for kind in columns.get("type", []) if kind).items()),
        predictions={"task": task, "count": len(table), "columns": columns}, thumbnails=thumbnails,
    )  # fmt: skip
    path = folder / "predictions.html"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(page, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
    return path


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m analysis.predictions <folder of predictions>", file=sys.stderr)
        return 2
    try:
        print(write_page(arguments[0]))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
