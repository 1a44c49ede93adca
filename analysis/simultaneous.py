"""Intervals that hold together: for all effects of a table at once, whatever their spreads, and over planned looks.

With six seeds an effect's own spread has five degrees of freedom, and Student's t with Bonferroni for ten effects asks for 4.8 standard
errors. Pooled spreads ask for 2.9, but false verdicts then reach 9 to 22 % where one loss varies by seed more than the others. Between
them: `steadied` spreads, two parts own and one part the average of the family, and a critical value that holds for the least favourable
pattern of true spreads. Intervals come out a fifth shorter than Student's where spreads are alike, and no longer where they aren't.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import chi2, norm, t

LEVEL = 0.05
"""Of all intervals of a table together."""
SHARED = 0.5
"""Weight of the family's average variance beside an effect's own. Near the best for 4 to 14 effects and 3 to 12 seeds."""
DRAWS = 4096
MANY = 1e6
"""Degrees of freedom at which spreads are as good as known."""
LEAST_FREEDOM = 1.0
"""Degrees of freedom below which there is no interval."""


def steadied(variances: np.ndarray) -> np.ndarray:
    """(..., K) variances in one unit -> the same, two parts own and one part the family's average."""
    return (variances + SHARED * variances.mean(-1, keepdims=True)) / (1 + SHARED)


@cache
def critical_value(count: int, freedom: float, alpha: float) -> float:
    """How many steadied standard errors the intervals of `count` effects reach to either side, to hold together with 1 - `alpha`.

    The least favourable pattern is sought among those in which some effects have one true spread and the others none: the fewer
    they are, the less their steadied variance is held up by the average; the more, the more chances to err. Effects are taken
    as normal and independent; those of one design nearly are, and dependence makes the product below an under-statement of
    coverage (Sidak, JASA 62, 1967). `tests/test_effects.py` simulates what comes out.

    Args:
        freedom: degrees of freedom of each variance.
    """
    grid = chi2.ppf((np.arange(DRAWS) + 0.5) / DRAWS, freedom) / freedom
    generator = np.random.default_rng(0)  # stratified draws: the same for every call, and far closer than random ones
    variances = np.column_stack([generator.permutation(grid) for _ in range(count)])  # (DRAWS, K)

    def error(value: float, spreads: np.ndarray) -> float:
        return 1 - np.prod(2 * ndtr(value * spreads) - 1, axis=1).mean() - alpha

    largest = 0.5
    for some in sorted({count, *(number for number in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if number < count)}):
        own = variances[:, :some]
        spreads = np.sqrt((own + SHARED * own.sum(1, keepdims=True) / count) / (1 + SHARED))
        if error(largest, spreads) > 0:
            own_alone = t.isf(alpha / some / 2, freedom) * np.sqrt(1 + SHARED)  # Bonferroni's, were nothing lent by the others
            largest = brentq(error, largest, own_alone + 1, (spreads,), xtol=1e-3)
    return float(largest)


def half_widths(variances: np.ndarray, sizes: np.ndarray, seeds: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Half-widths of the intervals of K effects that hold together with 1 - `alpha`, and the critical values in them.

    Args:
        variances: (..., K) over seeds, of each effect's contrast.
        sizes: (K,) sums of squares of the contrasts' weights: in units of them, variances of equal noise are equal.
        seeds: (..., K) on which each rests; less than a number of trials where some are missing.
    """
    spreads = np.sqrt(steadied(variances / sizes) * sizes)
    freedom = np.broadcast_to(seeds - 1.0, variances.shape)
    there = freedom >= LEAST_FREEDOM
    values, halves = np.full(variances.shape, np.inf), np.full(variances.shape, np.inf)
    if there.any():
        whole = np.arange(np.ceil(freedom.max()), np.floor(freedom[there].min()) - 1, -1)
        solved = [critical_value(variances.shape[-1], float(number), alpha) for number in whole]
        values[there] = np.interp(1 / freedom[there], 1 / whole, solved)  # convex in 1 / freedom: never less than its own value
        halves[there] = values[there] * (spreads / np.sqrt(np.maximum(seeds, 1)))[there]
    return halves, values


def spent(looks: Sequence[int], at: int) -> float:
    """The share of `LEVEL` at which intervals of the look at `at` seeds are made, when looks are planned at `looks` seeds.

    Lan and DeMets (Biometrika 70, 1983) with the spending function of Pocock's kind, ln(1 + (e - 1) t): most is spent at the
    first look. Boundaries follow from the normal process at those looks, at the level of one of ten effects (a level that small
    is the careful choice: looks then overlap less), and are carried to t by their p-values (Jennison and Turnbull 2000, 3.8).
    One look, or none planned, has all of it. Between looks (a sweep that is under way) the share is that of the next.
    """
    planned = sorted({*looks, at} if not looks else set(looks))
    assert at <= planned[-1], (looks, at)
    return _shares(tuple(planned))[next(i for i, look in enumerate(planned) if look >= at)]


@cache
def _shares(looks: tuple[int, ...], level: float = LEVEL / 10) -> tuple[float, ...]:
    """The share of each look; densities of the sum over seeds that crossed no boundary yet, on a grid (Armitage et al. 1969)."""
    times = np.array(looks) / looks[-1]
    steps = np.diff(times, prepend=0.0)
    allowed = np.diff(level * np.log(1 + (np.e - 1) * times), prepend=0.0)
    start, weight = np.zeros(1), np.ones(1)  # where the sum is, and the probability that it is there
    shares = []
    for time, step, alpha in zip(times, steps, allowed):
        bound = brentq(_crossing, 0.5, 10, (start, weight, time, step, alpha))
        shares.append(min(float(2 * norm.sf(bound) / level), 1.0))
        ends = np.linspace(-bound, bound, 801) * np.sqrt(time)
        weight = norm.pdf((ends[:, None] - start) / np.sqrt(step)) / np.sqrt(step) @ weight * (ends[1] - ends[0])
        start = ends
    return tuple(shares)


def _crossing(bound: float, start: np.ndarray, weight: np.ndarray, time: float, step: float, alpha: float) -> float:
    """The probability that the sum crosses `bound` standard deviations at this look, over `alpha`."""
    edge = bound * np.sqrt(time)
    return weight @ (norm.sf((edge - start) / np.sqrt(step)) + norm.cdf((-edge - start) / np.sqrt(step))) - alpha
