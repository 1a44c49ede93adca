"""meltr_ray: BilevelProblem with each solver, and each way to form the products."""

from __future__ import annotations

from typing import Callable

import torch
from numpy import ndarray
from peers_problems import Problem
from peers_torch import Parameter, torch_losses

from meltr_ray.hypergrad import BilevelProblem, ConjugateGradient, Dense, Identity, Neumann, Nystrom, hypergradient

METHODS = {
    "cg": "iterations",
    "cg, forward over reverse": "iterations",
    "cg, central differences": "iterations",
    "cg, auto": "iterations",
    "neumann": "iterations",
    "nystrom": "rank",
    "dense": None,
    "identity": None,
}
PRODUCTS = {
    "cg, forward over reverse": ("forward", "forward_over_reverse"),
    "cg, central differences": ("central", "central"),
    "cg, auto": ("auto", "auto"),
}
"""Method -> mixed product, Hessian product; all others use the exact `double_backward`."""


def prepare(problem: Problem, method: str, size: int) -> Callable[[], ndarray]:
    """A function that computes the hypergradient (q,) once."""
    inner, outer = torch_losses(problem)
    module = Parameter(problem.weights)
    phi = torch.tensor(problem.hyperparameters, requires_grad=True)
    product, hessian_product = PRODUCTS.get(method, ("double_backward", "double_backward"))
    solver = _solver(problem, method.split(",")[0], size)

    def call() -> ndarray:
        # a problem stands for one w, so it is made anew as in a training loop
        bilevel = BilevelProblem(
            module,
            [phi],
            inner=lambda: inner(module(), phi),
            outer=lambda: outer(module(), phi),
            product=product,
            hessian_product=hessian_product,
        )
        return hypergradient(bilevel, solver=solver).total()[0].detach().numpy()

    return call


def _solver(problem: Problem, name: str, size: int) -> Callable:
    if name == "cg":
        return ConjugateGradient(size)
    if name == "neumann":
        return Neumann(size, 1 / problem.largest)
    if name == "nystrom":
        # what the sketch misses errs by 1 / damping, what it catches by the damping: between the ends of the spectrum
        return Nystrom(size, (problem.smallest * problem.largest) ** 0.5)
    return Dense() if name == "dense" else Identity()
