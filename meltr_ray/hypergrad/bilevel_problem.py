"""`Bilevel` for a module whose inner loss depends on phi in any way: a regularisation strength, a weight of each example."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, Sequence

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad.fixed_point import FixedPoint
from meltr_ray.hypergrad.generators import get_generators
from meltr_ray.hypergrad.hessian import Hessian
from meltr_ray.hypergrad.module_problem import Pass
from meltr_ray.hypergrad.problem import Operator
from meltr_ray.hypergrad.products import HVP, MIXED, Choice, difference, radius_of
from meltr_ray.hypergrad.vectors import Vector
from meltr_ray.hypergrad.weights import ModuleWeights, tangent


class BilevelProblem:
    """min over phi of F(w, phi) where w minimises L(., phi). One process.

    The mixed product d_phi <d_w L, v> is the derivative of d_phi L along v: a difference of it, forward mode over it, or double
    backward. It costs passes with a backward into phi, where a combiner of T losses needs none (`ModuleProblem`).

    Args:
        module: w are its parameters that require a gradient.
        hyperparameters: phi, tensors that require a gradient, or a module that holds them.
        inner, outer: forward passes, () -> scalar L(w, phi) and F(w, phi).
        product, hessian_product, radius, accuracy, fixed_point: as for `ModuleProblem`.
    """

    def __init__(self, module: nn.Module, hyperparameters: nn.Module | Sequence[Tensor], inner: Pass, outer: Pass, *,
                 product: str = "auto", hessian_product: str = "auto", radius: float | None = None, accuracy: float = 0.01,
                 fixed_point: FixedPoint | None = None):  # fmt: skip
        self.weights, self.inner, self.outer = ModuleWeights(module), inner, outer
        self.radius, self.fixed_point = radius, fixed_point
        phi = hyperparameters.parameters() if isinstance(hyperparameters, nn.Module) else hyperparameters
        self.phi = [p for p in phi if p.requires_grad]
        if not self.phi:
            raise ValueError("hyperparameters: none requires a gradient; give the tensors that the outer loss is to be lowered by")
        self.choice = Choice("product", product, MIXED, accuracy, self.weights.dtype, self.weights.whole, self.weights.few)
        self.hvp_choice = Choice("hessian_product", hessian_product, HVP, accuracy, self.weights.dtype, self.weights.whole, self.weights.few)
        self.generators = get_generators(self.weights.device)
        self._direct: list[Tensor] | None = None
        self._kept: tuple[list[int], tuple[Tensor, ...]] | None = None

    @property
    def parameters(self) -> list[Tensor]:
        return self.weights.parameters

    def random(self, seed: int) -> Vector:
        return self.weights.random(seed)

    def outer_gradient(self) -> Vector:
        """d_w F; the same backward pass gives `direct`."""
        with self._replay():
            value = self.weights.forward(self.outer)
        reached = self.weights.differentiate(value, also=self.phi)
        self._direct = list(reached[len(self.parameters) :])
        return self.weights.hold(reached[: len(self.parameters)])

    def direct(self) -> list[Tensor]:
        if self._direct is None:
            self.outer_gradient()
        return self._direct

    def hessian(self) -> Operator:
        values = [lambda: self.weights.forward(self.inner)]
        hessian = Hessian(self.weights, values, self._replay, self.hvp_choice, self.radius, graph=self._slopes)
        if self.fixed_point is None:
            return hessian
        return lambda u: self.fixed_point.add_decay(hessian(u), u)

    def mixed(self, v: Vector) -> list[Tensor]:
        def phi_gradient_at(eps: float) -> Vector:
            with self._replay(), self.weights.moved(v, eps):
                return Vector(tuple(self._phi_gradient(self.weights.forward(self.inner))))

        def radius(product: str) -> float:
            return self.radius or radius_of(product, self.weights.dtype)

        found = self.choice.take({
            "one_sided": lambda: difference(phi_gradient_at, v, radius("one_sided"), lambda: phi_gradient_at(0.0)),
            "central": lambda: difference(phi_gradient_at, v, radius("central")),
            "forward": lambda: self._forward_mode(v),
            "double_backward": lambda: self._double_backward(v),
        })  # fmt: skip
        return list(found.pieces)

    @contextmanager
    def _replay(self) -> Iterator[None]:
        with self.weights.replayed(self.generators):
            yield

    def _slopes(self) -> tuple[Tensor, ...]:
        """d_w L with its graph, shared by the solve and the mixed product where both go by double backward."""
        versions = [*self.weights.versions(), *(p._version for p in self.phi)]
        if self._kept is None or self._kept[0] != versions:
            with self._replay():
                self._kept = versions, self.weights.differentiate(self.weights.forward(self.inner), create_graph=True)
        return self._kept[1]

    def _phi_gradient(self, value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, self.phi, allow_unused=True, materialize_grads=True))

    def _forward_mode(self, v: Vector) -> Vector:
        with self._replay():
            pieces = self.weights.along(
                v, lambda duals: [tangent(g) for g in self._phi_gradient(self.weights.forward(self.inner))], with_graph=True)  # fmt: skip
        return Vector(tuple(pieces))

    def _double_backward(self, v: Vector) -> Vector:
        slopes, self._kept = self._slopes(), None  # after the solve its graph is not needed any more
        along = sum((g * piece).sum() for g, piece in zip(slopes, v.pieces))
        self.weights.passes["backward"] += 1
        return Vector(tuple(self._phi_gradient(along) if along.requires_grad else [torch.zeros_like(p) for p in self.phi]))
