"""What a solve and a hypergradient give, and the named ways for a solve to end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional, Sequence

from torch import Tensor, nn

from meltr_ray.hypergrad.vectors import Vector


class Outcome(Enum):
    """How a solve of (H + damping I) v = b ended, from harmless to grave; the value carries the advice."""

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


@dataclass(frozen=True)
class HyperGradient:
    """The two terms, before any mean over ranks: a tensor for each parameter of the combiner, in the order of `parameters()`, or for each
    of the hyperparameters; zero for a frozen one."""

    implicit: list[Tensor]
    direct: list[Tensor]
    solution: Solution
    alignments: Optional[Tensor] = None
    """J v, (M, T), of this rank's losses: how much a step along -d_w of each lowers F, by what the solve knows; None of a `BilevelProblem`."""

    def total(self) -> list[Tensor]:
        """Their sum, a tensor for each parameter, zero for a frozen one."""
        return [a + b for a, b in zip(self.implicit, self.direct)]

    def write(self, phi: nn.Module | Sequence[Tensor]) -> None:
        """Put the sum into `.grad` of the combiner's parameters, or of the hyperparameters; a frozen one has None.

        Raises:
            ValueError: `phi` isn't what this is the gradient of.
        """
        tensors, found = list(phi.parameters() if isinstance(phi, nn.Module) else phi), self.total()
        if [p.shape for p in tensors] != [g.shape for g in found]:
            raise ValueError("phi: not the combiner or the hyperparameters that this is the gradient of; give those")
        for p, g in zip(tensors, found):
            p.grad = g if p.requires_grad else None
