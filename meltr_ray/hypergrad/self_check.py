"""How far the products of a problem are off, measured on the problem itself."""

from __future__ import annotations

from typing import Callable, Sequence

from torch import Tensor

from meltr_ray.hypergrad.module_problem import LossesProblem
from meltr_ray.hypergrad.problem import Combiner
from meltr_ray.hypergrad.products import NotAdmitted, Value
from meltr_ray.hypergrad.tested import check_repeatable
from meltr_ray.hypergrad.vectors import Vector

EXACT_HVP = ("forward_over_reverse", "double_backward")


def product_errors(problem: LossesProblem, combiner: Combiner | Sequence[Combiner], v: Vector) -> dict[str, float]:
    """Relative error of this problem's J v and H v, by the names `jvp` and `hvp`, at the price of several passes.

    The reference is of another family than the product. Of J v: <gradient of each loss, v>, or where that is the product or weights are
    in shards, central differences of two radii extrapolated to zero (Richardson). Of H v: these differences for an exact product, the
    first exact one that the model admits for a difference. Gauss-Newton products are measured against H, which they leave a part of out.

    Raises:
        ValueError: two passes at the same w differ, so that no difference can be trusted.
    """
    check_repeatable(problem, v)
    trusts, problem.trusts = problem.trusts, True  # what is measured is the product as it is
    try:
        J_v, H_v = problem.jvp(v), problem.hessian(combiner)(v).pieces
    finally:
        problem.trusts = trusts
    by_gradients = problem.weights.whole and problem.jvp_choice.candidates[0] != "gradients" and not problem.average_losses
    exact = () if problem.hvp_choice.candidates[0] in EXACT_HVP else EXACT_HVP
    reference = _reference(exact, lambda name: problem.hessian(combiner, name)(v).pieces)
    return {
        "jvp": _relative_error(
            [J_v], [problem.jvp(v, "gradients") if by_gradients else _extrapolated(problem, lambda: problem.jvp(v, "central"))]
        ),
        "hvp": _relative_error(
            H_v, reference if reference is not None else _extrapolated(problem, lambda: problem.hessian(combiner, "central")(v)).pieces
        ),
    }


def _reference(names: tuple[str, ...], product: Callable[[str], tuple[Tensor, ...]]) -> tuple[Tensor, ...] | None:
    for name in names:
        try:
            return product(name)
        except NotAdmitted:
            continue
    return None


def _extrapolated(problem: LossesProblem, central: Callable[[], Value]) -> Value:
    """(4 D(R) - D(2 R)) / 3, whose error is O(R^4)."""
    radius, kept = problem.radius or problem.weights.radius_of("central"), problem.radius
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
