"""Named ways for a solve to end; the value of each carries the advice."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional

from torch import Tensor

from meltr_ray.hypergrad.vectors import Vector


class Outcome(Enum):
    """How a solve of (H + damping I) v = b ended, from harmless to grave."""

    EXACT = "nothing was iterated: v is what the solver defines it to be"
    CONVERGED = "the residual fell below aid.cg_tolerance"
    ITERATION_LIMIT = "all iterations were used; raise aid.iterations if solver_residual matters to you"
    NEGATIVE_CURVATURE = "H + damping I is indefinite: stopped at the last good v; raise aid.damping or use aid.solver=neumann"
    DIVERGED = "the residual grew past b: stopped before; lower aid.neumann_step or raise aid.damping"
    NOT_FINITE = "a product was not finite: v = b was used instead; lower aid.radius or optimizer.learning_rate"

    @property
    def gravity(self) -> int:
        return list(Outcome).index(self)


@dataclass(frozen=True)
class Solution:
    """What a solve gave.

    Args:
        v: the solution; None where only `J_v` was computed, or v was given up.
        outcome: how it ended.
        residual: |b - (H + damping I) v| / |b| as the iteration has it, so with the error of its products; None where not computed.
        num_products: products with H that it took.
        J_v: derivatives of the losses along v, (M, T), where the solver works in loss space.
    """

    v: Optional[Vector]
    outcome: Outcome
    residual: Optional[float]
    num_products: int
    J_v: Optional[Tensor] = None
