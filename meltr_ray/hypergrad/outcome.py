"""Named ways for a solve to end; the value of each carries the advice."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional

from meltr_ray.vectors import Vector


class Outcome(Enum):
    """How a solve of (H + damping I) v = b ended, from harmless to grave."""

    EXACT = "nothing was solved: v = b by definition"
    CONVERGED = "the residual fell below aid.cg_tolerance"
    ITERATION_LIMIT = "all iterations were used; raise aid.iterations if solver_residual matters to you"
    NEGATIVE_CURVATURE = "H + damping I is indefinite: stopped at the last good v; raise aid.damping or use aid.solver=neumann"
    DIVERGED = "the residual grew; lower aid.neumann_step or raise aid.damping"
    NOT_FINITE = "a product was not finite: v = b was used instead; lower aid.radius or optimizer.learning_rate"

    @property
    def gravity(self) -> int:
        return list(Outcome).index(self)


@dataclass(frozen=True)
class Solution:
    """v, how the solve ended, its relative residual |b - (H + damping I) v| / |b| and the products it took."""

    v: Vector
    outcome: Outcome
    residual: Optional[float]
    num_products: int
