"""Hypergradients by approximate implicit differentiation, for any model that returns several losses."""

from meltr_ray.hypergrad.hypergradient import HyperGradient, hypergradient
from meltr_ray.hypergrad.module_problem import ModuleProblem
from meltr_ray.hypergrad.outcome import Outcome
from meltr_ray.hypergrad.problem import Problem
from meltr_ray.hypergrad.solvers import SOLVERS, ConjugateGradient, Identity, Neumann

__all__ = ["ConjugateGradient", "HyperGradient", "Identity", "ModuleProblem", "Neumann", "Outcome", "Problem",
           "SOLVERS", "hypergradient"]  # fmt: skip
