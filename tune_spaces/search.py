"""From names of settings to the configurations that a search tries."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from meltr_ray.errors import ConfigError
from tune_spaces.aid import SPACE


def draw(names: list[str], how: str, samples: int, seed: int) -> list[dict[str, Any]]:
    """Configurations as dotted settings, e.g. `{"aid.damping": 0.1}`; the same `seed` draws the same ones.

    Args:
        names: settings of `aid` to search over.
        how: `grid` (every combination) or `random`.
        samples: configurations that `random` draws.

    Raises:
        ConfigError: a name that the space does not have.
    """
    for name in names:
        if name not in SPACE:
            raise ConfigError(f"sweep.space={name}: not in the space; use names out of {', '.join(SPACE)}")
    if how == "grid":
        combinations = itertools.product(*(SPACE[name].grid for name in names))
        return [{f"aid.{name}": value for name, value in zip(names, values)} for values in combinations]
    generator = np.random.RandomState(seed)
    return [{f"aid.{name}": SPACE[name].draw(generator) for name in names} for _ in range(samples)]
