"""An interval in words: whether a loss helps, and if that is open, how many seeds would tell."""

from __future__ import annotations

import numpy as np

KINDS = ("helps", "harms", "none", "undecided", "depends")
FAR = 50
"""Further seeds beyond which no number is given."""


def kind_of(low: float, high: float, margin: float) -> str:
    """Of an effect, from its interval alone: `helps`, `harms`, `none` (no difference of `margin` or more) or `undecided`."""
    if low > 0:
        return "helps"
    if high < 0:
        return "harms"
    return "none" if -margin < low and high < margin else "undecided"


def words(kind: str, low: float, high: float, margin: float, more: int | None = None, partner: str | None = None) -> str:
    """The verdict as it is read.

    Args:
        more: further seeds that would tell; None where there are too few trials to say.
        partner: the loss that a `depends` names.
    """
    if kind in ("helps", "harms"):
        return kind + (f", by less than {margin:g}" if -margin < low and high < margin else "")
    if kind == "none":
        return f"makes no difference of {margin:g} or more"
    if kind == "depends":
        return f"depends on {partner}"
    if more is None:
        return "undecided: too few trials"
    if more > FAR:
        return f"undecided: more than {FAR} more seeds would tell"
    return f"undecided: about {more} more seed{'s' if more > 1 else ''} would tell"


def seeds_to_tell(mean: float, half: float, seeds: float, value: float, limit: float, margin: float) -> int | None:
    """How many more seeds bring the interval clear of 0 or inside the margin, if mean and spread stay what they are.

    Args:
        half: half-width of the interval, from `seeds` seeds.
        value: critical value that it was made with; `limit`: that of any number of seeds. Between them it falls with the
            degrees of freedom, to first order.
    """
    if not np.isfinite(half):
        return None
    target = max(abs(mean), margin - abs(mean))
    for more in range(1, FAR + 1):
        then = limit + (value - limit) * (seeds - 1) / (seeds + more - 1)
        if half * then / value * np.sqrt(seeds / (seeds + more)) < target:
            return more
    return FAR + 1
