"""What the searches of a sweep found, read from its results table."""

from __future__ import annotations

import statistics
from math import inf, nan
from pathlib import Path
from typing import Any

from meltr_ray.results import table as results
from tune_spaces import tpe
from tune_spaces.arms import Tried
from tune_spaces.rates import chosen
from tune_spaces.spaces import Changes


def learning_rates_tried(folder: Path) -> Tried:
    """Of rates whose trials have all ended: the mean of their best validation scores; minus infinity where one diverged."""
    scores: dict[str, dict[float, list[float]]] = {}
    for rows in _by_trial(folder, "learning_rate_search").values():
        scores.setdefault(rows[-1]["arm"], {}).setdefault(rows[-1]["setting.optimizer.learning_rate"], []).append(_best(rows))
    means = {arm: {rate: statistics.mean(found) for rate, found in rates.items()} for arm, rates in scores.items()}
    return {arm: {rate: mean for rate, mean in rates.items() if mean == mean} for arm, rates in means.items()}


def best_scores(folder: Path, phase: str) -> dict[str, float]:
    """Ended trial of a phase -> its best validation score; minus infinity where it diverged."""
    found = {trial: _best(rows) for trial, rows in _by_trial(folder, phase).items()}
    return {trial: score for trial, score in found.items() if score == score}


def tried_in(trial: Path, changes: Changes) -> tpe.Tried:
    """A trial of a search, by its folder. One that was interrupted is running; `stopped` is one that a rung has ended."""
    rows = results.read_trial(trial)
    status, final = results.status_of(row["status"] for row in rows), results.is_final(trial)
    steps = {row["step"]: row["score"] for row in rows if row["split"] == "validation" and row["score"] is not None}
    best = max(steps.values(), default=None) if status == "finished" else None
    return tpe.Tried(changes, status if final or status == "failed" else "running", best, steps)


def _by_trial(folder: Path, phase: str) -> dict[str, list[dict[str, Any]]]:
    trials: dict[str, list[dict[str, Any]]] = {}
    for row in results.gather(folder).to_pylist():
        if row["phase"] == phase:
            trials.setdefault(row["trial"], []).append(row)
    return trials


def _best(rows: list[dict[str, Any]]) -> float:
    """NaN while the trial hasn't ended."""
    status = results.status_of(row["status"] for row in rows)
    best = max((row["score"] for row in rows if row["score"] is not None), default=nan)
    return {"finished": best, "diverged": -inf}.get(status, nan)


def chosen_rates(tried: Tried) -> dict[str, float]:
    """Arm -> the best learning rate; arms without one: none."""
    return {arm: rate for arm, rates in tried.items() if (rate := chosen(rates)) is not None}
