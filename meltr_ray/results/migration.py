"""Tables, and what lies beside them, as version 0.1 wrote them: brought to the columns of today.

Version 1 had a closed list of columns: metrics and settings under bare names, all losses and all backbones' settings in every
table, mostly null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from meltr_ray.workload import Metric

METRICS: dict[str, Metric] = {
    "recall_at_10": Metric("%", label="R@10"),
    "recall_at_1": Metric("%", label="R@1"),
    "recall_at_5": Metric("%", label="R@5"),
    "median_rank": Metric("", higher=False),
    "mean_rank": Metric("", higher=False),
    "video_to_text_recall_at_10": Metric("%", label="video-to-text R@10"),
    "accuracy": Metric("%"),
    "accuracy_known": Metric("%"),
    **{f"bleu_{n}": Metric("%", label=f"BLEU-{n}") for n in (1, 2, 3, 4)},
    "meteor": Metric("%", label="METEOR"),
    "rouge_l": Metric("%", label="ROUGE-L"),
    "cider": Metric("%", label="CIDEr"),
    "distinct_captions": Metric("", digits=0),
    "mae": Metric("", higher=False, digits=3, label="MAE"),
    "correlation": Metric("", digits=3),
    "accuracy_2": Metric("%", label="Acc-2"),
    "accuracy_2_non_zero": Metric("%", label="Acc-2 without 0"),
    "accuracy_7": Metric("%", label="Acc-7"),
    "f1": Metric("%", label="F1"),
    "f1_non_zero": Metric("%", label="F1 without 0"),
}
"""Metrics that version 1 knew, with what it said of them in several places."""
RENAMED = {"task.primary": "losses.primary", "task.loss_set": "losses.set",
           "data.loader_workers": "train.loader_workers", "data.prefetch": "train.prefetch"}  # fmt: skip
"""Setting of version 1 -> its name today."""
CONTROLS = ("constant", "shuffled")


def migrated(table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """A table of version 1 with the names of version 2; families' columns without a value are left out."""
    kept, names = [], []
    for name in table.column_names:
        if name not in columns and table[name].null_count == len(table):
            continue
        kept.append(table[name])
        names.append(_renamed(name, columns))
    found = pa.table(dict(zip(names, kept)))
    for name in columns:
        if name not in found.column_names:
            found = found.append_column(name, pa.nulls(len(found), columns[name][0]))
    return found


def migrated_about(about: dict[str, Any]) -> dict[str, Any]:
    """`sweep.json` of version 1 as today's: metrics and losses declared in it."""
    if "metrics" in about or "metric" not in about:
        return about
    about = dict(about)
    name = about.pop("metric")["name"]
    first = {"negative_mae": "mae"}.get(name, name)
    about["metrics"] = {first: vars(METRICS.get(first, Metric()))} | {key: vars(value) for key, value in METRICS.items() if key != first}
    loss_set = about.pop("loss_set", [])
    about["losses"] = {"primary": about.pop("primary", None), "set": loss_set, "controls": [loss for loss in CONTROLS if loss in loss_set]}
    return about


def _renamed(name: str, columns: Mapping[str, Any]) -> str:
    if name in columns or name.startswith(("loss.", "slope.")):
        return name
    return f"metric.{name}" if name in METRICS else f"setting.{RENAMED.get(name, name)}"
