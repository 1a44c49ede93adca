"""`Problem` for a plain torch module in one process: exact products, or the differences that the engine uses."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor

from meltr_ray.hypergrad.problem import Combiner
from meltr_ray.hypergrad.products import directional_derivative
from meltr_ray.vectors import Vector


class ModuleProblem:
    """The bi-level problem of a module's parameters.

    Args:
        parameters: w.
        losses: forward pass on the training batch, () -> (T,).
        primary: forward pass on the meta batch, () -> scalar.
        product: `exact` (double backward, needs attention that admits a second derivative), `central` or `one_sided`.
        radius: length of a difference's move in weight space.
    """

    def __init__(self, parameters: Sequence[Tensor], losses: Callable[[], Tensor], primary: Callable[[], Tensor],
                 product: str = "exact", radius: float = 0.003):  # fmt: skip
        self.parameters = [p for p in parameters if p.requires_grad]
        self.forward, self.primary = losses, primary
        self.product, self.radius = product, radius
        self.generator = torch.get_rng_state()
        self._losses: Tensor | None = None

    def losses(self) -> Tensor:
        if self._losses is None:
            self._losses = self.forward()
        return self._losses

    def outer_gradient(self) -> Vector:
        with self._same_masks():
            return self._differentiate(self.primary())

    def gradient(self, function: Combiner) -> Vector:
        with self._same_masks():
            return self._differentiate(function(self.forward()))

    def jvp(self, v: Vector) -> Tensor:
        if self.product == "exact":
            with self._same_masks():
                losses = self.forward()
            # J v as the derivative of c -> <J' c, v>: reverse over reverse, for modules without forward mode
            c = torch.zeros_like(losses, requires_grad=True)
            backward = torch.autograd.grad(losses, self.parameters, c, create_graph=True, materialize_grads=True)
            return torch.autograd.grad(sum((x * y).sum() for x, y in zip(backward, v.pieces)), c)[0]
        here = (lambda: self.losses().detach()) if self.product == "one_sided" else None
        return directional_derivative(lambda eps: self._losses_at(v, eps), v, self.radius, here)

    def hvp(self, u: Vector, combiner: Combiner) -> Vector:
        if self.product == "exact":
            with self._same_masks():
                first = torch.autograd.grad(combiner(self.forward()), self.parameters, create_graph=True,
                                            materialize_grads=True)  # fmt: skip
            return self._differentiate(sum((x * y).sum() for x, y in zip(first, u.pieces)))
        here = (lambda: self.gradient(combiner)) if self.product == "one_sided" else None

        def gradient_at(eps: float) -> Vector:
            with self._moved(u, eps):
                return self.gradient(combiner)

        return directional_derivative(gradient_at, u, self.radius, here)

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors)

    @torch.no_grad()
    def _losses_at(self, v: Vector, eps: float) -> Tensor:
        with self._same_masks(), self._moved(v, eps):
            return self.forward()

    def _differentiate(self, value: Tensor) -> Vector:
        return Vector(torch.autograd.grad(value, self.parameters, allow_unused=True, materialize_grads=True))

    @contextmanager
    def _moved(self, v: Vector, eps: float) -> Iterator[None]:
        saved = [p.detach().clone() for p in self.parameters]
        try:
            for p, piece in zip(self.parameters, v.pieces):
                p.data.add_(piece, alpha=eps)
            yield
        finally:  # from the copy: adding and subtracting is not exact
            for p, copy in zip(self.parameters, saved):
                p.data.copy_(copy)

    @contextmanager
    def _same_masks(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.generator)
            yield
