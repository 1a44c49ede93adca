"""torchopt (Ren et al. 2022, arXiv 2211.06934): `custom_root` around the inner solver, as in its documentation."""

from __future__ import annotations

from typing import Callable

import torch
import torchopt
from numpy import ndarray
from peers_problems import Problem
from peers_torch import torch_losses
from torch import Tensor
from torchopt.diff.implicit import custom_root

METHODS = {"cg": "iterations", "normal cg (its default)": "iterations", "neumann": "iterations", "inverse": None}


def prepare(problem: Problem, method: str, size: int) -> Callable[[], ndarray]:
    """A function that computes the hypergradient (q,) once; the inner solver returns the w* it is given."""
    inner, outer = torch_losses(problem)
    w = torch.tensor(problem.weights)
    phi = torch.tensor(problem.hyperparameters, requires_grad=True)

    @custom_root(torch.func.grad(inner, argnums=0), argnums=1, solve=_linear_solver(problem, method, size))
    def solve_inner(initial: Tensor, phi: Tensor) -> Tensor:
        return initial

    def call() -> ndarray:
        (gradient,) = torch.autograd.grad(outer(solve_inner(w, phi), phi), phi)
        return gradient.numpy()

    return call


def _linear_solver(problem: Problem, method: str, size: int) -> Callable:
    """Tolerances are zero, so that the iterations alone decide."""
    if method == "cg":
        return torchopt.linear_solve.solve_cg(maxiter=size, rtol=0.0, atol=0.0)
    if method == "neumann":
        return torchopt.linear_solve.solve_inv(ns=True, maxiter=size, alpha=1 / problem.largest)
    if method == "inverse":
        return torchopt.linear_solve.solve_inv()
    return torchopt.linear_solve.solve_normal_cg(maxiter=size, rtol=0.0, atol=0.0)
