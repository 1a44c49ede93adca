"""Solvers that need more structure than products with H: a low rank of it, or that L is a function of T losses.

Legend: H = d2_ww L (p x p), b = d_w F, J = dl/dw (N x p) over all ranks, micro-batches and losses, G = d2_ll g_phi (N x N),
Y = H Omega (p x rank). Small systems are solved in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Optional

import torch

from meltr_ray.hypergrad.arguments import check_count, check_number
from meltr_ray.hypergrad.combined import CombinedLosses
from meltr_ray.hypergrad.outcome import Outcome, Solution
from meltr_ray.hypergrad.problem import Bilevel
from meltr_ray.hypergrad.vectors import Vector


@dataclass(frozen=True)
class Nystrom:
    """v with H ~ Y (Omega' Y)^+ Y' for a random Omega, by Woodbury (Hataya and Yamada 2023, arXiv 2302.09726, eq. 6).

    Good where the spectrum of H falls below `damping` within `rank` eigenvalues; what the sketch misses is taken as zero, so
    with a small damping v errs there by 1 / damping. Differs from the paper in a Gaussian sketch in place of columns of H, which
    works on shards; in orthonormal bases, since a Gram matrix of Y would square its condition; and in the eigenvalues of the
    sketched H + damping I that are not positive: their H is taken as zero, since a solve would turn v against b there, and the
    outcome is NEGATIVE_CURVATURE. `rank` products, all independent; at most 3 rank vectors.
    """

    counts_decay: ClassVar[bool] = True
    starts_warm: ClassVar[bool] = False
    needs_damping: ClassVar[bool] = True
    adam_uses: ClassVar[tuple[str, ...]] = ("ignore",)
    uses: ClassVar[tuple[str, ...]] = ("rank", "damping")

    rank: int
    damping: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("rank", self.rank, mend="for no product use Identity()")
        check_number("damping", self.damping, above=True)  # a low-rank H has no inverse

    @classmethod
    def of(cls, aid: Any) -> Nystrom:
        return cls(aid.rank, aid.damping)

    def __call__(self, level: Bilevel, b: Vector, start: Optional[Vector] = None) -> Solution:
        H, unit = level.hessian(), torch.finfo(b.pieces[0].dtype).eps
        omega = _orthonormal([level.random(self.seed + i) for i in range(self.rank)])
        Y = [H(o) for o in omega]
        S = _gram(omega, Y)  # Omega' H Omega
        if not S.isfinite().all():
            return Solution(b, Outcome.NOT_FINITE, None, self.rank)
        W = _orthonormal(Y)
        values, vectors = torch.linalg.eigh((S + S.T) / 2)
        kept = values.abs() > unit * self.rank * values.abs().max()  # the pseudo-inverse, cut where rounding drowns S
        R = _gram(W, Y) @ vectors[:, kept]
        curvatures, directions = torch.linalg.eigh(R / values[kept] @ R.T)  # of H ~ W (R S^+ R') W'
        indefinite = curvatures + self.damping <= 0
        inside = b.dots(W)
        outside = _combine(b, W, -inside)
        rates = 1 / (torch.where(indefinite, 0.0, curvatures) + self.damping)
        v = _combine((1 / self.damping) * outside, W, directions @ (rates * (directions.T @ inside)))
        return Solution(v, Outcome.NEGATIVE_CURVATURE if indefinite.any() else Outcome.EXACT, None, len(Y))


@dataclass(frozen=True)
class LossSpace:
    """J v of the Gauss-Newton system (J' G J + damping I) v = b, solved among the N losses: J v = (damping I + K G)^-1 J b, K = J J'.

    One forward and N backward passes, whatever the accuracy; N + 1 vectors. N = T for one rank and one micro-batch; with R ranks
    and M micro-batches N = R M T, since each has slopes of its own (G is block diagonal), or M T where the losses are
    averaged over ranks before g_phi. The curvature of the single losses is left out of H: near the plain sum G is about 0 and
    J v is J b / damping, the identity's answer but for a factor.
    """

    counts_decay: ClassVar[bool] = False
    starts_warm: ClassVar[bool] = False
    needs_damping: ClassVar[bool] = True
    adam_uses: ClassVar[tuple[str, ...]] = ("ignore",)
    uses: ClassVar[tuple[str, ...]] = ("damping",)

    damping: float

    def __post_init__(self) -> None:
        check_number("damping", self.damping, above=True)  # J' G J has no inverse

    @classmethod
    def of(cls, aid: Any) -> LossSpace:
        return cls(aid.damping)

    def __call__(self, level: Bilevel, b: Vector, start: Optional[Vector] = None) -> Solution:
        if not isinstance(level, CombinedLosses):
            raise ValueError("solver=LossSpace: phi must enter through a combiner of losses (ModuleProblem); use ConjugateGradient")
        problem, own = level.problem, level.slope_derivatives()
        J = problem.rows()
        blocks = [torch.stack(own)] if len(J) == len(own) * len(own[0]) else problem.gather(torch.stack(own))
        G = torch.block_diag(*torch.cat(blocks).double().cpu())
        G = G / (len(J) / len(own[0]))  # L is the mean over ranks and micro-batches
        identity = torch.eye(len(J), dtype=torch.float64)
        J_v = torch.linalg.solve(self.damping * identity + _gram(J, J) @ G, b.dots(J))
        outcome = Outcome.EXACT if J_v.isfinite().all() else Outcome.NOT_FINITE
        offset = problem.rank * len(own) * len(own[0]) if len(blocks) > 1 else 0
        mine = J_v[offset : offset + len(own) * len(own[0])].view(len(own), -1)
        return Solution(None, outcome, None, 0, mine.to(b.pieces[0].device, own[0].dtype))


def _gram(left: list[Vector], right: list[Vector]) -> torch.Tensor:
    """(n, m) float64 on the CPU: all inner products, a matrix product for each piece of w and one collective."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left[0].pieces[0].device)
    for parts, others in zip(zip(*(x.pieces for x in left)), zip(*(x.pieces for x in right))):
        total += (torch.stack([part.flatten() for part in parts]) @ torch.stack([part.flatten() for part in others]).T).double()
    if left[0].reduce is not None:
        left[0].reduce(total)
    return total.cpu()


def _orthonormal(vectors: list[Vector]) -> list[Vector]:
    """An orthonormal basis of their span; directions that rounding drowns are left out."""
    for _ in range(2):  # once leaves what the condition of the Gram matrix took; twice is enough
        values, Q = torch.linalg.eigh(_gram(vectors, vectors))
        kept = values > values.max() * torch.finfo(torch.float64).eps * len(vectors)
        vectors = _transform(vectors, Q[:, kept] / values[kept].sqrt())
    return vectors


def _transform(vectors: list[Vector], matrix: torch.Tensor) -> list[Vector]:
    """Column i of `matrix` (n, m): the combination of the n vectors that makes vector i of m."""
    columns = []
    for parts in zip(*(vector.pieces for vector in vectors)):  # a piece of w at a time, so that no second copy of all is made
        stacked = torch.stack([part.flatten() for part in parts])
        columns.append((matrix.T.to(stacked) @ stacked).view(-1, *parts[0].shape))
    return [Vector(tuple(column[i] for column in columns), vectors[0].reduce) for i in range(matrix.shape[1])]


def _combine(start: Vector, vectors: list[Vector], coefficients: torch.Tensor) -> Vector:
    for factor, vector in zip(coefficients.tolist(), vectors):
        start = start.plus(factor, vector)
    return start
