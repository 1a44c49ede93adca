"""Ridge regression with its strength chosen on held-out train examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

STRENGTHS = (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0)


def held_out(groups: Sequence[str]) -> np.ndarray:
    """Every fifth group, in the order of first sight: (N,) bool. Raises ValueError where there is but one."""
    order = {name: at for at, name in enumerate(dict.fromkeys(groups))}
    if len(order) < 2:
        raise ValueError(f"{len(order)} train videos: none is left beside those held out")
    return np.array([order[name] % 5 == 0 for name in groups])


def fit_ridge(
    x: np.ndarray, y: np.ndarray, groups: Sequence[str], error: Callable[[np.ndarray, np.ndarray], float]
) -> tuple[Pipeline, float]:
    """Regression from x (N, D), standardised, to y (N,) or (N, K), and its strength.

    The strength is that of the lowest `error(predicted, indices)` on every fifth group, fitted on the others.
    Raises ValueError where there is but one group.
    """
    out = held_out(groups)

    def fitted(strength: float, rows: np.ndarray) -> Pipeline:
        return make_pipeline(StandardScaler(), Ridge(strength)).fit(x[rows], y[rows])

    best = min(STRENGTHS, key=lambda strength: error(fitted(strength, ~out).predict(x[out]), np.flatnonzero(out)))
    return fitted(best, np.ones(len(x), bool)), best
