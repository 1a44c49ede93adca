"""Ridge regression from several kinds of inputs, its strength chosen on held-out train examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Scale:
    """Standardised by train and divided by the root of their number, so that rows have length 1 or so, as tf-idf has."""

    @classmethod
    def fit(cls, x: np.ndarray) -> Self:
        scale = cls()
        scale.standard = StandardScaler().fit(x)
        return scale

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, D)"""
        return self.standard.transform(x) / np.sqrt(x.shape[1])


def held_out(groups: Sequence[str]) -> np.ndarray:
    """Every fifth group, in the order of first sight: (N,) bool. Raises ValueError where there is but one."""
    order = {name: at for at, name in enumerate(dict.fromkeys(groups))}
    if len(order) < 2:
        raise ValueError(f"{len(order)} train videos: none is left beside those held out")
    return np.array([order[name] % 5 == 0 for name in groups])


def fit_ridge(x: np.ndarray, y: np.ndarray, groups: Sequence[str], error: Callable[[np.ndarray, np.ndarray], float]) -> tuple[Ridge, float]:
    """Regression from x (N, D) to y (N,) or (N, K), and its strength.

    The strength is that of the lowest `error(predicted, indices)` on every fifth group, fitted on the others.
    Raises ValueError where there is but one group.
    """
    out = held_out(groups)
    judged = np.flatnonzero(out)
    best = min(STRENGTHS, key=lambda strength: error(Ridge(strength).fit(x[~out], y[~out]).predict(x[judged]), judged))
    return Ridge(best).fit(x, y), best
