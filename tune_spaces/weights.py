"""Tuned scalarisation: a search for the fixed weights that end with the best score, the baseline that learned combinations have to beat.

The first half of the runs draws log-uniform weights of the auxiliary losses, the primary's being 1 (optimisers like Adam don't see the scale of
the whole), and a learning rate. The rest go where a quadratic in the logarithms, fitted by ridge to what is there, has its best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Optional

import numpy as np

LARGEST = 30.0
"""Weights lie between its inverse and this."""
CANDIDATES = 2000
"""Draws of which a proposal is the best."""
RIDGE = 1e-2
APART = 0.1
"""Least root-mean-square distance of a proposal to what was tried."""
ROUNDS = 2
"""Times that the quadratic is fitted anew for proposals."""

Point = np.ndarray
"""(D,) in [-1, 1]: logarithms of the weights over log LARGEST, and of the learning rate within its range."""


def points(count: int, size: int, scores: Mapping[int, float], seed: int) -> list[Point]:
    """The first `count` points of the search, or as many as can be said while some have no score yet.

    Args:
        size: D.
        scores: number of a point -> what its run scored, higher is better; minus infinity where it diverged.
    """
    generator = np.random.RandomState(seed)
    found = list(generator.uniform(-1, 1, (first(count), size)))
    while len(found) < count and all(number in scores for number in range(len(found))):
        more = min(count - len(found), -(-(count - first(count)) // ROUNDS))
        found += propose(found, [scores[number] for number in range(len(found))], more, np.random.RandomState([seed, len(found)]))
    return found


def first(count: int) -> int:
    """How many of them are drawn at random."""
    return -(-count // 2)


def propose(tried: Sequence[Point], scores: Sequence[float], count: int, generator: np.random.RandomState) -> list[Point]:
    """The best candidates by the fit, apart from each other and from what was tried."""
    candidates, chosen = generator.uniform(-1, 1, (CANDIDATES, len(tried[0]))), []
    value = fitted(tried, scores)(candidates)
    for _ in range(count):
        taken = np.array([*tried, *chosen])
        near = np.sqrt(((candidates[:, None] - taken[None]) ** 2).mean(-1)).min(1)
        open_ = np.where(near > APART, value, -np.inf)
        chosen.append(candidates[int(np.argmax(open_))])
    return chosen


def best(tried: Sequence[Point], scores: Sequence[float]) -> Optional[Point]:
    """Of those that were tried, the one with the greatest fitted value: a single lucky run is not enough. None where each diverged."""
    if not np.isfinite(scores).any():
        return None
    value = np.where(np.isfinite(scores), fitted(tried, scores)(np.array(tried)), -np.inf)
    return tried[int(np.argmax(value))]


def fitted(tried: Sequence[Point], scores: Sequence[float]) -> Callable[[np.ndarray], np.ndarray]:
    """Points (N, D) -> scores (N,) by the quadratic; a run that diverged has the worst score that there is."""
    y = np.array(scores, float)
    finite = y[np.isfinite(y)]
    y = np.where(np.isfinite(y), y, finite.min() if len(finite) else 0.0)
    scale = y.std() or 1.0
    X = _terms(np.array(tried))
    penalty = RIDGE * len(X) * np.diag([0.0] + [1.0] * (X.shape[1] - 1))
    coefficients = np.linalg.solve(X.T @ X + penalty, X.T @ ((y - y.mean()) / scale))
    return lambda at: y.mean() + scale * (_terms(at) @ coefficients)


def _terms(at: np.ndarray) -> np.ndarray:
    """1, each coordinate, its square."""
    return np.hstack([np.ones((len(at), 1)), at, at**2])


def weights_of(point: Point, count: int, primary: int) -> list[float]:
    """T weights, that of the primary 1, to four digits."""
    others = iter(LARGEST ** float(u) for u in point[: count - 1])
    return [1.0 if t == primary else float(f"{next(others):.4g}") for t in range(count)]


def rate_of(point: Point, count: int, rates: Sequence[float]) -> Optional[float]:
    """The learning rate, between the least and the greatest of `rates`; None where none are searched."""
    if len(point) < count:
        return None
    low, high = np.log(min(rates)), np.log(max(rates))
    return float(f"{np.exp((low + high) / 2 + float(point[count - 1]) * (high - low) / 2):.4g}")
