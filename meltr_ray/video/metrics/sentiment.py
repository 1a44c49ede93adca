"""Metrics of multi-modal sentiment in [-3, 3] (CMU-MOSI, CMU-MOSEI), as the field's code computes them.

Source: MMSA (github.com/thuiar/MMSA, metricsTop.py), which goes back to Multimodal-Transformer (Tsai et al., ACL 2019,
eval_metrics.py). The latter weights its F1 by the classes of the predictions, as its arguments are swapped; here, as in MMSA,
by those of the truth. Sums are float64 here and float32 there.
"""

from __future__ import annotations

import numpy as np

ROUNDING = 1e-12
"""A variance below this share of the mean square is that of a constant."""


def metrics(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """All metrics of predictions (N,) and truths (N,); accuracies and F1 in %.

    mae; correlation (Pearson; NaN where either is constant, as it is undefined); accuracy_7 (rounded, in [-3, 3]);
    accuracy_2 and f1 of negative against non-negative; accuracy_2_non_zero and f1_non_zero of negative against positive,
    truths of 0 left out. A prediction of NaN is wrong in all of these and makes mae and correlation NaN.
    NaN where nothing is left to score. Raises ValueError where a truth isn't finite or the lengths differ.
    """
    return {name: float(value[0]) for name, value in scores(counts(predicted, truth).sum(0)[None]).items()}


def counts(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What each example adds, (N, 20): `scores` of the sum over examples are the metrics (see bootstrap.py).

    1, error, rounded equal, five moments about the means; six counts of the 2-way task with 0, and six without.
    """
    predicted, truth = np.asarray(predicted, dtype=float).ravel(), np.asarray(truth, dtype=float).ravel()
    if predicted.shape != truth.shape or not np.isfinite(truth).all():
        raise ValueError(f"{len(predicted)} predictions, {len(truth)} truths: lengths must be equal and truths finite")
    same = np.round(np.clip(predicted, -3, 3)) == np.round(np.clip(truth, -3, 3))
    x, y = centred(predicted), centred(truth)
    columns = [np.ones(len(truth)), abs(predicted - truth), same, x, y, x * x, y * y, x * y]
    known = ~np.isnan(predicted)
    two_way = confusion(np.where(known, predicted >= 0, -1), truth >= 0, np.ones(len(truth), dtype=bool))
    without_zero = confusion(np.where(known, predicted > 0, -1), truth > 0, truth != 0)
    return np.column_stack([*columns, two_way, without_zero]).astype(float)


def centred(values: np.ndarray) -> np.ndarray:
    """Values about their mean; exactly 0 where all are equal, which the mean alone doesn't give."""
    values = values - values[:1]
    return values - values.mean() if len(values) else values


def confusion(predicted: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(N, 6) for each class 0 and 1: whether the truth is it, the prediction is it, and both."""
    columns = []
    for c in (0, 1):
        columns += [counted & (truth == c), counted & (predicted == c), counted & (truth == c) & (predicted == c)]
    return np.column_stack(columns)


def scores(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics (R,) of summed counts (R, 20)."""
    n, error, same, x, y, xx, yy, xy = sums[:, :8].T
    with np.errstate(divide="ignore", invalid="ignore"):
        x_spread, y_spread = n * xx - x * x, n * yy - y * y
        constant = (x_spread <= ROUNDING * n * xx) | (y_spread <= ROUNDING * n * yy)
        correlation = np.where(constant, np.nan, (n * xy - x * y) / np.sqrt(x_spread * y_spread))
        out = {"mae": error / n, "correlation": np.clip(correlation, -1, 1), "accuracy_7": 100 * same / n}
    for suffix, block in (("", sums[:, 8:14]), ("_non_zero", sums[:, 14:20])):
        out[f"accuracy_2{suffix}"], out[f"f1{suffix}"] = two_way_scores(block)
    return out


def two_way_scores(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy (%) and F1 (%), mean over the classes by the truth's share; block (R, 6) as summed from `confusion`."""
    truth, predicted, both = block[:, [0, 3]], block[:, [1, 4]], block[:, [2, 5]]
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = np.where(truth + predicted > 0, 2 * both / (truth + predicted), 0)
        return 100 * both.sum(1) / truth.sum(1), 100 * (f1 * truth).sum(1) / truth.sum(1)
