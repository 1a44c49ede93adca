"""How far the products of a problem are off, measured on the problem itself."""

from __future__ import annotations

from typing import Callable, Sequence

import torch
from torch import Tensor

from meltr_ray.hypergrad.module_problem import LossesProblem
from meltr_ray.hypergrad.problem import Combiner
from meltr_ray.hypergrad.products import NotAdmitted, radius_of
from meltr_ray.hypergrad.vectors import Vector


def product_errors(problem: LossesProblem, combiner: Combiner, v: Vector) -> dict[str, float]:
    """Relative error of this problem's J v and H v, by the names `jvp` and `hvp`, at the price of several passes.

    The reference is the first of these that the model admits: forward mode, double backward, central differences of two
    radii extrapolated to zero (Richardson). Gauss-Newton products are measured against H, which they leave a part of out.

    Raises:
        ValueError: two passes at the same w differ, so that no difference can be trusted.
    """
    first, second = (problem.losses_along(v)(None) for _ in range(2))
    if not torch.equal(first, second):
        raise ValueError("losses: two passes at the same weights differ; use one batch and torch's own generator for all randomness")
    J_v = _reference(("forward", "double_backward"), lambda name: problem.jvp(v, name))
    H_v = _reference(("forward_over_reverse", "double_backward"), lambda name: problem.hessian(combiner, name)(v).pieces)
    return {
        "jvp": _relative_error([problem.jvp(v)], [J_v] if J_v is not None else [_extrapolated(problem, lambda: problem.jvp(v, "central"))]),
        "hvp": _relative_error(
            problem.hessian(combiner)(v).pieces,
            H_v if H_v is not None else _extrapolated(problem, lambda: problem.hessian(combiner, "central")(v)).pieces,
        ),
    }


def _reference(names: tuple[str, ...], product: Callable[[str], Tensor | tuple[Tensor, ...]]) -> Tensor | tuple[Tensor, ...] | None:
    for name in names:
        try:
            return product(name)
        except NotAdmitted:
            continue
    return None


def _extrapolated(problem: LossesProblem, central: Callable[[], Tensor | Vector]) -> Tensor | Vector:
    """(4 D(R) - D(2 R)) / 3, whose error is O(R^4)."""
    radius, kept = problem.radius or radius_of("central", problem.weights.dtype), problem.radius
    try:
        problem.radius = radius
        near = central()
        problem.radius = 2 * radius
        far = central()
    finally:
        problem.radius = kept
    return (1 / 3) * ((4.0 * near) - far)


def _relative_error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    difference = sum(float((a - b).double().pow(2).sum()) for a, b in zip(got, expected)) ** 0.5
    return difference / (sum(float(b.double().pow(2).sum()) for b in expected) ** 0.5 or 1.0)
