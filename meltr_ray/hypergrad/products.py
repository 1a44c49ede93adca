"""Directional derivatives along v, each way: of the losses (J v), of d_w L (H u), of d_phi L (the mixed product).

A difference needs first-order passes alone, so it works with fused attention, activation checkpointing, compiled models and
shards. Forward mode and double backward are exact and need whole weights and operators that have those derivatives.

Rule for the step of a difference: w moves by the length R = |eps v|, whatever the size of v; R = 3 sqrt(u) one-sided and
0.6 cbrt(u) central, u the rounding unit of w's type. It balances the curvature along v, an error of O(R) one-sided and O(R^2)
central, with the rounding of the losses, O(u / R). Relative error of J v in float32, five losses, against float64 double
backward:

    UniVL of width 16, untrained   central  R = .1: 5e-1   .01: 1e-2   .003: 1e-3   .001: 1e-4   one-sided  .01: 2e-1   .001: 2e-2
    UniVL of width 64, untrained            R = .1: 3e-1   .01: 4e-3   .003: 3e-4   .001: 6e-5              .01: 1e-1   .001: 1e-2
    UniVL of width 64, 150 steps            R = .1: 7e-2   .01: 1e-3   .003: 1e-4   .001: 1e-4              .01: 1e-1   .001: 1e-2

Small models bend more along v: a radius of 0.1, fine for 200 M parameters, is useless here.

A random direction is another matter (`spread_difference`): of its length only one part in sqrt(p) lies along a gradient, and it bends by
the mean of the eigenvalues, not by the largest. A move of length R would drown there: every weight moves by R / 10 instead. Relative error of
J z in float32, one-sided, against forward mode, the median and the worst of the losses, by how far each weight moves:

    UniVL, 2.3 M weights, 60 steps    1e-3: 5e-2, 3e-1   1e-4: 7e-3, 3e-2   1e-5: 6e-3, 5e-2   length R, 7e-7: 8e-2, 5e-1
    UniVL, 200 M weights, untrained   1e-3: 2e-1, 5e-1   1e-4: 2e-2, 7e-2   3e-5: 5e-3, 2e-2   1e-6: 6e-2, 2e-1

The curvature along z is even in z and J z odd, so in the mean of (J z)(J z)' the error of one side counts by its square.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Callable, Mapping, TypeVar

import torch
from torch import Tensor

from meltr_ray.hypergrad.vectors import Vector

Value = TypeVar("Value", Tensor, Vector)  # losses, a Vector, or a list of phi's gradients as a Vector
log = logging.getLogger("meltr_ray")


@lru_cache
def tell(line: str) -> None:
    """Log a line once: problems are made anew for every meta step, and choose alike."""
    log.info(line)


class NotAdmitted(ValueError):
    """The model has no such derivative: one line that names the product and another."""


@dataclass(frozen=True)
class Product:
    """One way to take a directional derivative.

    Args:
        cost: passes that it takes, in those of what it differentiates (a forward pass, or one with its backward).
        error: relative error to be expected in float64, float32, and in half-precision arithmetic; left out: useless there.
        whole: whether it needs all weights at once, and operators with second or forward-mode derivatives.
    """

    cost: float
    error: Mapping[torch.dtype, float]
    whole: bool


EXACT = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 1e-1}
ONE_SIDED = Product(1, {torch.float64: 1e-5, torch.float32: 1e-2}, whole=False)
CENTRAL = Product(2, {torch.float64: 1e-7, torch.float32: 3e-3}, whole=False)

JVP = {"one_sided": ONE_SIDED, "central": CENTRAL, "forward": Product(2.5, EXACT, True), "double_backward": Product(5, EXACT, True),
       "gradients": Product(20, EXACT, True)}  # fmt: skip
"""J v; costs in forward passes. `gradients`: a backward pass for each loss, right for whatever training can follow."""

MIXED = {"one_sided": replace(ONE_SIDED, cost=2), "central": CENTRAL, "forward": Product(2.5, EXACT, True),
         "double_backward": Product(1.5, EXACT, True)}  # fmt: skip
"""The mixed product of hyperparameters that aren't a combiner's; costs in gradients by phi. Nothing is at hand for a one-sided difference, while
double backward shares its graph with the solve."""

HVP = {"one_sided": ONE_SIDED, "central": CENTRAL, "double_backward": Product(2, EXACT, True),
       "forward_over_reverse": Product(2.5, EXACT, True)}  # fmt: skip
"""H u; costs in gradients. `gauss_newton` is another H and so never chosen for anybody."""

FLOAT32_PASS = 4.0
"""Cost of a float32 pass, which a difference needs, in those of half-precision arithmetic."""


def radius_of(product: str, dtype: torch.dtype) -> float:
    """Length of a difference's move in weight space for weights of `dtype`."""
    unit = torch.finfo(dtype).eps
    return 0.6 * unit ** (1 / 3) if product == "central" else 3 * unit**0.5


def difference(value_at: Callable[[float], Value], v: Vector, radius: float, here: Callable[[], Value] | None = None) -> Value:
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


SPREAD = 0.1
"""Part of R that each weight moves by along a random direction (the errors stand above)."""
ROUNDING_UNITS = 4
"""Of a loss, by which two passes may differ where it has no derivative."""


def spread_difference(value_at: Callable[[float], Tensor], v: Vector, radius: float, here: Callable[[], Tensor] | None = None) -> Tensor:
    """Derivatives of numbers along a random v, its entries about 1: as `difference`, but for the length of the move.

    A number that changes by no more than rounding counts as constant: exactly 0.
    """
    eps = SPREAD * radius
    ahead = value_at(eps)
    behind, width = (value_at(-eps), 2 * eps) if here is None else (here(), eps)
    change = ahead - behind
    return change.masked_fill(change.abs() <= ROUNDING_UNITS * torch.finfo(change.dtype).eps * behind.abs(), 0.0) / width


NO_GRAPH = "does not require grad and does not have a grad_fn"
"""What torch says where a pass without a graph takes a gradient of its own."""
LACKING = (NO_GRAPH, "not implemented", "forward AD", "forward mode", "forward-mode", "functorch", "once_differentiable", "double backward",
           "twice_differentiable", "ZeroTensor")  # fmt: skip
"""How torch words that an operator has no second or no forward-mode derivative."""


def admitted(name: str, option: str, function: Callable[[], Value]) -> Value:
    """Run `function`, which takes the product `name`.

    Raises:
        NotAdmitted: an operator of the model lacks the derivative that the product needs.
    """
    try:
        return function()
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        if not any(phrase in reason for phrase in LACKING):
            raise
        raise NotAdmitted(
            f"{option}={name}: this model does not admit it ({reason[:90]}); use central, or unfused attention and no compilation"
        ) from error


class Choice:
    """`auto`: the cheapest product that promises the accuracy asked for and that the model turns out to admit.

    The model itself is asked: a product that raises for want of a derivative is struck off, once for all.

    Args:
        option, name: the setting and its value.
        products: all that there are.
        accuracy: relative error that `auto` may make.
        arithmetic: type that passes compute in.
        whole: whether this process holds all weights.
        few: whether arithmetic costs next to nothing, so that an exact product is the cheapest.
    """

    def __init__(self, option: str, name: str, products: dict[str, Product], accuracy: float, arithmetic: torch.dtype, whole: bool,
                 few: bool = False):  # fmt: skip
        if name not in (*products, "auto", "gauss_newton"):
            raise ValueError(f"{option}={name}: unknown; use one of auto, {', '.join(products)}")
        self.option, self.name, self.is_auto, self.accuracy = option, name, name == "auto", accuracy
        self.ranked = tuple(_ranked(products, accuracy, arithmetic, whole, few) if self.is_auto else [name])
        self.candidates = list(self.ranked)
        if not self.is_auto and name in products and products[name].whole and not whole:
            raise NotAdmitted(f"{option}={name}: it needs whole weights, which ZeRO stage 3 shards; use one_sided, central or auto")
        self.why = f"accuracy {accuracy:g} in {str(arithmetic).removeprefix('torch.')}, {'few' if few else 'whole' if whole else 'sharded'} weights"
        self.told = not self.is_auto

    def reset(self) -> None:
        """All candidates again."""
        self.candidates = list(self.ranked)

    def strike(self, name: str, reason: str) -> None:
        """Take the first candidate off.

        Raises:
            NotAdmitted: it was the last one.
        """
        if len(self.candidates) == 1:
            mend = (
                "use another solver, Identity() or LossSpace(), or trust=True"
                if self.is_auto
                else f"use {self.option}='auto', or trust=True"
            )
            raise NotAdmitted(f"{self.option}={self.name}: {name} is wrong here, {reason}; {mend}")
        tell(f"{self.option}=auto: {name} refused: {reason}")
        self.candidates.pop(0)

    def take(self, ways: dict[str, Callable[[], Value]]) -> Value:
        """Value of the first candidate that the model admits; `ways` has a function for each product."""
        while True:
            name = self.candidates[0]
            if name not in ways:
                raise ValueError(f"{self.option}={name}: not for this problem; use one of auto, {', '.join(ways)}")
            try:
                value = admitted(name, self.option, ways[name])
            except NotAdmitted as refusal:
                if len(self.candidates) == 1:
                    raise
                tell(f"{self.option}=auto: {name} refused: {refusal}")
                self.candidates.pop(0)
                continue
            if not self.told:
                tell(f"{self.option}=auto: {name}, the cheapest that this model admits ({self.why})")
                self.told = True
            return value


def _ranked(products: dict[str, Product], accuracy: float, arithmetic: torch.dtype, whole: bool, few: bool) -> list[str]:
    """Names by cost of those that promise `accuracy`, then the others, the most exact first; of few weights, the most exact first."""
    half = arithmetic not in (torch.float32, torch.float64)

    def error(product: Product) -> float:  # differences run in float32 even where the other passes don't
        return product.error.get(arithmetic) or product.error[torch.float32]

    def cost(product: Product) -> float:
        fresh = half and product is ONE_SIDED  # half-precision values at hand don't serve
        if few:
            return error(product)
        return (product.cost + fresh) * (FLOAT32_PASS if half and not product.whole else 1)

    able = {name: product for name, product in products.items() if whole or not product.whole}
    good = sorted(
        (name for name in able if error(able[name]) <= accuracy), key=lambda name: (cost(able[name]), error(able[name]), able[name].cost)
    )
    return good + sorted((name for name in able if name not in good), key=lambda name: error(able[name]))
