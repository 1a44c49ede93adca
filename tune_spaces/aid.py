"""The space of the outer level's settings, `aid.*`, as Ray Tune domains, with a coarse grid for each."""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.search.sample import Domain

SPACE: dict[str, Domain] = {
    "solver": tune.choice(["identity", "neumann", "cg", "nystrom", "loss_space"]),
    "iterations": tune.randint(1, 11),
    "rank": tune.randint(2, 21),
    "damping": tune.loguniform(1e-3, 1.0),
    "inner_steps": tune.choice([1, 3, 5, 10]),
    "learning_rate": tune.loguniform(1e-4, 1e-2),
    "gamma": tune.loguniform(1e-3, 1.0),
    "meta_batch": tune.choice(["recent", "next", "held_out"]),
    "num_meta_batches": tune.choice([1, 2, 4]),
}
"""Setting of `aid` -> distribution that a random search draws from."""

GRID: dict[str, list[Any]] = {
    "solver": ["identity", "neumann", "cg", "nystrom", "loss_space"],
    "iterations": [1, 3, 5, 10],
    "rank": [2, 5, 10, 20],
    "damping": [0.001, 0.01, 0.1, 1.0],
    "inner_steps": [1, 3, 5, 10],
    "learning_rate": [1e-4, 1e-3, 1e-2],
    "gamma": [0.0, 0.01, 0.1, 1.0],
    "meta_batch": ["recent", "next", "held_out"],
    "num_meta_batches": [1, 2, 4],
}
"""Setting of `aid` -> values that a grid search combines."""
