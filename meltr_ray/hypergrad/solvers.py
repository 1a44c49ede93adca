"""Solvers for v = (H + damping I)^-1 b that need nothing but products with H.

Legend: H = d2_ww L (p x p), b = d_w F, r = b - (H + damping I) x the residual, d a search direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable

from meltr_ray.hypergrad.outcome import Outcome, Solution
from meltr_ray.vectors import Vector

Product = Callable[[Vector], Vector]


@dataclass(frozen=True)
class Identity:
    """v = b: H taken as the identity, as published (MELTR, section 3.3). No product; no extra memory."""

    def __call__(self, product: Product, b: Vector) -> Solution:
        return Solution(b, Outcome.EXACT, None, 0)


@dataclass(frozen=True)
class Neumann:
    """v = step sum_{j=0..iterations} (I - step (H + damping I))^j b (Lorraine et al. 2020, arXiv 1911.02590, eq. 8).

    Converges where step < 2 / lambda_max, slowly: after k terms the part of v along an eigenvalue lambda has reached
    1 - (1 - step lambda)^(k + 1) of its length, so v comes out short on flat directions. Safe where H is slightly
    indefinite. One product and two vectors.
    """

    iterations: int
    step: float
    damping: float = 0.0

    def __call__(self, product: Product, b: Vector) -> Solution:
        term, total = b, b
        for _ in range(self.iterations):
            term = term - self.step * (product(term) + self.damping * term)
            total = total + term
        ratio = term.norm() / (b.norm() or 1.0)  # (I - step A)^k b is also the residual of the truncated v
        if not math.isfinite(ratio):
            return Solution(b, Outcome.NOT_FINITE, None, self.iterations)
        outcome = Outcome.DIVERGED if ratio > 1 else Outcome.ITERATION_LIMIT
        return Solution(self.step * total, outcome, ratio, self.iterations)


@dataclass(frozen=True)
class ConjugateGradient:
    """Conjugate gradient (Hestenes and Stiefel 1952) from zero, at most `iterations` products; four vectors.

    Differs from the textbook in two ways. At negative curvature, d' (H + damping I) d <= 0, it stops with the x it has
    (with b, the identity solve, if that happens at once): past this point CG minimises nothing and its answer can point
    the wrong way. And it ends, with b, as soon as a product is not finite.
    """

    iterations: int
    damping: float = 0.0
    tolerance: float = 0.0

    def __call__(self, product: Product, b: Vector) -> Solution:
        x, r, d = 0.0 * b, b, b
        length = b.norm()
        squared = length**2
        for k in range(1, self.iterations + 1):
            if math.sqrt(squared) <= self.tolerance * length:
                return Solution(x, Outcome.CONVERGED, math.sqrt(squared) / (length or 1.0), k - 1)
            moved = product(d) + self.damping * d
            curvature = d @ moved
            if not math.isfinite(curvature):
                return Solution(b, Outcome.NOT_FINITE, None, k)
            if curvature <= 0:
                return Solution(x if k > 1 else b, Outcome.NEGATIVE_CURVATURE, math.sqrt(squared) / length, k)
            alpha = squared / curvature
            x, r = x + alpha * d, r - alpha * moved
            squared, before = r @ r, squared
            d = r + (squared / before) * d
        residual = math.sqrt(squared) / (length or 1.0)
        converged = residual <= self.tolerance
        return Solution(x, Outcome.CONVERGED if converged else Outcome.ITERATION_LIMIT, residual, self.iterations)


Solver = Identity | Neumann | ConjugateGradient

SOLVERS: dict[str, Callable[..., Solver]] = {
    "identity": lambda aid: Identity(),
    "neumann": lambda aid: Neumann(aid.iterations, aid.neumann_step, aid.damping),
    "cg": lambda aid: ConjugateGradient(aid.iterations, aid.damping, aid.cg_tolerance),
}
"""Name in `aid.solver` -> solver made from the settings `aid`."""
