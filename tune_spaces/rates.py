"""The learning rates that are tried: those given, and the next ones outside while the best lies on an edge."""

from __future__ import annotations

FURTHER = 3
"""Rates that are added at most; beyond, the report says that the choice lies on the edge."""


def extended(rates: list[float], tried: dict[float, float]) -> list[float]:
    """`rates` as they are given, and after them those that what was `tried` asks for.

    A new rate continues the grid on the side of the best one, by the ratio of the two rates there.

    Args:
        tried: rate -> mean score of its trials, which have all ended; minus infinity where one diverged.
    """
    grid, added = sorted(set(rates)), []
    while len(grid) > 1 and len(added) < FURTHER and all(rate in tried for rate in grid):
        best = max(grid, key=tried.__getitem__)
        if best not in (grid[0], grid[-1]):
            break
        edge, inside = (grid[0], grid[1]) if best == grid[0] else (grid[-1], grid[-2])
        added.append(float(f"{edge * edge / inside:.6g}"))
        grid = sorted([*grid, added[-1]])
    return [*rates, *added]


def chosen(tried: dict[float, float]) -> float | None:
    """The best that was tried; None where each of them diverged, or none was."""
    best = max(tried, key=tried.__getitem__, default=None)
    return None if best is None or tried[best] == float("-inf") else best
