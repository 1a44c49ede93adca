"""J v and H u by differences: first-order passes at moved weights, so they work with fused attention and shards.

Legend: R = |eps v| is the radius of the move; central differences err by O(eps^2), one-sided ones by O(eps).
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
        radius: length R of the move; the rule is R = 0.1 central, 0.01 one-sided in float32: above, the curvature of the
            function shows, below, rounding does.
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
