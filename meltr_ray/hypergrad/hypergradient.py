"""The hypergradient of a bi-level problem by the implicit function theorem (MELTR, arXiv 2303.13009, section 3.3).

Legend: w weights (p), phi parameters of the outer level, L(w, phi) inner loss, F(w, phi) outer loss, H = d2_ww L,
l(w) losses (T), g_phi combiner, a = d_l g_phi slopes (T), J = dl/dw (T x p).

    d F / d phi  =  d_phi F  -  d_phi <d_w L, v>,      v = (H + damping I)^-1 d_w F

With L = g_phi(l(w)), phi enters through T numbers alone, so d_phi <d_w L, v> = d_phi <a_phi(l), J v>: the losses' derivatives
along v and a backward pass through g_phi (combined.py). No second-order graph through the model is ever built.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional, Sequence, cast

from torch import Tensor, nn

from meltr_ray.errors import check
from meltr_ray.hypergrad.arguments import check_number
from meltr_ray.hypergrad.combined import CombinedLosses
from meltr_ray.hypergrad.outcome import HyperGradient, Solution
from meltr_ray.hypergrad.problem import Bilevel, Problem, TestedBilevel
from meltr_ray.hypergrad.replayed import Replayed
from meltr_ray.hypergrad.solvers import Identity, Solver
from meltr_ray.hypergrad.structure import check_combiner, check_finite, check_length
from meltr_ray.hypergrad.vectors import Vector


def hypergradient(problem: Problem | TestedBilevel, combiner: nn.Module | Replayed | None = None, solver: Solver = Identity(), gamma: float = 0.0,
                  regulariser: str = "phi_only", start: Optional[Vector] = None, keep_v: bool = True,
                  batches: Optional[Sequence[Any]] = None) -> HyperGradient:  # fmt: skip
    """d F / d phi at the w of `problem`.

    Args:
        problem: several losses that `combiner` makes one (`ModuleProblem`), or any other phi (`BilevelProblem`, no combiner).
        combiner: g_phi, (T,) -> scalar, twice differentiable; its dropout draws the same masks in every pass.
        solver: how v is found.
        gamma: weight of the outer regulariser |g_phi(l) - sum_t l_t|.
        regulariser: `phi_only` keeps its direct term; `full` also its part in w, one more backward pass; `paper` its part
            in w alone, which is what the published code computes.
        start: v of an earlier solve, for solvers that start warm.
        keep_v: False gives up the solution's v, whose memory the moved weights of a one-sided difference then take.
        batches: of each row of losses, for a combiner that is called with (losses, batch).

    Raises:
        InvalidLosses: a loss, the primary loss, a gradient of theirs or a slope is not finite, or all slopes are zero.
        NotAdmitted: the model lacks a derivative that the product asked for needs, or the product is wrong for this model.
        ValueError: losses or phi aren't what they should be; one line says which and how to mend it.
    """
    check_number("gamma", gamma)
    check(callable(solver) and not isinstance(solver, type), "solver", solver, "is no solver; give one that is made, such as Identity()")
    check(hasattr(problem, "outer_gradient"), "problem", f"a {type(problem).__name__}", "is none; give a ModuleProblem or a BilevelProblem")
    if hasattr(problem, "losses") != (combiner is not None):
        raise ValueError("combiner: a problem of several losses needs one, and a BilevelProblem takes none; give or leave it out")
    if combiner is None:
        bare = cast(TestedBilevel, problem)
        found = _taken(bare, solver, start, keep_v)
        return found if bare.holds() else _taken(bare, solver, start, keep_v)
    check_combiner(combiner)
    problem = cast(Problem, problem)
    level = CombinedLosses(problem, combiner, gamma, regulariser, keep_v, batches)
    problem.begin(level.combiner, level.phi)
    found = _taken(level, solver, start, keep_v)
    if not problem.holds(level.phi):
        found = _taken(level, solver, start, keep_v)
        problem.holds(level.phi)
    return replace(found, alignments=None if level.J_v is None else level.J_v.detach())


def _taken(level: Bilevel, solver: Solver, start: Optional[Vector], keep_v: bool) -> HyperGradient:
    b = level.outer_gradient()
    if b.reduce is None:
        check_finite("primary: its gradient is", b.pieces, "mend that loss (a root or a quotient at 0), or lower the learning rate")
        check_length("primary", b)
    solution = solver(level, b, start)
    return HyperGradient([-m for m in _mixed(level, solution)], level.direct(), solution if keep_v else replace(solution, v=None))


def _mixed(level: Bilevel, solution: Solution) -> list[Tensor]:
    """d_phi <d_w L, v>, of v or of J v, whichever the solver gave."""
    if isinstance(level, CombinedLosses) and solution.J_v is not None:
        return level.mixed_through(solution.J_v)
    assert solution.v is not None
    return level.mixed(solution.v)
