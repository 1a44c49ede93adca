"""The page of a model's predictions: `predictions.html`, to search, filter and sort them beside frames of their videos.

    python -m analysis.predictions <checkpoint>/predictions/<split>

One file that needs no network. It holds all predictions as JSON and draws the rows in view alone; a browser's limit on the
height of a page keeps it smooth to some 100,000 rows.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis import pages
from meltr_ray.errors import ConfigError, check
from meltr_ray.results.predictions import MEASURED, PICTURES, TABLE
from meltr_ray.storage import put
from meltr_ray.workload import Metric

NAMES_A_COLUMN = {"column", "head", "by", "ids", "scores", "truth", "predicted", "right", "chosen"}
"""Keys of a view and of its parts."""


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise ConfigError(f"predictions={path}: is not there; write the predictions first")
    try:
        with open(path, "rb") as file:  # once, whatever is written meanwhile
            return pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"predictions={path}: can't be read as Parquet; write the predictions anew") from error


def _read_metrics(path: Path) -> dict[str, Any]:
    """Contents of `metrics.json`; empty where it is missing or broken, which the page says."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return metrics if isinstance(metrics, dict) else {}


def _view(table: pa.Table) -> dict[str, Any]:
    """What the workload says of how its rows are shown; empty where it says nothing."""
    return json.loads((table.schema.metadata or {}).get(b"view", b"{}"))


def _plain(value: Any) -> Any:
    """A value of a column for JSON: no NaN or infinity, and six digits of a number."""
    match value:
        case float():
            return float(f"{value:.6g}") if math.isfinite(value) else None
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {str(name): _plain(item) for name, item in value.items()}
        case bytes():
            return f"{len(value)} bytes"
        case None | bool() | int() | str():
            return value
    return str(value)


def _columns(table: pa.Table) -> dict[str, list]:
    return {name: [_plain(value) for value in table[name].to_pylist()] for name in table.column_names}


def _named(view: Any) -> set[str]:
    """Columns that a view or a part of one names."""
    if isinstance(view, list):
        return set().union(*map(_named, view))
    if not isinstance(view, dict):
        return set()
    return {view[key] for key in NAMES_A_COLUMN & view.keys()}.union(view.get("search", ()), *map(_named, view.values()))


def _thumbnails(path: Path, columns: dict[str, list], view: dict[str, Any]) -> dict[str, str]:
    """Id -> JPEG in base64, of those that the predictions name; empty without the file."""
    if not path.is_file():
        return {}
    ranked = [part["ids"] for part in view.get("under", ()) if "ids" in part]
    named = set(columns["id"]).union(*(row or () for name in ranked for row in columns.get(name, ())))
    table = pq.read_table(path, columns=["id", "jpeg"])
    pairs = zip(table["id"].to_pylist(), table["jpeg"].to_pylist(), strict=True)
    return {clip: base64.b64encode(jpeg).decode() for clip, jpeg in pairs if jpeg and clip in named}


def _number(value: Any) -> str:
    return f"{value:.4g}".replace("-", "−") if isinstance(value, int | float) and math.isfinite(value) else "–"


def _metric_rows(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and interval of each metric, as text."""
    intervals, declared, rows = metrics.get("intervals") or {}, metrics.get("declared") or {}, []
    for name, value in (metrics.get("metrics") or {}).items():
        ends = [_number(end) for end in intervals.get(name) or () if end is not None]
        rows.append((Metric(**declared.get(name, {})).shown(name), _number(value), f"[{', '.join(ends)}]" if ends else "–"))
    return rows


def _missing(metrics: dict[str, Any], count: int, columns: dict[str, list], thumbnails: dict[str, str], view: dict[str, Any]) -> list[str]:
    lines = [] if metrics else ["metrics.json is missing or can't be read, so no metric is shown."]
    if metrics.get("count") not in (None, count):
        lines.append(f"The metrics are of {metrics['count']} predictions, the table has {count}: they are of different runs.")
    ids, noun = set(columns["id"]), view.get("noun", "example")
    if view.get("head") and (bare := len(ids - thumbnails.keys())):
        lines.append(f"{noun.capitalize()}s without frames here: {bare} of {len(ids)}; a grey box with the {noun}'s name stands for them.")
    if count and (absent := sorted(_named(view) - columns.keys())):
        lines.append(f"The rows lack what their view names: {', '.join(absent)}; the page shows a dash there.")
    return lines


def _facts(metrics: dict[str, Any], count: int) -> str:
    named = [f"{name}: {metrics[name]}" for name in ("split", "data", "checkpoint") if metrics.get(name)]
    return " · ".join([f"{count:,} prediction{'' if count == 1 else 's'}", *named])


def write_page(folder: str | Path) -> Path:
    """Write `predictions.html` into a folder of predictions; returns its path.

    Reads `predictions.parquet` (a row a prediction; how it is shown is in its metadata), `metrics.json` and `thumbnails.parquet`
    (id and JPEG); the page says what is missing of the last two.

    Raises:
        ConfigError: there are no predictions.
    """
    folder = Path(folder)
    table, metrics = _read_table(folder / TABLE), _read_metrics(folder / MEASURED)
    check("id" in table.column_names, "predictions", folder / TABLE, "lacks id; write the predictions anew")
    view, columns = _view(table), _columns(table)
    columns.setdefault("source", columns["id"])
    thumbnails = _thumbnails(folder / PICTURES, columns, view)
    title = view.get("title") or (table.schema.metadata or {}).get(b"title", b"").decode()
    noun = view.get("noun", "example")
    page = pages.render(
        "predictions.html.j2", title=f"Predictions: {title.replace('_', ' ')}" if title else "Predictions",
        css=pages.text("report.css") + pages.text("predictions.css"), script=pages.text("predictions.js"), view=view,
        heights=[float(height) for height in view.get("height", ())], noun_with_article=f"{'an' if noun[0] in 'aeio' else 'a'} {noun}",
        facts=_facts(metrics, len(table)), metrics=_metric_rows(metrics), notes=metrics.get("notes") or [],
        care=_missing(metrics, len(table), columns, thumbnails, view),
        judged=any(right is not None for right in columns.get("correct", ())), rated="quality" in columns,
        types=sorted(Counter(kind for kind in columns.get(view.get("by", ""), []) if kind).items()),
        predictions={"count": len(table), "columns": columns, "view": view}, thumbnails=thumbnails,
    )  # fmt: skip
    put(folder / "predictions.html", page)
    return folder / "predictions.html"


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
