"""From a space to the configurations that a grid or a random search tries: no two of them alike, none that can't be."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from meltr_ray.errors import ConfigError
from tune_spaces.spaces import Changes, Space, used

TRIES = 100
"""Draws for each configuration that is asked for, before a random search takes the space to be used up."""


@dataclass
class Drawn:
    """What a search tries."""

    found: dict[int, Changes] = field(default_factory=dict)
    """Number -> dotted settings, without those that the configuration makes nothing of."""
    looked_at: int = 0
    """Combinations of all settings, of which `found` are those that differ and can be."""
    refused: list[str] = field(default_factory=list)
    """Why others can't be."""


def draw(space: Space, how: str, samples: int, seed: int, values: Mapping[str, Any], make: Callable[[Changes], Any] | None = None) -> Drawn:
    """The same `seed` draws the same configurations, and more `samples` begin with those of fewer.

    Args:
        how: `grid` (every combination) or `random`.
        samples: configurations that `random` draws, as far as the space has so many.
        values: settings of the arm that is varied: what they make nothing of isn't varied.
        make: makes the configuration with changes; where it raises ConfigError that one is left out.

    Raises:
        ConfigError: no combination can be.
    """
    drawn, seen = Drawn(), set()
    for number, combination in enumerate(combinations(space, seed) if how == "random" else grid(space)):
        if how == "random" and (len(drawn.found) == samples or number == TRIES * samples):
            break
        drawn.looked_at += 1
        changes = used(values, combination)
        key = repr(sorted(changes.items()))
        if key in seen:
            continue
        seen.add(key)
        try:
            if make:
                make(changes)
            drawn.found[number] = changes
        except ConfigError as error:
            drawn.refused.append(str(error))
    if drawn.refused and not drawn.found:
        raise ConfigError(drawn.refused[0])
    return drawn


def combinations(space: Space, seed: int) -> Iterator[Changes]:
    """Without end."""
    generator = np.random.RandomState(seed)
    while True:
        yield {name: domain.draw(generator) for name, domain in space.items()}


def grid(space: Space) -> Iterator[Changes]:
    return (dict(zip(space, combined)) for combined in itertools.product(*(domain.grid for domain in space.values())))
