"""How many trials a sweep has at most, and whether its seeds are apart: known before any of them is made."""

from __future__ import annotations

import math
from typing import Any

from meltr_ray.config import Config, to_flat
from meltr_ray.errors import ConfigError, check
from tune_spaces import screening
from tune_spaces.arms import SEARCH_SEED_OFFSET, led
from tune_spaces.screening import CONFIRMATION_SEED_OFFSET
from tune_spaces.search import draw
from tune_spaces.spaces import space_of

MOST_TRIALS = 5000
"""Of a sweep: a minute to plan, and more than a report tells apart."""
MOST_COMBINATIONS = 200_000
"""Of a grid, which are looked through for those that differ: seconds."""


def check_size(config: Config) -> None:
    """Refuse a plan of too many trials, or one in which a seed has two parts.

    Raises:
        ConfigError: names the setting that weighs most, or the seeds.
    """
    total = most_trials(config)
    if total > MOST_TRIALS:
        name = max(_numbers(config), key=_numbers(config).__getitem__)
        raise ConfigError(
            f"sweep.{name}={getattr(config.sweep, name)}: makes {total} trials, and a sweep has {MOST_TRIALS} at most; lower it"
        )
    check_seeds(config)


def most_trials(config: Config) -> int:
    """An upper bound of those that the settings ask for; searches in equal budgets are bounded by their time."""
    sweep = config.sweep
    tried = max(1, len(sweep.learning_rates)) * sweep.learning_rate_seeds if sweep.learning_rates else 0
    if sweep.design != "none":
        arms, searched, confirmed = len(screening.rows(config)) + len(sweep.arms), 2 + len(sweep.confirm), 1 + len(sweep.confirm)
        return arms * sweep.seeds + searched * tried + confirmed * sweep.confirmation_seeds
    compared, auxiliary = len(led(config)), len(config.losses.set) - 1
    searched = searched_configurations(config)
    apart = searched if sweep.search == "tpe" else 0  # on one seed, and one arm of what it finds
    others = len(sweep.arms) + auxiliary * (sweep.leave_one_out + sweep.add_one_in) + (1 if apart else searched)
    fresh = (sweep.leaders + 1) * sweep.confirmation_seeds if sweep.leaders else 0
    return compared * (sweep.seeds + tried) + others * sweep.other_seeds + sweep.tuned_weights + apart + fresh


def searched_configurations(config: Config) -> int:
    """Of `sweep.space`; of a random search, at most."""
    sweep, space = config.sweep, space_of(config)
    if not space or sweep.search != "grid":
        return sweep.samples if space else 0
    combinations = math.prod(len(domain.grid) for domain in space.values())
    return combinations if combinations > MOST_COMBINATIONS else len(draw(space, "grid", 0, 0, values_of_ours(config)).found)


def values_of_ours(config: Config) -> dict[str, Any]:
    """Settings of the arm that a search varies."""
    return to_flat(config) | config.sweep.arms.get(config.sweep.ours, {})


def check_seeds(config: Config) -> None:
    """Raises ConfigError: seeds of the comparison, of searches and of the confirmation overlap, so that one would judge what it chose."""
    sweep, screens = config.sweep, config.sweep.design != "none"
    last = config.seed + (sweep.seeds if screens else max(sweep.seeds, sweep.other_seeds))
    searches, confirms = (
        bool(sweep.learning_rates or sweep.weighs or sweep.search == "tpe"),
        bool(sweep.confirm if screens else sweep.leaders),
    )
    check(not (searches or confirms) or last <= SEARCH_SEED_OFFSET, "seed", config.seed,
          f"seeds from {SEARCH_SEED_OFFSET} on are those of searches and of a confirmation, and the last would be {last - 1}; lower it or sweep.seeds")  # fmt: skip
    room = CONFIRMATION_SEED_OFFSET - SEARCH_SEED_OFFSET
    check(
        sweep.learning_rate_seeds <= room,
        "sweep.learning_rate_seeds",
        sweep.learning_rate_seeds,
        f"more than the {room} seeds of searches; lower it",
    )


def _numbers(config: Config) -> dict[str, int]:
    """Settings of a sweep that multiply its trials, as far as they are in use."""
    sweep = config.sweep
    found = {name: getattr(sweep, name) for name in ("seeds", "other_seeds", "tuned_weights")}
    found |= {"learning_rate_seeds": sweep.learning_rate_seeds} if sweep.learning_rates else {}
    found |= {"confirmation_seeds": sweep.confirmation_seeds} if sweep.leaders or sweep.design != "none" else {}
    return found | ({"samples": sweep.samples} if sweep.space and sweep.search != "grid" else {})
