"""Paired comparison of a few seeds: interval, exact test, correction for several baselines, and a verdict in words."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
RESAMPLES = 9_999
"""Bootstrap resamples; also the seed below makes the same table give the same report."""
BOOTSTRAP_SEED = 20230313
LARGEST_EXACT = 16
"""Pairs up to which every one of the 2^n sign flips is enumerated; beyond it they are drawn at random."""
LEAST_FOR_INTERVAL = 3


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a mean; with too few numbers, their range, and `method` says so."""

    low: float
    high: float
    method: str

    @property
    def is_interval(self) -> bool:
        """False where it is only the range of too few numbers."""
        return self.method.endswith("bootstrap")

    def excludes(self, value: float) -> bool:
        return self.is_interval and (self.low > value or self.high < value)


@dataclass(frozen=True)
class Paired:
    """What n paired differences say about their mean."""

    n: int
    mean: float
    interval: Interval
    student: tuple[float, float]
    """Student's t interval: wider and more trustworthy than a bootstrap of fewer than about ten pairs, if roughly normal."""
    p: float
    least_p: float
    """The smallest p-value that n pairs can reach, whatever their size: 2 / 2^n."""


def mean_interval(values: Sequence[float]) -> Interval:
    """Bootstrap interval of the mean: BCa, or percentile where BCa is undefined (e.g. all values equal)."""
    values = np.asarray(values, dtype=float)
    if len(values) < LEAST_FOR_INTERVAL:
        ends = (values.min(), values.max()) if len(values) else (np.nan, np.nan)
        return Interval(*map(float, ends), "range, n too small for an interval")
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a degenerate BCa warns and returns nan: that is what the loop is for
            result = stats.bootstrap(
                (values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method=method,
                rng=np.random.default_rng(BOOTSTRAP_SEED),
            ).confidence_interval  # fmt: skip
        if np.isfinite(result).all():
            return Interval(float(result.low), float(result.high), f"{method} bootstrap")
    raise ValueError(f"values={values}: an interval needs finite numbers; drop the others first")


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of a mean difference of 0 under random signs of the pairs; exact up to `LARGEST_EXACT` pairs."""
    differences = np.asarray(differences, dtype=float)
    if len(differences) < 2:
        return 1.0 if len(differences) else np.nan
    count = 2**LARGEST_EXACT  # scipy enumerates all sign flips when there are no more than this
    result = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=count, vectorized=True,
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    )  # fmt: skip
    return float(result.pvalue)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < LEAST_FOR_INTERVAL:
        return np.nan, np.nan
    half = stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def paired(differences: Sequence[float]) -> Paired:
    """Everything on one set of paired differences; NaN throughout when there are none."""
    differences = np.asarray(differences, dtype=float)
    n = len(differences)
    mean = float(differences.mean()) if n else np.nan
    least = 2.0 ** (1 - n) if n else np.nan
    return Paired(n, mean, mean_interval(differences), student_interval(differences), sign_flip_p(differences), least)


def fixed_sequence(p_values: Sequence[float]) -> np.ndarray:
    """p-values adjusted for comparisons made in an order fixed beforehand: each is the largest up to its place.

    Holds the family-wise error as Holm does, but costs the first comparison nothing, so that six pairs can reach 0.05 there
    whatever comes after (Maurer, Hothorn and Lehmacher 1995). A comparison without data (NaN) stops those that follow.
    """
    p_values = np.asarray(p_values, dtype=float)
    running = np.maximum.accumulate(np.where(np.isfinite(p_values), p_values, 1.0)) if len(p_values) else p_values
    return np.where(np.isfinite(p_values), running, np.nan)


def verdict(mean: float, interval: Interval, adjusted_p: float, higher: bool = True) -> str:
    """`better` or `worse` only when the adjusted p is below 0.05 and the interval excludes 0; else `inconclusive`.

    `higher`: whether a positive difference is the better one.
    """
    if adjusted_p < SIGNIFICANCE and interval.excludes(0):
        return "better" if (mean > 0) == higher else "worse"
    return "inconclusive"
