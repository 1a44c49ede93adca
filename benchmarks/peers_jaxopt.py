"""jaxopt (Blondel et al. 2022, arXiv 2105.15183): `custom_root` around the inner solver, compiled with `jax.jit`.

Compilation happens in the warm-up call and is reported apart. Data and w* are arguments, so that nothing is folded into constants.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxopt import implicit_diff, linear_solve
from numpy import ndarray
from peers_problems import Arrays, Problem, quadratic_value

jax.config.update("jax_enable_x64", True)

METHODS = {"cg": "iterations", "normal cg (its default)": "iterations", "lu": None}
SOLVERS = {"cg": linear_solve.solve_cg, "normal cg (its default)": linear_solve.solve_normal_cg}


def prepare(problem: Problem, method: str, size: int) -> Callable[[], ndarray]:
    """A function that computes the hypergradient (q,) once; the inner solver returns the w* it is given."""
    inner, outer = (quadratic_value, quadratic_value) if problem.kind == "quadratic" else (_inner_cleaning, _outer_cleaning)
    # tolerances are zero, so that the iterations alone decide
    solve = linear_solve.solve_lu if method == "lu" else partial(SOLVERS[method], maxiter=size, tol=0.0, atol=0.0)

    @implicit_diff.custom_root(jax.grad(lambda w, phi, parts: inner(parts, w, phi)), solve=solve)
    def solve_inner(initial: Array, phi: Array, parts: Any) -> Array:
        return initial

    @jax.jit
    @jax.grad
    def hypergradient(phi: Array, w: Array, inner_parts: Any, outer_parts: Any) -> Array:
        return outer(outer_parts, solve_inner(w, phi, inner_parts), phi)

    phi, w = jnp.asarray(problem.hyperparameters), jnp.asarray(problem.weights)
    inner_parts, outer_parts = _device(problem.inner), _device(problem.outer)
    return lambda: np.asarray(hypergradient(phi, w, inner_parts, outer_parts))


def _device(arrays: Arrays) -> dict[str, Array]:
    """Labels as rows of a unit matrix: custom_root differentiates every argument, and integers have no derivative."""
    return {name: jnp.asarray(np.eye(10)[array] if name == "labels" else array) for name, array in arrays.items()}


def _example_losses(parts: Any, w: Array) -> Array:
    """Cross-entropy of each example, (n,)."""
    logits = parts["features"] @ w
    return jax.nn.logsumexp(logits, axis=1) - (parts["labels"] * logits).sum(1)


def _inner_cleaning(parts: Any, w: Array, phi: Array) -> Array:
    return (jax.nn.sigmoid(phi) * _example_losses(parts, w)).mean() + 0.5 * parts["strength"] * (w * w).sum()


def _outer_cleaning(parts: Any, w: Array, phi: Array) -> Array:
    return _example_losses(parts, w).mean()
