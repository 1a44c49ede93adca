"""Hypergradients by approximate implicit differentiation, for any torch module."""

from meltr_ray.hypergrad.adam_rule import AdamRule
from meltr_ray.hypergrad.bilevel_problem import BilevelProblem
from meltr_ray.hypergrad.fixed_point import FixedPoint
from meltr_ray.hypergrad.hypergradient import hypergradient
from meltr_ray.hypergrad.low_rank import LossSpace, Nystrom
from meltr_ray.hypergrad.module_problem import LossesProblem, ModuleProblem
from meltr_ray.hypergrad.outcome import HyperGradient, Outcome, Solution
from meltr_ray.hypergrad.problem import Bilevel, Problem
from meltr_ray.hypergrad.products import NotAdmitted
from meltr_ray.hypergrad.self_check import product_errors
from meltr_ray.hypergrad.solvers import ConjugateGradient, Dense, Identity, Neumann
from meltr_ray.hypergrad.structure import InvalidLosses
from meltr_ray.hypergrad.through_training import TrainingGradient, training_gradient
from meltr_ray.hypergrad.unrolled import unrolled_hypergradient

__all__ = ["AdamRule", "Bilevel", "BilevelProblem", "ConjugateGradient", "Dense", "FixedPoint", "HyperGradient", "Identity", "InvalidLosses",
           "LossSpace", "LossesProblem", "ModuleProblem", "Neumann", "NotAdmitted", "Nystrom", "Outcome", "Problem", "Solution", "TrainingGradient",
           "hypergradient", "product_errors", "training_gradient", "unrolled_hypergradient"]  # fmt: skip
