"""Confidence intervals by resampling sources: captions and questions of one video, say, aren't independent of each other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 500
"""Of a measure that is a function of rows, which may take its time; sums take more in no time (`interval`)."""


class Interval(NamedTuple):
    low: float
    high: float


def intervals(
    rows: Sequence[Mapping[str, Any]],
    measure: Callable[[list[Mapping[str, Any]]], Mapping[str, float]],
    sources: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile interval of each metric of any `measure` of rows (the cluster bootstrap: Davison and Hinkley 1997, section 3.8).

    sources (N,): of each row, by default its `source`, else its `id`, else the row itself. Each resample draws as many sources as
    there are, with replacement, and measures all rows of those drawn: a row comes as often as its source was drawn, so `measure`
    must not tell rows apart by their `id`. Resamples where a metric is undefined are left out: it is NaN or missing, or `measure`
    raises ValueError or ZeroDivisionError, as where a resample lacks a class. NaN where there is but one source.
    """
    names = list(measure(list(rows)))
    values = resampled(
        rows, lambda drawn: [found.get(name, np.nan) for found in [measure(drawn)] for name in names], len(names), sources, resamples, seed
    )
    return {name: _percentile(values[:, column], level) for column, name in enumerate(names)}


def resampled(
    rows: Sequence[Mapping[str, Any]],
    values: Callable[[list[Mapping[str, Any]]], Sequence[float]],
    count: int,
    sources: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """`count` values of each resample, (resamples, count), as `intervals` draws them; NaN where they are undefined, or there is one source.

    The same number of sources gives the same draws, so that runs scored on the same rows can be compared resample by resample.
    """
    if sources is None:
        sources = [next((row[name] for name in ("source", "id") if row.get(name) is not None), ("row", at)) for at, row in enumerate(rows)]
    members: dict[Hashable, list[int]] = {}
    for at, source in enumerate(sources):
        members.setdefault(source, []).append(at)
    groups, found = list(members.values()), np.full((resamples, count), np.nan)
    if len(groups) < 2:
        return found
    generator = np.random.default_rng(seed)
    for number in range(resamples):
        drawn = generator.integers(len(groups), size=len(groups))
        try:
            found[number] = values([rows[at] for group in drawn for at in groups[group]])
        except (ValueError, ZeroDivisionError):
            continue
    return found


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
    return _percentile(score(drawn @ sums), level)


def _percentile(values: np.ndarray, level: float) -> Interval:
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
