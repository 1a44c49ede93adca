"""How sure an effect is of the examples of a split: seeds are not all that could have come out otherwise.

Every evaluation is scored on the same resamples of the split's sources (column `resampled`), so an effect has a value on each of them. Their
spread, with the seeds as they are, is the bootstrap's error of the effect as regards examples (Efron and Tibshirani 1993, chapter 6).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis import contrasts
from analysis.effects import Screening
from analysis.records import Sweep, column
from tune_spaces.screening import BEST, arm_of, arms_of_control

NORMAL_95 = 1.96
CONTRASTS = {"average": contrasts.average, "in_full": contrasts.in_full, "beside": contrasts.beside}

Vectors = Mapping[tuple[str, int], np.ndarray]
"""(arm, seed) -> (B,): the score on each resample."""


def vectors(sweep: Sweep, phase: str, split: str) -> dict[tuple[str, int], np.ndarray]:
    """Of the finished trials of a phase: at their best validation step, or on the test split."""
    rows = sweep.rows.assign(resampled=column(sweep.rows, "resampled"))
    rows = rows[(rows.phase == phase) & (rows.split == split) & rows.resampled.notna()]
    rows = rows[rows.trial.isin(sweep.trials.index[sweep.trials.status == "finished"])]
    seeds = sweep.trials.seed
    best = rows.sort_values("score", kind="stable").groupby("trial").tail(1)
    return {(row.arm, int(seeds[row.trial])): np.asarray(row.resampled, float) for row in best.itertuples()}


def half_width(weights: Mapping[str, float], found: Vectors) -> float:
    """Of a contrast (arm -> weight), averaged over the seeds that have all of its arms; NaN where none has."""
    seeds = [seed for seed in sorted({seed for _, seed in found}) if all((arm, seed) in found for arm in weights)]
    if not seeds:
        return float("nan")
    values = np.mean([sum(weight * found[arm, seed] for arm, weight in weights.items()) for seed in seeds], axis=0)
    values = values[np.isfinite(values)]
    return NORMAL_95 * float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def of_effects(sweep: Sweep, screening: Screening) -> pd.Series:
    """Loss -> half-width at 95 % of the effect that is shown, as regards examples."""
    found, design = vectors(sweep, "screening", "validation"), screening.design
    arms, halves = [arm_of(row, design.losses) for row in design.rows], {}
    for effect in screening.effects:
        if effect.control:
            weights = {arms_of_control(effect.loss)[0]: 1.0, arm_of((), design.losses): -1.0}
        else:
            weights = {arm: w for arm, w in zip(arms, CONTRASTS[effect.judged](design, effect.loss)) if w}
        halves[effect.loss] = half_width(weights, found)
    return pd.Series(halves, dtype=float)


def of_best(sweep: Sweep, baseline: str) -> float:
    """The same of the best set against another arm, on the test split."""
    return half_width({BEST: 1.0, baseline: -1.0}, vectors(sweep, "confirmation", "test"))
