"""One sweep folder in memory: the results table and what lies beside it, and its trials."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from meltr_ray.config import SweepConfig
from meltr_ray.errors import ConfigError, check, first_line
from meltr_ray.results import table as results
from meltr_ray.results.columns import SEARCHES, SETTING
from meltr_ray.results.migration import migrate_about
from meltr_ray.storage import sealed
from meltr_ray.workload import Metric
from tune_spaces.screening import ALL, NONE

LED = ("comparison", "confirmation")
"""Phases whose trials the report leads with; their test split is scored."""
KINDS: dict[str, type | tuple[type, ...]] = {
    "metrics": dict, "losses": dict, "data": dict, "screening": (dict, type(None)), "learning_rate_chosen": (dict, type(None)),
    "settings_chosen": (dict, type(None)), "confirmation": (list, type(None)), "caveats": list,
    "machine": str, "command": str, "started": str, "ended": (str, type(None)), "workload": str,
}  # fmt: skip
"""What sweep.json says beside the plan, as it is written."""
UNKNOWN = {"score": Metric(digits=3)}
"""The metrics of a sweep that doesn't say what it measures: its score."""


@dataclass
class Sweep:
    """One sweep folder in memory."""

    rows: pd.DataFrame
    """The results table: one row a trial and evaluation."""
    plan: SweepConfig
    metrics: dict[str, Metric] = field(default_factory=lambda: dict(UNKNOWN))
    """What was measured; the first is the score, `rows.score` but for its sign."""
    losses: dict[str, Any] = field(default_factory=dict)
    """Of `ours`: `primary`, `set`, and `controls`, the planted losses that are offered."""
    about: dict[str, Any] = field(default_factory=dict)
    """The rest of sweep.json: started, ended, machine, command, data, learning_rate_chosen."""
    baselines: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Split -> `chance` or `ridge` -> metric -> value."""
    absent: list[str] = field(default_factory=list)
    """Files of the folder that are missing, and what that costs."""
    unevaluated: list[str] = field(default_factory=list)
    """Trials that were begun and have no row of the table."""

    @property
    def metric(self) -> Metric:
        """That of the score."""
        return next(iter(self.metrics.values()))

    @property
    def label(self) -> str:
        return self.metric.shown(next(iter(self.metrics)))

    @property
    def better(self) -> str:
        """` (lower is better)`, where that is so: said wherever a difference could be taken for the opposite."""
        return "" if self.metric.higher else " (lower is better)"

    @property
    def points(self) -> str:
        """Unit of a difference."""
        return "points" if self.metric.unit == "%" else self.metric.unit

    @property
    def controls(self) -> list[str]:
        return list(self.losses.get("controls") or [])

    @property
    def ours(self) -> str:
        """The arm that the report is about: of a screening, the set that it chose, if that is confirmed."""
        return self.compared[0]

    @property
    def margin(self) -> float:
        """Least difference that counts, in the metric's unit."""
        return self.plan.margin or self.metric.material

    @property
    def screened(self) -> bool:
        return self.plan.design != "none"

    @property
    def confirmed(self) -> bool:
        """Whether the set that a screening chose is compared with others on fresh seeds."""
        return bool(self.about.get("confirmation"))

    @property
    def screened_controls(self) -> list[str]:
        """Controls that joined the corners of a screening's design."""
        return list((self.about.get("screening") or {}).get("controls", []))

    @property
    def compared(self) -> list[str]:
        """`ours`, then the baselines; of a screening that has nothing to confirm, its corners."""
        if self.screened:
            return self.about["confirmation"] if self.confirmed else [NONE, ALL]
        return list(dict.fromkeys([self.plan.ours, *self.plan.baselines]))

    @property
    def status_unevaluated(self) -> str:
        """Of a trial without a row."""
        return "stopped" if self.about.get("ended") else "running"

    @cached_property
    def trials(self) -> pd.DataFrame:
        return _trials(self.rows, self.metric)


def load(folder: str | Path) -> Sweep:
    """Read a sweep folder, a running one too.

    Raises:
        ConfigError: the folder has no results table; every other file may be missing.
    """
    folder, absent = Path(folder), []
    if not (folder / results.FILE).exists() and not any(folder.glob(f"trials/*/{results.FILE}")):
        raise ConfigError(f"folder={folder}: has no {results.FILE}; name a folder under outputs/sweeps")

    def read(name: str, cost: str) -> dict[str, Any]:
        try:
            if sealed.there(folder / name):
                return sealed.read_json(folder / name)
            absent.append(f"{name} is missing: {cost}.")
        except sealed.Damaged:
            absent.append(f"{name} is damaged: {cost}.")
        return {}

    about = read("sweep.json", "the default plan is assumed; the metric's name and which losses are planted controls are unknown")
    baselines = read("baselines.json", "chance and ridge can't be shown")
    table = _table(folder, absent)
    about = migrate_about(about, table.column_names)
    for name in [name for name, kind in KINDS.items() if name in about and not isinstance(about[name], kind)]:
        del about[name]
        absent.append(f"{name} of sweep.json has another form than a sweep writes: it is left out.")
    plan, metrics = _planned(about, absent), _declared(about, absent)
    begun = {path.parent.name for path in folder.glob("trials/*/config.yaml")} - set(table["trial"].to_pylist())
    return Sweep(table.to_pandas(), plan, metrics, about.pop("losses", {}), about, baselines, absent, sorted(begun))


def _table(folder: Path, absent: list[str]) -> pa.Table:
    """That of a sweep; where it is damaged or gone, those of its trials, of which it is made.

    Raises:
        ConfigError: it is damaged, and there are none.
    """
    path = folder / results.FILE
    try:
        if path.exists():
            return results.load(path)
        absent.append(f"{results.FILE} is missing: the tables of the trials are read in its place.")
    except sealed.Damaged:
        if not any(folder.glob(f"trials/*/{results.FILE}")):
            raise
        absent.append(f"{results.FILE} is damaged: the tables of the trials are read in its place.")
    return results.Gathered(folder).joined()


def load_all(folders: Sequence[str]) -> dict[str, Sweep]:
    """Sweeps by the last part of their folders' names. Raises ConfigError: one has no results, or two have one name."""
    names = [Path(folder).resolve().name for folder in folders]
    for name in names:
        check(names.count(name) == 1, "sweep", name, "names two folders; rename one")
    return dict(zip(names, map(load, folders)))


def _planned(about: dict[str, Any], absent: list[str]) -> SweepConfig:
    """The plan that sweep.json has, taken out of it; the default where its values have other types than the settings."""
    given = {item.name: about.pop(item.name) for item in dataclasses.fields(SweepConfig) if item.name in about}
    try:
        OmegaConf.merge(OmegaConf.structured(SweepConfig), given)
        return SweepConfig(**given)
    except (OmegaConfBaseException, TypeError, ValueError, AttributeError) as error:
        absent.append(f"The plan in sweep.json can't be read ({first_line(error)}): the default plan is assumed.")
        return SweepConfig()


def _declared(about: dict[str, Any], absent: list[str]) -> dict[str, Metric]:
    try:
        return {name: Metric(**known) for name, known in about.pop("metrics", {}).items()} or dict(UNKNOWN)
    except TypeError as error:
        absent.append(f"The metrics in sweep.json can't be read ({first_line(error)}): they are shown by their names.")
        return dict(UNKNOWN)


def column(rows: pd.DataFrame, name: str) -> pd.Series:
    """A column that not every workload, arm or version has; NaN where it isn't there."""
    return rows[name] if name in rows else pd.Series(np.nan, index=rows.index, dtype=object if name.startswith(SETTING) else float)


def _trials(table: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """One row a trial, indexed by its name; `status` is the gravest of its rows.

    `score` (the best on validation) and `test_score` are the metric itself.
    """
    records = []
    table = table.assign(seed=column(table, f"{SETTING}seed"), rate=column(table, f"{SETTING}optimizer.learning_rate"))
    for name, rows in table.groupby("trial", sort=True):
        rows = rows.sort_values("step")
        validation, test = rows[rows.split == "validation"], rows[rows.split == "test"]
        errors = rows.error.dropna()
        records.append({
            "trial": name,
            **{key: rows[key].iloc[-1] for key in ("arm", "phase", "seed")},
            "status": results.status_of(rows.status),
            "error": errors.iloc[-1] if len(errors) else None,
            **{key: rows[key].max() for key in ("step", "seconds", "meta_seconds", "peak_memory_bytes", "time")},
            "score": metric.score(validation.score.max()),
            "test_score": metric.score(test.score.iloc[-1]) if len(test) else np.nan,
            "learning_rate": rows.rate.iloc[-1],
        })  # fmt: skip
    numbers = ["step", "seconds", "meta_seconds", "peak_memory_bytes", "score", "test_score", "learning_rate"]
    columns = ["trial", "arm", "phase", "seed", "status", "error", "time", *numbers]
    return pd.DataFrame(records, columns=columns).astype(dict.fromkeys(numbers, float)).set_index("trial")


def arm_trials(sweep: Sweep, arm: str) -> pd.DataFrame:
    """Trials of one arm outside the learning-rate search, indexed by seed; of two with one seed, the newer.

    An arm that has trials of the comparison, or of a screening's confirmation, is judged by those alone; what leaders of a comparison do on
    fresh seeds stands apart (leaders.py).
    """
    found, led = sweep.trials, LED if sweep.screened else LED[:1]
    found = found[(found.arm == arm) & ~found.phase.isin(SEARCHES)]
    if found.phase.isin(led).any():
        found = found[found.phase.isin(led)]
    return found.sort_values("time").reset_index().drop_duplicates("seed", keep="last").set_index("seed").sort_index()


def arms(sweep: Sweep) -> list[str]:
    """Every arm, planned or seen: `ours`, the baselines, then the others by name."""
    seen = sweep.rows.arm[~sweep.rows.phase.isin(SEARCHES)].dropna().unique()
    return list(dict.fromkeys([*sweep.compared, *sweep.plan.arms, *sorted(seen)]))


def losses_of(sweep: Sweep, arm: str | None = None) -> tuple[str | None, list[str], list[str]]:
    """Primary loss, genuine auxiliary losses and planted controls of an arm (default: `ours`); empty where nothing is known of it."""
    arm = arm or sweep.ours
    rows = sweep.rows[sweep.rows.arm == arm]
    primary, loss_set = None, []
    if len(rows):
        primary, text = (column(rows, f"{SETTING}losses.{name}").iloc[-1] for name in ("primary", "set"))
        loss_set = json.loads(text) if isinstance(text, str) else []
    elif arm == sweep.ours:
        primary, loss_set = sweep.losses.get("primary"), sweep.losses.get("set") or []
    others = [name for name in loss_set if name != primary]
    return primary, [n for n in others if n not in sweep.controls], [n for n in others if n in sweep.controls]
