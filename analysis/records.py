"""One sweep folder in memory: the results table and what lies beside it, and its trials."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from meltr_ray.config import SweepConfig
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from meltr_ray.results.migration import migrate_about
from meltr_ray.workload import Metric


@dataclass(frozen=True)
class Headline:
    """The first metric, as scores show it: higher is better, so one of which less is better appears with a minus sign."""

    name: str = "score"
    metric: Metric = Metric()

    @property
    def unit(self) -> str:
        return self.metric.unit

    @property
    def label(self) -> str:
        return ("" if self.metric.higher else "−") + label(self.name, self.metric)

    @property
    def points(self) -> str:
        """Unit of a difference."""
        return "points" if self.unit == "%" else self.unit

    def of(self, values: dict[str, float]) -> float | None:
        """The score in a baseline's values; None where it has none."""
        value = values.get(self.name)
        return value if value is None or self.metric.higher else -value


def label(name: str, metric: Metric) -> str:
    """A metric's name as it is shown."""
    return metric.label or name.replace("_", " ")


@dataclass
class Sweep:
    """One sweep folder in memory."""

    rows: pd.DataFrame
    """The results table: one row a trial and evaluation."""
    plan: SweepConfig
    metrics: dict[str, Metric] = field(default_factory=dict)
    """All that the workload measures, the headline first."""
    known: dict[str, Any] = field(default_factory=dict)
    """`primary`, `set` and `controls` of the losses of `ours`."""
    about: dict[str, Any] = field(default_factory=dict)
    """The rest of sweep.json: started, ended, machine, command, data, learning_rate_chosen."""
    baselines: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Split -> `chance` or `ridge` -> metric -> value."""
    absent: list[str] = field(default_factory=list)
    """Files of the folder that are missing, and what that costs."""

    @property
    def metric(self) -> Headline:
        return Headline(*next(iter(self.metrics.items()))) if self.metrics else Headline()

    @property
    def compared(self) -> list[str]:
        """`ours`, then the baselines."""
        return list(dict.fromkeys([self.plan.ours, *self.plan.baselines]))

    @cached_property
    def trials(self) -> pd.DataFrame:
        return _trials(self.rows)


def load(folder: str | Path) -> Sweep:
    """Read a sweep folder, a running one too.

    Raises:
        ConfigError: the folder has no results table; every other file may be missing.
    """
    folder, absent = Path(folder), []
    if not (folder / results.FILE).exists():
        raise ConfigError(f"folder={folder}: has no {results.FILE}; name a folder under outputs/sweeps")

    def read(name: str, cost: str) -> dict[str, Any]:
        if (folder / name).exists():
            return json.loads((folder / name).read_text())
        absent.append(f"{name} is missing: {cost}.")
        return {}

    rows = results.load(folder / results.FILE)
    about = migrate_about(read("sweep.json", "the default plan is assumed, and the metric's name is unknown"), rows.column_names)
    baselines = read("baselines.json", "chance and ridge can't be shown")
    names = {item.name for item in dataclasses.fields(SweepConfig)}
    plan = SweepConfig(**{name: about.pop(name) for name in names & set(about)})
    metrics = {name: Metric(**values) for name, values in about.pop("metrics", {}).items()}
    return Sweep(rows.to_pandas(), plan, metrics, about.pop("losses", {}), about, baselines, absent)


def _trials(table: pd.DataFrame) -> pd.DataFrame:
    """One row a trial, indexed by its name; `status` is the gravest of its rows, `score` the best on validation."""
    records = []
    for name, rows in table.groupby("trial", sort=True):
        rows = rows.sort_values("step")
        validation, test = rows[rows.split == "validation"], rows[rows.split == "test"]
        status = next((s for s in results.STATUSES if (rows.status == s).any()), "running")
        errors = rows.error.dropna()
        records.append({
            "trial": name,
            **{key: rows[key].iloc[-1] for key in ("arm", "phase")},
            "seed": rows["setting.seed"].iloc[-1],
            "status": status,
            "error": errors.iloc[-1] if len(errors) else None,
            **{key: rows[key].max() for key in ("step", "seconds", "meta_seconds", "peak_memory_bytes", "time")},
            "score": validation.score.max(),
            "test_score": test.score.iloc[-1] if len(test) else np.nan,
            "learning_rate": rows["setting.optimizer.learning_rate"].iloc[-1],
        })  # fmt: skip
    numbers = ["step", "seconds", "meta_seconds", "peak_memory_bytes", "score", "test_score", "learning_rate"]
    columns = ["trial", "arm", "phase", "seed", "status", "error", "time", *numbers]
    return pd.DataFrame(records, columns=columns).astype(dict.fromkeys(numbers, float)).set_index("trial")


def arm_trials(sweep: Sweep, arm: str) -> pd.DataFrame:
    """Trials of one arm outside the learning-rate search, indexed by seed; of two with one seed, the newer.

    An arm that has trials of the comparison is judged by those alone.
    """
    found = sweep.trials
    found = found[(found.arm == arm) & (found.phase != "learning_rate_search")]
    if (found.phase == "comparison").any():
        found = found[found.phase == "comparison"]
    return found.sort_values("time").reset_index().drop_duplicates("seed", keep="last").set_index("seed").sort_index()


def arms(sweep: Sweep) -> list[str]:
    """Every arm, planned or seen: `ours`, the baselines, then the others by name."""
    seen = sweep.rows.arm[sweep.rows.phase != "learning_rate_search"].dropna().unique()
    return list(dict.fromkeys([*sweep.compared, *sweep.plan.arms, *sorted(seen)]))


def losses_of(sweep: Sweep, arm: str | None = None) -> tuple[str | None, list[str], list[str]]:
    """Primary loss, genuine auxiliary losses and planted controls of an arm (default: `ours`); empty where it has no rows."""
    rows = sweep.rows[sweep.rows.arm == (arm or sweep.plan.ours)]
    if rows.empty:
        return None, [], []
    primary, loss_set = rows["setting.losses.primary"].iloc[-1], json.loads(rows["setting.losses.set"].iloc[-1] or "[]")
    others, controls = [name for name in loss_set if name != primary], sweep.known.get("controls", [])
    return primary, [n for n in others if n not in controls], [n for n in others if n in controls]
