"""Screenings made up many at a time, and their intervals by the code under test: for tests/test_effects.py and its benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis import contrasts
from analysis.simultaneous import LEVEL, half_widths, spent
from tune_spaces.designs import Design


@dataclass(frozen=True)
class Truth:
    """What scores are drawn from. All in points of the score."""

    design: Design
    main: Sequence[float]
    """(T,): what each loss gives, before interactions."""
    pairs: dict[tuple[int, int], float]
    """What is added where both losses of a pair are in."""
    noise: float = 1.5
    """Standard deviation of a trial's score among seeds, apart from what all trials of a seed share."""
    by_seed: Sequence[float] = ()
    """(T,): standard deviation of each loss's effect over seeds."""
    unequal: bool = False
    """Whether trials with more losses vary more: from half the noise for none to one and a half for all."""
    control: tuple[float, float] = (-13.0, -6.0)
    control_by_seed: float = 5.0
    missing: float = 0.0

    def means(self) -> np.ndarray:
        """(R,)."""
        there = (self.design.matrix() + 1) / 2
        return there @ np.array(self.main) + sum(value * there[:, i] * there[:, j] for (i, j), value in self.pairs.items())

    def draw(self, count: int, seeds: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Scores (count, seeds, R) and those of one control (count, seeds, 2); NaN = missing."""
        there = (self.design.matrix() + 1) / 2
        rows, losses = there.shape
        spread = self.noise * ((0.5 + there.mean(1)) if self.unequal else np.ones(rows))
        by_seed = generator.normal(size=(count, seeds, losses)) * (self.by_seed if len(self.by_seed) else np.zeros(losses))
        level = generator.normal(0, 3, (count, seeds, 1))
        values = self.means() + level + by_seed @ there.T + generator.normal(size=(count, seeds, rows)) * spread
        corners = (self.means() + by_seed @ there.T)[:, :, [0, -1]]
        control = corners + level + self.control + generator.normal(0, self.control_by_seed, (count, seeds, 1))
        control = control + generator.normal(0, self.noise, control.shape)
        for array in (values, control):
            array[generator.random(array.shape) < self.missing] = np.nan
        return values, control


@dataclass(frozen=True)
class Found:
    """Intervals of many screenings, an effect a column: averages of losses, their changes, both effects of a control."""

    low: np.ndarray
    """(count, K)."""
    high: np.ndarray
    truth: np.ndarray
    """(K,)."""
    losses: int

    def wrong(self, margin: float) -> dict[str, np.ndarray]:
        """Kind of false verdict -> (count,) whether a screening has any; `cover`: whether any interval misses its truth."""
        judged = np.r_[np.arange(self.losses), self.low.shape[1] - 2]
        low, high, truth = self.low[:, judged], self.high[:, judged], self.truth[judged]
        changes = slice(self.losses, self.low.shape[1] - 2)
        return {
            "helps": ((low > 0) & (truth <= 1e-9)).any(1),
            "harms": ((high < 0) & (truth >= -1e-9)).any(1),
            "none": ((low > -margin) & (high < margin) & (np.abs(truth) >= margin - 1e-9)).any(1),
            "depends": (((self.low > 0) | (self.high < 0)) & (np.abs(self.truth) < 1e-9))[:, changes].any(1),
            "cover": ((self.low > self.truth) | (self.high < self.truth)).any(1),
        }


def analyse(truth: Truth, values: np.ndarray, control: np.ndarray, looks: Sequence[int] = ()) -> Found:
    """What `analysis.effects.effects` gives one screening at a time (a test holds them together), for many at once."""
    design, seeds = truth.design, values.shape[1]
    weights = [contrasts.average(design, loss) for loss in design.losses]
    ends = [(contrasts.beside(design, loss), contrasts.in_full(design, loss)) for loss in design.losses]
    if all(alone is not None and full is not None for alone, full in ends) and len(ends) > 1:
        weights += [alone - full for alone, full in ends]
    table, absent, filled = np.array(weights), np.isnan(values), fill(values)
    sizes = (table**2).sum(1)
    resting = seeds - np.einsum("snr,kr->sk", absent, table**2) / sizes
    of_control = control - filled[:, :, [0, -1]]
    of_control_seeds = (~np.isnan(control)).sum(1) - (absent[:, :, [0, -1]] & ~np.isnan(control)).sum(1) / 2
    level, total = LEVEL * spent(looks, seeds), len(table) + 2
    low, high = [], []
    for per_seed, rest, size in ((filled @ table.T, resting, sizes), (of_control, of_control_seeds, np.full(2, 2.0))):
        there = np.isfinite(per_seed).sum(1)
        mean = np.nansum(per_seed, axis=1) / np.maximum(there, 1)
        variance = np.nansum((per_seed - mean[:, None]) ** 2, axis=1) / np.where(rest > 1, rest - 1, np.inf)
        half, _ = half_widths(variance, size, rest, level * len(size) / total)
        low, high = [*low, mean - half], [*high, mean + half]
    return Found(np.hstack(low), np.hstack(high), np.r_[table @ truth.means(), truth.control], len(design.losses))


def fill(values: np.ndarray) -> np.ndarray:
    """Missing values of (..., n, R) by Healy and Westmacott (1956): fit, replace, and again, until they stay."""
    absent = np.isnan(values)
    filled, moved = np.where(absent, np.nanmean(values, axis=(-2, -1), keepdims=True), values), absent.any()
    while moved:
        fitted = filled.mean(-2, keepdims=True) + filled.mean(-1, keepdims=True) - filled.mean((-2, -1), keepdims=True)
        moved = np.abs(fitted - filled)[absent].max() > 1e-8
        filled = np.where(absent, fitted, values)
    return filled
