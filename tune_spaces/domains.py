"""What a setting is drawn from: plain data, with the values that a grid search takes beside it.

Draws are those of Ray Tune's `choice`, `randint`, `uniform` and `loguniform` from the same generator, number for number, as a sweep is
resumed by drawing its arms again; hence `size=1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

POINTS = 4
"""Of a range, that a grid takes where it isn't told which."""


class Domain(Protocol):
    grid: tuple[Any, ...]
    """Values that a grid search combines."""

    def draw(self, generator: np.random.RandomState) -> Any:
        """One value for a random search, as plain Python."""
        ...


@dataclass(frozen=True)
class Choice:
    """Any of a few values, all of which a grid takes."""

    grid: tuple[Any, ...]

    def draw(self, generator: np.random.RandomState) -> Any:
        return self.grid[generator.choice(np.arange(len(self.grid)), size=1)[0]]


@dataclass(frozen=True)
class Integer:
    """Whole numbers from `low` to `high`, both included; `log`: their logarithm is uniform."""

    low: int
    high: int
    grid: tuple[int, ...] = ()
    log: bool = False

    def draw(self, generator: np.random.RandomState) -> int:
        if self.log:  # each number has what lies within half of it
            low, high = np.log(self.low - 0.5), np.log(self.high + 0.5)
            return int(np.clip(round(float(np.exp(generator.uniform(low, high, size=1))[0])), self.low, self.high))
        return int(generator.randint(self.low, self.high + 1, size=1)[0])


@dataclass(frozen=True)
class Uniform:
    """Numbers between `low` and `high`."""

    low: float
    high: float
    grid: tuple[float, ...] = ()

    def draw(self, generator: np.random.RandomState) -> float:
        return float(generator.uniform(self.low, self.high, size=1)[0])


@dataclass(frozen=True)
class LogUniform:
    """Numbers whose logarithm is uniform between those of `low` and `high`."""

    low: float
    high: float
    grid: tuple[float, ...] = ()

    def draw(self, generator: np.random.RandomState) -> float:
        return float(np.exp(generator.uniform(np.log(self.low), np.log(self.high), size=1))[0])


@dataclass(frozen=True)
class OrZero:
    """A share `zero` of draws is 0, the others are those of `domain`."""

    domain: LogUniform
    zero: float
    grid: tuple[float, ...] = ()

    def draw(self, generator: np.random.RandomState) -> float:
        drawn = self.domain.draw(generator)
        return 0.0 if generator.uniform() < self.zero else drawn


def points(low: float, high: float, log: bool, whole: bool) -> tuple[Any, ...]:
    """`POINTS` values from `low` to `high`, evenly spaced, of their logarithms with `log`; fewer where whole numbers coincide."""
    between = np.geomspace(low, high, POINTS) if log else np.linspace(low, high, POINTS)
    return tuple(dict.fromkeys(round(float(value)) if whole else float(f"{value:.6g}") for value in between))
