"""What a search over settings found: how much each setting mattered (PED-ANOVA), and all configurations in one figure."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.cells import DASH, Table, number, score
from analysis.plots import FAINT, _figure, _score_label, _title
from analysis.records import Sweep, column
from meltr_ray.config.used import DECIDERS, in_vain
from meltr_ray.results.columns import SETTING
from tune_spaces.asha import PHASES

LEAST = 10
"""Configurations below which nothing is said of importance."""
TOP = 0.1
"""Share of the best configurations, that importance is about."""
LEAST_TOP = 4
"""Of these, at least."""
ABOUT = ("trials", "status", "score", "stopped_at")
"""Columns of `configurations` beside the settings."""
MOST_SHOWN = 10
"""Configurations that the table has."""
CAPTION = "Each line is a configuration; better ones are darker. A line skips a setting that its configuration doesn't use. Grey: stopped at a rung or diverged."


def configurations(sweep: Sweep) -> pd.DataFrame:
    """A row a configuration of the search, and of `ours` where it was trained on the same seeds; the best first.

    Columns: trials, status, score (the metric: mean of the trials' best on validation; NaN unless all finished), stopped_at (step), and
    each setting of the space, None where the configuration makes nothing of it.
    """
    names = list(sweep.plan.space or ())
    names = [name if SETTING + name in sweep.rows else f"aid.{name}" for name in names]
    searched = sweep.trials[sweep.trials.phase.isin(PHASES)]
    if not names or searched.empty:
        return pd.DataFrame(columns=[*ABOUT, *names])
    same = sweep.trials[
        (sweep.trials.arm == sweep.plan.ours) & (sweep.trials.phase == "comparison") & sweep.trials.seed.isin(searched.seed)
    ]
    chosen = pd.concat([searched, same])
    last = sweep.rows[sweep.rows.trial.isin(chosen.index)].groupby("trial").last()
    records: dict[str, dict[str, Any]] = {}
    for trial, row in chosen.iterrows():
        values = _settings(last.loc[trial], names)
        one = records.setdefault(json.dumps(values, default=str), {"scores": [], "status": [], "steps": [], **values})
        one["scores"].append(row.score)
        one["status"].append(row.status)
        one["steps"].append(row.step)
    rows = []
    for one in records.values():
        scores, status, steps = one.pop("scores"), one.pop("status"), one.pop("steps")
        finished = all(each == "finished" for each in status)
        rows.append({"trials": len(scores), "status": "finished" if finished else next(each for each in status if each != "finished"),
                     "score": float(np.mean(scores)) if finished else np.nan, "stopped_at": np.nan if finished else min(steps), **one})  # fmt: skip
    return pd.DataFrame(rows).sort_values("score", ascending=not sweep.metric.higher, na_position="last").reset_index(drop=True)


def _settings(row: pd.Series, names: list[str]) -> dict[str, Any]:
    """Values of one trial; None of what it made nothing of."""
    deciders = {
        name: json.loads(value) if isinstance(value := row.get(SETTING + name), str) and value.startswith("[") else value
        for name in DECIDERS
    }
    vain = in_vain(deciders) if all(value is not None for value in deciders.values()) else {}
    return {name: None if name in vain else _plain(row[SETTING + name]) for name in names}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def importance(sweep: Sweep) -> pd.Series:
    """Setting -> its share of what tells the best tenth of the configurations from all (PED-ANOVA, arXiv 2304.10255); empty where there are too few.

    It asks no more of a score than whether it is among the best, so that those that were stopped or diverged count as worse than any that finished. Settings that only some configurations have count by how much is there and there (arXiv 2601.20800).
    """
    found = configurations(sweep)
    found = found[found.score.notna() | found.status.isin(["stopped", "diverged"])]
    worst = found.score.min() - 1 if sweep.metric.higher else found.score.max() + 1
    found = found.assign(score=found.score.fillna(worst))
    names = [name for name in found if name not in ABOUT]
    if len(found) < LEAST or not np.isfinite(worst) or not find_spec("optuna"):
        return pd.Series(dtype=float)
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental; the version is pinned
        study = optuna.create_study(direction="maximize" if sweep.metric.higher else "minimize")
        distributions = {name: _distribution(found[name].dropna()) for name in names}
        for _, row in found.iterrows():
            has = [name for name in names if distributions[name] and row[name] is not None and row[name] == row[name]]
            study.add_trial(optuna.trial.create_trial(params={name: _of(distributions[name], row[name]) for name in has}, value=row.score,
                                                      distributions={name: distributions[name] for name in has}))  # fmt: skip
        mattered = [name for name in names if distributions[name]]
        evaluator = PedAnovaImportanceEvaluator(target_quantile=max(TOP, LEAST_TOP / len(found)))
        values = optuna.importance.get_param_importances(study, evaluator=evaluator, params=mattered) if mattered else {}
    return pd.Series(values, dtype=float).sort_values(ascending=False)


def _distribution(values: pd.Series) -> Any:
    """None where there is but one value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    distinct = list(dict.fromkeys(values))
    if len(distinct) < 2:
        return None
    if not _is_number(values):
        return CategoricalDistribution([str(value) for value in distinct])
    low, high = float(values.min()), float(values.max())
    return FloatDistribution(low, high, log=_is_log(low, high))


def _of(distribution: Any, value: Any) -> Any:
    return str(value) if type(distribution).__name__ == "CategoricalDistribution" else float(value)


def _is_number(values: pd.Series) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _is_log(low: float, high: float) -> bool:
    """Whether an axis from `low` to `high` is shown by logarithms."""
    return low > 0 and high / low >= 10


def importance_table(sweep: Sweep) -> Table | None:
    shares = importance(sweep)
    rows = [[name, f"{100 * share:.0f}"] for name, share in shares.items()]
    return Table("How much each setting mattered", ["setting", "share (%)"], rows,
                 f"PED-ANOVA: each setting's share of what distinguishes the best tenth of the configurations (at least {LEAST_TOP}) from all of them, by this setting alone. "
                 "With a few dozen configurations the shares are rough. They say nothing about pairs of settings.") if rows else None  # fmt: skip


def best_table(sweep: Sweep) -> Table | None:
    found = configurations(sweep).head(MOST_SHOWN)
    names = [name for name in found if name not in ABOUT]
    rows = [
        [*(_written(row[name]) for name in names), score(sweep, row.score), f"{row.trials:.0f}", row.status] for _, row in found.iterrows()
    ]
    return Table("The best configurations", [*names, f"{sweep.label}, validation", "trials", "status"], rows,
                 "The best of many is flattered by the chance that made it the best: judge it on other seeds.") if rows else None  # fmt: skip


def _written(value: Any) -> str:
    if value is None or value != value:
        return DASH
    return number(value, 4) if isinstance(value, float) and value >= 1 else f"{value:.3g}" if isinstance(value, float) else str(value)


def parallel_coordinates(sweep: Sweep) -> Figure | None:
    """An axis a setting, a line a configuration."""
    found = configurations(sweep)
    names = [name for name in found if name not in ABOUT and found[name].dropna().nunique() > 1]
    if len(found) < 2 or not names or not found.score.notna().any():
        return None
    figure, (axis,) = _figure(max(5.0, 1.7 * len(names) + 1), 4.2)
    places = {name: _places(found[name]) for name in names}
    scores = found.score if sweep.metric.higher else -found.score
    shade = Normalize(scores.min(), scores.max() if scores.max() > scores.min() else scores.min() + 1)
    for index in reversed(found.index):  # the best on top
        heights = [places[name][0].get(index, np.nan) for name in names]
        at = [(x, y) for x, y in enumerate(heights) if y == y]
        colour = FAINT if scores[index] != scores[index] else _blue(float(shade(scores[index])))
        axis.plot(*zip(*at), color=colour, lw=1.4 if colour != FAINT else 0.7, alpha=0.85, marker="o", ms=3)
    for x, name in enumerate(names):
        axis.axvline(x, color="#666666", lw=0.8)
        for height, label in places[name][1]:
            axis.annotate(label, (x, height), textcoords="offset points", xytext=(4, 2), fontsize=7.5, color="#444444")
    axis.set_xticks(range(len(names)), [name.replace(".", ".\n", 1) for name in names])
    axis.set_yticks([])
    axis.grid(False)
    axis.spines[["left", "bottom"]].set_visible(False)
    _title(axis, f"{len(found)} configurations, darker: better {_score_label(sweep)}")
    return figure


def _places(values: pd.Series) -> tuple[dict[Any, float], list[tuple[float, str]]]:
    """(index -> height in [0, 1] of those that have a value, (height, label) of what the axis names)."""
    known = values.dropna()
    if not _is_number(known):
        names = sorted({str(value) for value in known})
        height = {name: place / max(1, len(names) - 1) for place, name in enumerate(names)}
        return {index: height[str(value)] for index, value in known.items()}, [(h, name) for name, h in height.items()]
    known = known.astype(float)
    low, high = known.min(), known.max()
    scale = np.log if _is_log(low, high) else np.asarray
    heights = (scale(known) - scale(low)) / (scale(high) - scale(low))
    return dict(zip(known.index, heights)), [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]


def _blue(share: float) -> tuple[float, float, float]:
    """From pale to dark."""
    pale, dark = np.array([0.78, 0.87, 0.95]), np.array([0.0, 0.2, 0.45])
    return tuple(pale + share * (dark - pale))


def has_search(sweep: Sweep) -> bool:
    return bool(sweep.plan.space) and bool(column(sweep.rows, "phase").isin(PHASES).any())
