"""Confidence intervals by resampling videos: captions and questions of one video aren't independent of each other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    low: float
    high: float


def interval(
    counts: np.ndarray,
    groups: Sequence[Hashable],
    score: Callable[[np.ndarray], np.ndarray],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a metric that is a function of sums over examples.

    counts (N, K): what each example adds; groups (N,): its video (or the source that its clips share); `score` takes sums
    (R, K) to the metric (R,). Each resample draws as many videos as there are, with replacement (Efron and Tibshirani 1993,
    chapter 13). Resamples where the metric is undefined (NaN) are left out; NaN where there is but one video.
    """
    counts = np.asarray(counts, dtype=float)
    counts = counts[:, None] if counts.ndim == 1 else counts
    names = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(names), counts.shape[1]))
    np.add.at(sums, [names[group] for group in groups], counts)
    if len(names) < 2:
        return Interval(float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    values = score(drawn @ sums)
    defined = values[~np.isnan(values)]
    if not len(defined):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def with_ones(values: np.ndarray) -> np.ndarray:
    """Counts (N, 2) of a mean, whose score is `ratio`: the values (N,) and ones."""
    return np.column_stack([np.asarray(values, dtype=float), np.ones(len(values))])


def ratio(sums: np.ndarray) -> np.ndarray:
    """Mean (R,) of sums (R, 2) of `with_ones`."""
    return sums[:, 0] / sums[:, 1]


def histogram(values: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Counts (N, U) of a median, a column for each of the U values there are, and the score that takes their sums to it."""
    levels, place = np.unique(values, return_inverse=True)

    def median(sums: np.ndarray) -> np.ndarray:
        below, half = sums.cumsum(1), sums.sum(1, keepdims=True) / 2
        return (levels[(below >= half).argmax(1)] + levels[(below > half).argmax(1)]) / 2

    return np.eye(len(levels))[place], median
