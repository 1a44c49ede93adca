"""The space of the outer level's settings, `aid.*`."""

from __future__ import annotations

from tune_spaces.domains import Choice, Domain, Integer, LogUniform

SPACE: dict[str, Domain] = {
    "solver": Choice(("identity", "neumann", "cg", "nystrom", "loss_space")),
    "iterations": Integer(1, 10, grid=(1, 3, 5, 10)),
    "rank": Integer(2, 20, grid=(2, 5, 10, 20)),
    "damping": LogUniform(1e-3, 1.0, grid=(0.001, 0.01, 0.1, 1.0)),
    "inner_steps": Choice((1, 3, 5, 10)),
    "learning_rate": LogUniform(1e-4, 1e-2, grid=(1e-4, 1e-3, 1e-2)),
    "gamma": LogUniform(1e-3, 1.0, grid=(0.0, 0.01, 0.1, 1.0)),
    "meta_batch": Choice(("recent", "next", "held_out")),
    "num_meta_batches": Choice((1, 2, 4)),
}
"""Setting of `aid` -> what a search tries for it."""
