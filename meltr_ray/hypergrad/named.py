"""Solvers by the names that settings give them; a new one is a line here."""

from __future__ import annotations

from meltr_ray.hypergrad.low_rank import LossSpace, Nystrom
from meltr_ray.hypergrad.solvers import ConjugateGradient, Identity, Neumann, Solver

SOLVERS: dict[str, type[Solver]] = {
    "identity": Identity,
    "neumann": Neumann,
    "cg": ConjugateGradient,
    "nystrom": Nystrom,
    "loss_space": LossSpace,
}
"""Name in `aid.solver` -> solver; `Dense` is for tests and by hand."""
