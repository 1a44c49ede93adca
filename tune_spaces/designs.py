"""Two-level designs: which auxiliary losses are in, run by run, so that every run informs every loss.

The primary loss is always in. Rows come from `pydoe`; each design holds the two corners "none" and "all", which are the arms
`primary_only` and `uniform`. Sources: Box, Hunter and Hunter, Statistics for Experimenters (2nd ed., chapters 5, 6 and 7) for fractions and
folding; Plackett and Burman, Biometrika 33 (1946) for their rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from meltr_ray.config.sweep import DESIGNS
from meltr_ray.errors import check, check_choice

Pair = tuple[str, str]
MOST = 23
"""Losses that a folded Plackett-Burman design is made for: 24 rows and their mirror images."""


@dataclass(frozen=True)
class Design:
    """The runs of one seed, as the sets of auxiliary losses that they train with."""

    losses: tuple[str, ...]
    """The factors."""
    rows: tuple[tuple[str, ...], ...]
    """Auxiliary losses that are in, in the order of `losses`; () first, all last; no row twice."""
    kind: str
    """In words."""
    aliased: tuple[tuple[Pair, ...], ...]
    """Groups of two or more pairs of losses whose interactions can't be told apart."""

    def matrix(self) -> np.ndarray:
        """(R, T): +1 where a loss is in, -1 where it is out."""
        return np.array([[1.0 if loss in row else -1.0 for loss in self.losses] for row in self.rows])

    def pairs(self) -> tuple[Pair, ...]:
        return tuple(itertools.combinations(self.losses, 2))


def of(kind: str, losses: Sequence[str]) -> Design:
    """The design that `sweep.design` names.

    Raises:
        ConfigError: no auxiliary loss, or a design that can't hold them.
    """
    check_choice("sweep.design", kind, DESIGNS)
    if kind in ("full", "half"):
        return screening(losses, kind)
    return leave_one_out(losses) if kind == "leave_one_out" else add_one_in(losses)


def screening(losses: Sequence[str], size: str = "full") -> Design:
    """The design for so many losses: full factorial up to four, then fractions in which no loss's effect is mixed with a pair's.

    Args:
        size: `half`: eight of the sixteen rows of four losses, for twice the seeds; pairs are then aliased.
    """
    check_choice("sweep.design", size, ("full", "half"))
    count = _count(losses)
    if size == "half":
        check(count == 4, "sweep.design", size, f"is made for four auxiliary losses, here {count}; use full")
        return _design(losses, _fraction("a b c abc"), "half of a factorial")
    if count <= 4:
        return _design(losses, _factorial(count), "full factorial")
    if count == 5:
        return _design(losses, _fraction("a b c d abcd"), "half of a factorial and the missing corner")
    return _design(losses, _folded(count), "folded Plackett-Burman")


def leave_one_out(losses: Sequence[str]) -> Design:
    """None, all, and all but one of each."""
    count = _count(losses)
    return _design(losses, 1 - 2 * np.eye(count), "leave one out")


def add_one_in(losses: Sequence[str]) -> Design:
    """None, all, and one of each."""
    count = _count(losses)
    return _design(losses, 2 * np.eye(count) - 1, "add one in")


def _count(losses: Sequence[str]) -> int:
    assert len(set(losses)) == len(losses), losses
    check(
        len(losses) > 0,
        "losses.set",
        "[]",
        "no auxiliary loss to screen; name at least one besides the primary and the controls, or compare arms with sweep.design=none",
    )
    check(len(losses) <= MOST, "losses.set", f"[{len(losses)} losses]", f"a design holds at most {MOST} auxiliary losses; leave some out")
    return len(losses)


def _factorial(count: int) -> np.ndarray:
    import pydoe  # here and below: takes seconds to import

    return pydoe.ff2n(count)


def _fraction(generators: str) -> np.ndarray:
    import pydoe

    return pydoe.fracfact(generators)


def _folded(count: int) -> np.ndarray:
    """Plackett-Burman rows and their mirror images: what pairs do cancels from every main effect.

    pydoe's rows have "all" among them, and so the mirror images have "none".
    """
    import pydoe

    rows = pydoe.pbdesign(max(count, 7))[:, :count]  # eight rows are the least: seven losses, or six of them
    return np.vstack([rows, -rows])


def _design(losses: Sequence[str], signs: np.ndarray, kind: str) -> Design:
    """The rows of (R, T) signs and both corners, by how many losses are in."""
    losses = tuple(losses)
    indices = {tuple(int(i) for i in np.flatnonzero(row > 0)) for row in signs} | {(), tuple(range(len(losses)))}
    rows = tuple(tuple(losses[i] for i in row) for row in sorted(indices, key=lambda row: (len(row), row)))
    return Design(losses, rows, kind, _aliased(Design(losses, rows, kind, ())))


def _aliased(design: Design) -> tuple[tuple[Pair, ...], ...]:
    """Pairs whose columns of signs aren't orthogonal, joined into groups.

    Partly aliased pairs (correlation 1/3 in folded designs of 24 rows) are joined too: none of them can be named alone.
    """
    core = balanced(design.matrix())
    columns = {pair: core[:, design.losses.index(pair[0])] * core[:, design.losses.index(pair[1])] for pair in design.pairs()}
    columns = {pair: column - column.mean() for pair, column in columns.items()}
    groups: list[list[Pair]] = []
    for pair, column in columns.items():
        tied = [group for group in groups if any(abs(columns[other] @ column) > 1e-9 for other in group)]
        groups = [group for group in groups if group not in tied] + [[*itertools.chain(*tied), pair]]
    return tuple(sorted(tuple(sorted(group, key=design.pairs().index)) for group in groups if len(group) > 1))


def balanced(signs: np.ndarray) -> np.ndarray:
    """The (R, T) rows to average over: without the corner "none" (the first) where that makes main effects clear, as with five losses."""
    return signs[1:] if is_clear(signs[1:]) and not is_clear(signs) else signs


def is_clear(signs: np.ndarray) -> bool:
    """Whether each main effect is balanced and orthogonal to the others and to all pairs."""
    count = signs.shape[1]
    pairs = [signs[:, i] * signs[:, j] for i, j in itertools.combinations(range(count), 2)]
    others = np.column_stack([np.ones(len(signs)), *pairs])
    return not (signs.T @ others).any() and np.array_equal(signs.T @ signs, len(signs) * np.eye(count))
