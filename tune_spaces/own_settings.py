"""The settings that an arm may search for itself, their ranges, and draws from them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from meltr_ray.config import Config
from tune_spaces import weights
from tune_spaces.domains import Domain, LogUniform, OrZero

RATE, WEIGHTS = "optimizer.learning_rate", "combiner.weights"
DECAY = {"optimizer.weight_decay": OrZero(LogUniform(1e-3, 0.3), zero=0.2)}
DIGITS = 4
"""Of a number that is drawn."""


@dataclass(frozen=True)
class Weights:
    """T fixed weights, log-uniform as in weights.py; that of the primary loss is 1."""

    count: int
    primary: int
    grid: tuple[Any, ...] = ()

    def draw(self, generator: np.random.RandomState) -> list[float]:
        return weights.weights_of(generator.uniform(-1, 1, self.count - 1), self.count, self.primary)


def space(config: Config, pinned: Collection[str], weighs: bool = False) -> dict[str, Domain]:
    """Setting -> what it is drawn from, for an arm whose configuration is given.

    Args:
        pinned: settings that the arm itself gives, which stay.
        weighs: whether its fixed weights are searched for.
    """
    from meltr_ray.combining.named import WAYS  # torch, which --help can do without

    names, rates = config.losses.set, config.sweep.learning_rates
    found: dict[str, Domain] = {RATE: LogUniform(min(rates), max(rates))} | DECAY
    found |= {name: LogUniform(low, high) for name, (low, high) in WAYS[config.combiner.name].ranges(config).items()}
    found |= {WEIGHTS: Weights(len(names), names.index(config.losses.primary))} if weighs else {}
    return {name: domain for name, domain in found.items() if name not in pinned}


def candidate(domains: dict[str, Domain], arm: str, number: int, seed: int) -> dict[str, Any]:
    """Settings of candidate `number`, a pure function of the arguments. The first is the arm as configured, at the middle learning rate."""
    if number == 0:
        rate = domains.get(RATE)
        return {RATE: rounded(math.sqrt(rate.low * rate.high))} if isinstance(rate, LogUniform) else {}
    generator = np.random.RandomState([seed, zlib.crc32(arm.encode()), number])
    return {name: rounded(domain.draw(generator)) for name, domain in domains.items()}


def rounded(value: Any) -> Any:
    """A number to a few digits, as people write it."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
