"""Ranges of the outer level's settings, for a search that names them without one."""

from __future__ import annotations

from tune_spaces.domains import Choice, Domain, Integer, LogUniform

SPACE: dict[str, Domain] = {
    "aid.solver": Choice(("identity", "neumann", "cg", "nystrom", "loss_space")),
    "aid.iterations": Integer(1, 10, grid=(1, 3, 5, 10)),
    "aid.rank": Integer(2, 20, grid=(2, 5, 10, 20)),
    "aid.damping": LogUniform(1e-3, 1.0, grid=(0.001, 0.01, 0.1, 1.0)),
    "aid.inner_steps": Choice((1, 3, 5, 10)),
    "aid.learning_rate": LogUniform(1e-4, 1e-2, grid=(1e-4, 1e-3, 1e-2)),
    "aid.gamma": LogUniform(1e-3, 1.0, grid=(0.0, 0.01, 0.1, 1.0)),
    "aid.meta_batch": Choice(("recent", "next", "held_out")),
    "aid.num_meta_batches": Choice((1, 2, 4)),
}
"""Setting -> what a search tries for it."""
