"""Contrasts of each seed, and from their spread the intervals of a family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t

from analysis.simultaneous import LEVEL, MANY, critical_value, half_widths

DIGITS = 9
"""After the point, of a score: what is beyond is how a computer counts."""


@dataclass(frozen=True)
class Estimate:
    """An effect over n seeds; low and high are NaN where it has no interval in the table, and infinite with too few trials."""

    mean: float
    per_seed: np.ndarray
    """(n,); NaN where a control's trial is missing."""
    low: float = np.nan
    high: float = np.nan

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Cells:
    """Scores of n seeds and R rows."""

    filled: np.ndarray
    """(n, R): missing ones have the value of `contrasts.fill`."""
    absent: np.ndarray
    """Where they are missing."""
    grain: float = 0.0
    """Steps in which scores move, such as 0.4 points of 250 queries; 0: none are seen."""


@dataclass
class Contrast:
    """A contrast of each seed, on its way to an estimate."""

    per_seed: np.ndarray
    size: float
    """Sum of squares of its weights."""
    seeds: float
    """On which it rests: a missing trial takes away the part of a seed that its squared weight has in `size`."""
    imputed: int
    """Missing trials that it weighs."""
    grain: float = 0.0
    low: float = np.nan
    high: float = np.nan
    value: float = np.inf
    """Critical value of its interval."""
    limit: float = np.inf
    """What that would be with any number of seeds."""

    @property
    def mean(self) -> float:
        return float(np.nanmean(self.per_seed))

    @property
    def variance(self) -> float:
        """Over seeds; never below that of rounding to `grain` (Sheppard), which equal scores of two seeds would hide."""
        found = float(np.nansum((self.per_seed - self.mean) ** 2) / (self.seeds - 1))
        return max(found, self.size * self.grain**2 / 12)

    def estimate(self) -> Estimate:
        return Estimate(self.mean, self.per_seed, self.low, self.high)


def contrast(weights: np.ndarray | None, cells: Cells) -> Contrast | None:
    """None where the design has no such contrast, or a row that it weighs has no score at all."""
    if weights is None or np.isnan(cells.filled[:, weights != 0]).any() or not len(cells.filled):
        return None
    used, size = cells.absent & (weights != 0), weights @ weights
    seeds = len(cells.filled) - float((cells.absent @ weights**2).sum() / size)
    return Contrast(cells.filled[:, weights != 0] @ weights[weights != 0], float(size), seeds, int(used.sum()), cells.grain)


def grain(scores: np.ndarray) -> float:
    """The least distance of two scores that differ; 0 where all are equal."""
    apart = np.diff(np.unique(np.round(scores[np.isfinite(scores)], DIGITS)))
    return float(apart.min()) if len(apart) else 0.0


def together(families: Sequence[Sequence[Contrast]], level: float) -> None:
    """Gives the members of all families their intervals; each family has a share of `level` by how many it has."""
    total = sum(map(len, families))
    for family in families:
        for member in family:
            member.low, member.high = -np.inf, np.inf
        enough = [member for member in family if member.seeds > 1]
        if not enough:
            continue
        alpha = level * len(family) / total
        seeds = np.array([member.seeds for member in enough])
        halves, values = half_widths(np.array([m.variance for m in enough]), np.array([m.size for m in enough]), seeds, alpha)
        limit = critical_value(len(enough), MANY, alpha)
        for member, half, value in zip(enough, halves.tolist(), values.tolist()):
            member.low, member.high = member.mean - half, member.mean + half
            member.value, member.limit = value, limit


def plain(found: Contrast) -> Estimate:
    """With Student's interval of its own spread, outside any family."""
    if found.seeds <= 1:
        return replace(found.estimate(), low=-np.inf, high=np.inf)
    half = t.ppf(1 - LEVEL / 2, found.seeds - 1) * np.sqrt(found.variance / found.seeds)
    return replace(found.estimate(), low=found.mean - half, high=found.mean + half)
