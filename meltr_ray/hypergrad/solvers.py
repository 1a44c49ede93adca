"""Solvers for A v = b, A = H + damping I, that need nothing but products with H.

Legend: H = d2_ww L (p x p), b = d_w F, r = b - A x the residual, d a search direction, D Adam's diagonal (fixed_point.py).
Memory is counted in vectors of the size of w, or of a rank's shard of it, beyond w and b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Optional, Protocol

import torch

from meltr_ray.errors import check_choice
from meltr_ray.hypergrad.arguments import check_count, check_number
from meltr_ray.hypergrad.outcome import Outcome, Solution
from meltr_ray.hypergrad.problem import Bilevel
from meltr_ray.hypergrad.vectors import Vector

ADAM_USES = ("ignore", "precondition", "fixed_point")
"""What a solve makes of Adam's second moments."""


class Solver(Protocol):
    """Solves (H + damping I) v = b. What a run has to know of a solver hangs on its class."""

    counts_decay: ClassVar[bool]
    """Whether it inverts H, so that the weight decay of the inner optimiser belongs into it."""
    starts_warm: ClassVar[bool]
    """Whether it makes use of the v of an earlier solve."""
    needs_damping: ClassVar[bool]
    """Whether damping must be positive."""
    adam_uses: ClassVar[tuple[str, ...]]
    """Those of `ADAM_USES` that it offers."""
    uses: ClassVar[tuple[str, ...]]
    """Other settings of `aid` that it is made from; all else is nothing to it (`used`)."""

    def __call__(self, level: Bilevel, b: Vector, start: Optional[Vector] = None) -> Solution:
        """`start`: v to start from, or None."""

    @classmethod
    def of(cls, aid: Any) -> Solver:
        """Made from the settings `aid.*`."""


def used(solver: type[Solver]) -> set[str]:
    """Settings of `aid` that a run with this solver looks at for its solves; all others that any solver has are nothing to it."""
    of_hessian = {"decay_in_hessian", "hessian_product"} if solver.counts_decay else set()
    start = {"warm_start"} if solver.starts_warm else set()
    return {*solver.uses} | of_hessian | start | ({"adam"} if len(solver.adam_uses) > 1 else set())


class System:
    """A = H + damping M of one problem, and the preconditioner of its solves.

    M is I; with `adam="fixed_point"` it is D^-1, which makes A v = b the system of Adam's own fixed point. D preconditions
    in both uses of Adam. D is scaled so that D^-1 has mean 1.
    """

    def __init__(self, level: Bilevel, damping: float, adam: str):
        self.hessian, self.damping = level.hessian(), damping
        self.inverse = _relative_scale(level) if adam != "ignore" else None
        self.own = adam == "fixed_point"

    def __call__(self, u: Vector) -> Vector:
        damped = u.times(self.inverse) if self.own and self.inverse is not None else u
        return self.hessian(u).plus(self.damping, damped) if self.damping else self.hessian(u)

    def precondition(self, r: Vector) -> Vector:
        """D r, or r itself."""
        return r if self.inverse is None else r.divided_by(self.inverse)


NO_ITERATIONS = "for no iterations use Identity()"


@dataclass(frozen=True)
class Identity:
    """v = b: H taken as the identity, as published (MELTR, section 3.3); with Adam's fixed point v = D b, as SAMA.

    No product, no vector (one for D).
    """

    counts_decay: ClassVar[bool] = False
    starts_warm: ClassVar[bool] = False
    needs_damping: ClassVar[bool] = False
    adam_uses: ClassVar[tuple[str, ...]] = ("ignore", "fixed_point")
    uses: ClassVar[tuple[str, ...]] = ()

    adam: str = "ignore"

    def __post_init__(self) -> None:
        check_choice("adam", self.adam, ("ignore", "fixed_point"))

    @classmethod
    def of(cls, aid: Any) -> Identity:
        return cls(aid.adam)

    def __call__(self, level: Bilevel, b: Vector, start: Optional[Vector] = None) -> Solution:
        v = b if self.adam == "ignore" else b.divided_by(_relative_scale(level))
        return Solution(v, Outcome.EXACT, None, 0)


@dataclass(frozen=True)
class Neumann:
    """v = step sum_{j=0..iterations} (I - step A)^j b (Lorraine et al. 2020, arXiv 1911.02590, eq. 8), step D for step with Adam.

    Converges where step < 2 / lambda_max, slowly: after k terms the part of v along an eigenvalue lambda has reached
    1 - (1 - step lambda)^(k + 1) of its length, so v comes out short on flat directions. Safe where H is slightly
    indefinite. Stops, with the sum so far, when a term has grown longer than b. One product an iteration; three vectors.
    """

    counts_decay: ClassVar[bool] = True
    starts_warm: ClassVar[bool] = False
    needs_damping: ClassVar[bool] = False
    adam_uses: ClassVar[tuple[str, ...]] = ADAM_USES
    uses: ClassVar[tuple[str, ...]] = ("iterations", "neumann_step", "damping")

    iterations: int
    step: float
    damping: float = 0.0
    adam: str = "ignore"

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations, mend=NO_ITERATIONS)
        check_number("step", self.step, above=True)
        check_number("damping", self.damping)
        check_choice("adam", self.adam, ADAM_USES)

    @classmethod
    def of(cls, aid: Any) -> Neumann:
        return cls(aid.iterations, aid.neumann_step, aid.damping, aid.adam)

    def __call__(self, level: Bilevel, b: Vector, start: Optional[Vector] = None) -> Solution:
        A = System(level, self.damping, self.adam)
        length = b.norm() or 1.0
        r, total = b, A.precondition(b)  # r: residual of step * total so far, and the next term
        for k in range(1, self.iterations + 1):
            r = r.plus(-self.step, A(A.precondition(r)))
            ratio = r.norm() / length
            if not math.isfinite(ratio):
                return Solution(b, Outcome.NOT_FINITE, None, k)
            if ratio > 1:
                return Solution(self.step * total, Outcome.DIVERGED, ratio, k)
            total = total + A.precondition(r)
        # r is now the residual of the sum without its last term, as near as one product less can tell
        return Solution(self.step * total, Outcome.ITERATION_LIMIT, ratio, self.iterations)


@dataclass(frozen=True)
class ConjugateGradient:
    """Preconditioned conjugate gradient (Hestenes and Stiefel 1952), at most `iterations` products.

    Differs from the textbook in three ways. At negative curvature, d' A d <= 0, it stops with the x it has (with D b if that
    happens at once): past this point CG minimises nothing and its answer can point the wrong way. Up to it <x, b> > 0, since
    each step from zero lowers x' A x / 2 - <x, b>. It ends with b as soon as a product is not finite. And it starts from
    `start`, if one is given, for the price of one product; from a start that is further from the solution than zero, from zero.
    Three vectors; one more with Adam.
    """

    counts_decay: ClassVar[bool] = True
    starts_warm: ClassVar[bool] = True
    needs_damping: ClassVar[bool] = False
    adam_uses: ClassVar[tuple[str, ...]] = ADAM_USES
    uses: ClassVar[tuple[str, ...]] = ("iterations", "damping", "cg_tolerance")

    iterations: int
    damping: float = 0.0
    tolerance: float = 0.0
    adam: str = "ignore"

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations, mend=NO_ITERATIONS)
        check_number("damping", self.damping)
        check_number("tolerance", self.tolerance)
        check_choice("adam", self.adam, ADAM_USES)

    @classmethod
    def of(cls, aid: Any) -> ConjugateGradient:
        return cls(aid.iterations, aid.damping, aid.cg_tolerance, aid.adam)

    def __call__(self, level: Bilevel, b: Vector, start: Optional[Vector] = None) -> Solution:
        A, length, products = System(level, self.damping, self.adam), b.norm(), 0
        if length == 0:
            return Solution(b, Outcome.CONVERGED, 0.0, 0)
        x, r = None, b
        if start is not None:
            r, products = b - A(start), 1
            x, r = (start, r) if r.norm() < length else (None, b)
        d = z = A.precondition(r)
        r_z = r @ z
        for _ in range(self.iterations):
            residual = _norm(r, z, r_z) / length
            if residual <= self.tolerance:
                return Solution(x if x is not None else 0.0 * b, Outcome.CONVERGED, residual, products)
            A_d = A(d)
            products += 1
            curvature = d @ A_d
            if not math.isfinite(curvature):
                return Solution(b, Outcome.NOT_FINITE, None, products)
            if curvature <= 0:
                return Solution(x if x is not None else z, Outcome.NEGATIVE_CURVATURE, residual, products)
            alpha = r_z / curvature
            x = alpha * d if x is None else x.plus(alpha, d)
            r = r.plus(-alpha, A_d)
            del A_d  # nothing but x, r, z and d lives on into the next product
            z = A.precondition(r)
            r_z, before = r @ z, r_z
            d = z.plus(r_z / before, d)
        residual = _norm(r, z, r_z) / length
        return Solution(x, Outcome.CONVERGED if residual <= self.tolerance else Outcome.ITERATION_LIMIT, residual, products)


@dataclass(frozen=True)
class Dense:
    """v by a dense solve with H formed column by column: for tiny problems, and as a reference. p products, p vectors.

    Raises:
        ValueError: more than `LIMIT` weights, or weights in shards.
    """

    damping: float = 0.0
    LIMIT: ClassVar[int] = 5000
    counts_decay: ClassVar[bool] = True
    starts_warm: ClassVar[bool] = False
    needs_damping: ClassVar[bool] = False
    adam_uses: ClassVar[tuple[str, ...]] = ("ignore",)
    uses: ClassVar[tuple[str, ...]] = ("damping",)

    def __post_init__(self) -> None:
        check_number("damping", self.damping)

    @classmethod
    def of(cls, aid: Any) -> Dense:
        return cls(aid.damping)

    def __call__(self, level: Bilevel, b: Vector, start: Optional[Vector] = None) -> Solution:
        flat = torch.cat([piece.flatten() for piece in b.pieces])
        if len(flat) > self.LIMIT or b.reduce is not None:
            raise ValueError(
                f"solver=Dense: {len(flat)} weights; at most {self.LIMIT}, unsharded, are solved densely: use ConjugateGradient"
            )
        H, columns = level.hessian(), []
        for i in range(len(flat)):
            unit = torch.zeros_like(flat)
            unit[i] = 1.0
            columns.append(torch.cat([piece.flatten() for piece in H(_unflatten(unit, b)).pieces]))
        A = torch.stack(columns, dim=1).double() + self.damping * torch.eye(len(flat), dtype=torch.float64, device=flat.device)
        v = torch.linalg.solve(A, flat.double())
        residual = float((A @ v - flat.double()).norm() / (flat.double().norm() or 1.0))
        return Solution(_unflatten(v.to(flat.dtype), b), Outcome.EXACT, residual, len(flat))


def _norm(r: Vector, z: Vector, r_z: float) -> float:
    """|r|, at hand where there is no preconditioner."""
    return math.sqrt(r_z) if z is r else r.norm()


def _unflatten(flat: torch.Tensor, like: Vector) -> Vector:
    parts = flat.split([piece.numel() for piece in like.pieces])
    return Vector(tuple(part.view_as(piece) for part, piece in zip(parts, like.pieces)))


def _relative_scale(level: Bilevel) -> Vector:
    if level.fixed_point is None:
        raise ValueError("adam: the problem knows no inner optimiser; give it fixed_point=FixedPoint.of(optimizer, parameters)")
    return level.fixed_point.relative_scale()
