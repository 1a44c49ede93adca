"""J v and H u by differences: first-order passes at moved weights, so they work with fused attention and shards.

Legend: R = |eps v| is the radius of the move; central differences err by O(R^2), one-sided ones by O(R), and rounding adds
about 1 / R. Relative error of J v in float32, five losses, against float64 double backward:

    UniVL of width 16, untrained   central  R = .1: 5e-1   .01: 1e-2   .003: 1e-3   .001: 1e-4   one-sided  .01: 2e-1   .001: 2e-2
    UniVL of width 64, untrained            R = .1: 3e-1   .01: 4e-3   .003: 3e-4   .001: 6e-5              .01: 1e-1   .001: 1e-2
    UniVL of width 64, 150 steps            R = .1: 7e-2   .01: 1e-3   .003: 1e-4   .001: 1e-4              .01: 1e-1   .001: 1e-2

Small models bend more along v: a radius of 0.1, fine for 200 M parameters, is useless here. Hence the rule, 0.003 central and
0.001 one-sided.
"""

from __future__ import annotations

from typing import Callable, TypeVar

from meltr_ray.vectors import Vector

Value = TypeVar("Value")  # (T,) losses, or a Vector


def directional_derivative(
    value_at: Callable[[float], Value], v: Vector, radius: float, here: Callable[[], Value] | None = None
) -> Value:
    """Derivative of a function of w along v: central, or one-sided if its value `here`, at w itself, is at hand.

    Args:
        value_at: function's value at w + eps v, given eps.
        radius: length R of the move.
        here: gives the value at w; called after the moved pass, so that a cached forward can still be the last one.
    """
    length = v.norm()
    if length == 0:
        return 0.0 * (value_at(0.0) if here is None else here())
    eps = radius / length
    ahead = value_at(eps)
    if here is None:
        return (0.5 / eps) * (ahead - value_at(-eps))
    return (1 / eps) * (ahead - here())
