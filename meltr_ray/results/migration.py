"""Tables and sweep.json of version 1, read as version 2.

Version 1 knew one workload, video: its metrics and settings were bare columns, those of every task and backbone in each table;
sweep.json named the headline alone, whose metadata stand here as they were shown then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from meltr_ray.results.columns import FAMILIES, FIXED, METRIC, SETTING, field, make_schema, metric_field, setting_field
from meltr_ray.workload import Metric

METRICS = {
    "recall_at_1": Metric("%", label="R@1", meaning="text-to-video: queries whose video ranks first"),
    "recall_at_5": Metric("%", label="R@5", meaning="text-to-video: queries whose video ranks in the first 5"),
    "recall_at_10": Metric("%", label="R@10", meaning="text-to-video: queries whose video ranks in the first 10"),
    "median_rank": Metric(higher=False, meaning="text-to-video: median rank of the right video (1 is best)"),
    "mean_rank": Metric(higher=False, meaning="text-to-video: mean rank of the right video (1 is best)"),
    "video_to_text_recall_at_10": Metric("%", meaning="video-to-text, one caption a video: videos whose caption ranks in the first 10"),
    "accuracy": Metric("%", meaning="questions answered right"),
    "accuracy_known": Metric("%", meaning="the same without questions whose answer isn't among those that can be given, which count as wrong"),
    **{f"bleu_{n}": Metric("%", label=f"BLEU-{n}", meaning=f"captions: BLEU-{n}") for n in (1, 2, 3, 4)},
    "meteor": Metric("%", label="METEOR", meaning="captions: METEOR"),
    "rouge_l": Metric("%", label="ROUGE-L", meaning="captions: ROUGE-L"),
    "cider": Metric("%", label="CIDEr", meaning="captions: CIDEr"),
    "distinct_captions": Metric("count", digits=0, meaning="different captions among those generated"),
    "mae": Metric(higher=False, digits=3, label="MAE", meaning="sentiment: mean absolute error, of scores in [-3, 3]"),
    "correlation": Metric(digits=3, meaning="sentiment: Pearson's correlation with the truth"),
    "accuracy_2": Metric("%", label="Acc-2", meaning="sentiment: negative or not told right"),
    "accuracy_2_non_zero": Metric("%", label="Acc-2 without 0", meaning="sentiment: negative or positive told right where the truth isn't 0"),
    "accuracy_7": Metric("%", label="Acc-7", meaning="sentiment: rounded score right"),
    "f1": Metric("%", label="F1", meaning="sentiment: weighted F1 of negative or not"),
    "f1_non_zero": Metric("%", label="F1 without 0", meaning="sentiment: weighted F1 of negative or positive where the truth isn't 0"),
}  # fmt: skip
NOT_SHOWN = ("mean_rank", "video_to_text_recall_at_10", "bleu_1", "bleu_2", "bleu_3", "f1_non_zero")
"""Metrics that reports of version 1 left out."""
HEADLINES = {"negative_mae": "mae"}
"""Headline that was the negative of a metric -> the metric."""
CONTROLS = ("constant", "shuffled")
RENAMED = {"task.primary": "losses.primary", "task.loss_set": "losses.set"}
"""Settings of version 1 that are read under their later names, too."""


def migrate_table(table: pa.Table) -> pa.Table:
    """A table of version 1 in the columns of version 2; of metrics, losses, slopes and settings, those that have a value."""
    fields, columns = [], []
    for name in table.column_names:
        column = table[name]
        if name not in FIXED and column.null_count == len(column):
            continue
        found = _field(name, column.type)
        for each in [found, *([setting_field(SETTING + RENAMED[name], column.type)] if name in RENAMED else [])]:
            fields.append(each)
            columns.append(column.cast(each.type))
    schema = make_schema(fields)
    by_name = {one.name: column for one, column in zip(fields, columns)}
    return pa.Table.from_arrays([by_name[one.name] for one in schema], schema=schema)


def _field(name: str, kind: pa.DataType) -> pa.Field:
    if name in FIXED:
        return field(name, *FIXED[name])
    if name in METRICS:
        return metric_field(name, METRICS[name])
    if name.startswith(FAMILIES):
        what = "loss" if name.startswith("loss.") else "slope d g_phi / d l of"
        return field(name, kind, f"{what} {name.partition('.')[2]}, mean since the last row")
    return setting_field(SETTING + name, kind)


def migrate_about(about: dict[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    """The contents of sweep.json with `metrics` and `losses`; `columns` are those of the migrated table. Others come back as they are."""
    if "metric" not in about:
        return about
    headline, unit = about["metric"].get("name", "score"), about["metric"].get("unit", "")
    headline = HEADLINES.get(headline, headline)
    first = METRICS.get(headline, Metric(unit))
    shown = {name.removeprefix(METRIC) for name in columns if name.startswith(METRIC)} - set(NOT_SHOWN)
    metrics = {headline: first} | {name: metric for name, metric in METRICS.items() if name in shown}
    losses = {"primary": about.get("primary"), "set": about.get("loss_set") or [], "controls": list(CONTROLS)}
    kept = {name: value for name, value in about.items() if name not in ("metric", "primary", "loss_set")}
    return kept | {"metrics": {name: asdict(metric) for name, metric in metrics.items()}, "losses": losses}
