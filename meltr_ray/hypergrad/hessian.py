"""H u, H = d2_ww L, each way. L = mean of several values, mean over ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Callable, Sequence

import torch
from torch import Tensor

from meltr_ray.hypergrad.problem import Operator
from meltr_ray.hypergrad.products import Choice, difference
from meltr_ray.hypergrad.vectors import Vector
from meltr_ray.hypergrad.weights import ModuleWeights, tangent


class Hessian:
    """u -> H u at one w.

    What products can share lives as long as this object: d_w L of the one-sided difference (p numbers), or the graph of
    d_w L of double backward; so memory doesn't grow with the number of products.

    Args:
        values: forward passes, () -> scalar; L is their mean.
        replay: context in which every pass sees the same masks.
        choice: which product; see `HVP` in products.py.
        radius: of a difference; None: by the rule there.
        gauss_newton: u -> J' (d2_ll g) J u, where L has that structure.
        differenced: forward passes whose gradients a difference is taken of, where those of `values` have kinks; the first
            call of each is made at w itself.
        graph: gives d_w L with its graph, where others need it too.
    """

    def __init__(self, weights: ModuleWeights, values: Sequence[Callable[[], Tensor]], replay: Callable[[], AbstractContextManager[None]],
                 choice: Choice, radius: float | None, gauss_newton: Operator | None = None,
                 differenced: Sequence[Callable[[], Tensor]] | None = None,
                 graph: Callable[[], tuple[Tensor, ...]] | None = None):  # fmt: skip
        self.weights, self.values, self.replay = weights, values, replay
        self.differenced = differenced or values
        self.choice, self.radius, self.gauss_newton = choice, radius, gauss_newton
        self._here: Vector | None = None
        self._seen_here = False
        self._make_graph = graph or self._slopes
        self._graph: tuple[Tensor, ...] | None = None

    def __call__(self, u: Vector) -> Vector:
        ways = {
            "one_sided": lambda: self._one_sided(u),
            "central": lambda: self._central(u),
            "double_backward": lambda: self._double_backward(u),
            "forward_over_reverse": lambda: self._forward_over_reverse(u),
        }
        return self.choice.take(ways | ({"gauss_newton": partial(self.gauss_newton, u)} if self.gauss_newton else {}))

    def _radius(self, product: str) -> float:
        return self.radius or self.weights.radius_of(product)

    def _gradient_along(self, u: Vector) -> Callable[[float], Vector]:
        def gradient_at(eps: float) -> Vector:
            with self.replay(), self.weights.moved(u, eps):
                return self.weights.gradient(self.differenced)

        return gradient_at

    def _one_sided(self, u: Vector) -> Vector:
        if self._here is None:
            with self.replay(), self.weights.moved(None, 0.0):
                self._here = self.weights.gradient(self.differenced)
        here = self._here
        return difference(self._gradient_along(u), u, self._radius("one_sided"), lambda: here)

    def _central(self, u: Vector) -> Vector:
        if self.differenced is not self.values and not self._seen_here:
            with self.replay(), self.weights.moved(None, 0.0), torch.no_grad():
                for value in self.differenced:
                    value()
            self._seen_here = True
        return difference(self._gradient_along(u), u, self._radius("central"))

    def _double_backward(self, u: Vector) -> Vector:
        """d_w <d_w L, u> on a graph of d_w L that is made once."""
        self._graph = self._graph or self._make_graph()
        curved = [(g, piece) for g, piece in zip(self._graph, u.pieces) if g.requires_grad]
        if not curved:  # L is linear in w
            return 0.0 * u
        self.weights.passes["backward"] += 1
        gradients, pieces = zip(*curved)
        product = torch.autograd.grad(gradients, self.weights.parameters, pieces, retain_graph=True, allow_unused=True,
                                      materialize_grads=True)  # fmt: skip
        return self.weights.vector(product)

    def _slopes(self) -> tuple[Tensor, ...]:
        with self.replay():
            return self.weights.differentiate(self._mean(), create_graph=True)

    def _mean(self) -> Tensor:
        first, *others = [value() for value in self.values]
        return sum(others, first) / len(self.values)

    def _forward_over_reverse(self, u: Vector) -> Vector:
        """Tangent of d_w L where w has the tangent u."""

        def product(duals: list[Tensor]) -> list[Tensor]:
            mean = self._mean()
            self.weights.passes["backward"] += 1
            return [tangent(g) for g in torch.autograd.grad(mean, duals, allow_unused=True, materialize_grads=True)]

        with self.replay():
            return self.weights.vector(self.weights.along(u, product, with_graph=True))
