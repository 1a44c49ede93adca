"""`Bilevel` for a module whose inner loss depends on phi in any way: a regularisation strength, a weight of each example."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad.arguments import check_passes
from meltr_ray.hypergrad.fixed_point import FixedPoint
from meltr_ray.hypergrad.generators import get_generators
from meltr_ray.hypergrad.graph import graph_of
from meltr_ray.hypergrad.hessian import Hessian
from meltr_ray.hypergrad.module_problem import check_product_options
from meltr_ray.hypergrad.problem import Operator, Pass
from meltr_ray.hypergrad.products import HVP, MIXED, Choice, difference
from meltr_ray.hypergrad.structure import check_apart, check_reach, check_scalar, tensors_of
from meltr_ray.hypergrad.tested_hessian import settle_hessian
from meltr_ray.hypergrad.tested_mixed import follows_values, settle_mixed
from meltr_ray.hypergrad.trust import SEED, Trust
from meltr_ray.hypergrad.vectors import Vector
from meltr_ray.hypergrad.weights import ModuleWeights, tangent


class BilevelProblem:
    """min over phi of F(w, phi) where w minimises L(., phi). One process.

    The mixed product d_phi <d_w L, v> is the derivative of d_phi L along v: a difference of it, forward mode over it, or double
    backward. It costs passes with a backward into phi, where a combiner of T losses needs none (`ModuleProblem`).

    Args:
        module: w are its parameters that require a gradient, without those that are phi.
        hyperparameters: phi, a tensor or several that require a gradient, or a module that holds them.
        inner, outer: forward passes, () -> scalar L(w, phi) and F(w, phi).
        product, hessian_product, radius, accuracy, fixed_point, trust: as for `ModuleProblem`.

    Raises:
        ValueError: a tensor of phi is frozen, computed from others, or shares memory with a weight.
    """

    def __init__(self, module: nn.Module, hyperparameters: nn.Module | Sequence[Tensor], inner: Pass, outer: Pass, *,
                 product: str = "auto", hessian_product: str = "auto", radius: float | None = None, accuracy: float = 0.01,
                 fixed_point: FixedPoint | None = None, trust: bool = False):  # fmt: skip
        check_product_options(radius, accuracy, fixed_point)
        check_passes("inner", [inner])
        check_passes("outer", [outer])
        self.all = tensors_of("hyperparameters", hyperparameters)
        self.phi = [p for p in self.all if p.requires_grad]
        self.weights, self.inner, self.outer = ModuleWeights(module, without=self.phi), inner, outer
        self.radius, self.fixed_point, self.trusts = radius, fixed_point, trust
        self.trust = Trust(module, [inner], (self.weights.dtype, radius, len(self.weights.parameters)))
        self._signature: int | None = None
        check_apart("hyperparameters", self.phi, zip(self.weights.names, self.weights.parameters))
        if not self.phi:
            raise ValueError("hyperparameters: none requires a gradient; give the tensors that the outer loss is to be lowered by")
        self.choice = Choice("product", product, MIXED, accuracy, self.weights.dtype, self.weights.whole, self.weights.few)
        self.hvp_choice = Choice(
            "hessian_product", hessian_product, HVP, accuracy, self.weights.dtype, self.weights.whole, self.weights.few
        )
        self.generators = get_generators(self.weights.device)
        self._direct: list[Tensor] | None = None
        self._kept: tuple[list[int], tuple[Tensor, ...]] | None = None

    @property
    def parameters(self) -> list[Tensor]:
        return self.weights.parameters

    def random(self, seed: int) -> Vector:
        return self.weights.random(seed)

    def outer_gradient(self) -> Vector:
        """d_w F; the same backward pass gives `direct`. What was kept of an earlier hypergradient may be of another batch."""
        self._kept, self._signature = None, None
        with self._replay():
            value = check_scalar("outer", self.weights.forward(self.outer))
        if value.requires_grad:
            check_reach("outer", [value], self.weights.module, self.parameters, beside=self.phi)
        reached = self.weights.differentiate(value, also=self.phi)
        self._direct = list(reached[len(self.parameters) :])
        return self.weights.hold(reached[: len(self.parameters)])

    def direct(self) -> list[Tensor]:
        if self._direct is None:
            self.outer_gradient()
        assert self._direct is not None
        return self._whole(self._direct)

    def hessian(self) -> Operator:
        hessian = self._hessian(self.hvp_choice, self.radius, self._slopes)

        def product(u: Vector) -> Vector:
            if not self.trusts and not self.trust.is_settled(self.hvp_choice):
                with self.weights.testing():
                    self._settle_hessian(u)
            return hessian(u) if self.fixed_point is None else self.fixed_point.add_decay(hessian(u), u)

        return product

    def holds(self) -> bool:
        """Whether the products were tested on an inner loss like the one at hand; False: a hypergradient has to be taken again."""
        if self.trusts or self._signature is None or self.trust.knows(self._signature):
            return True
        self.choice.reset()
        self.hvp_choice.reset()
        return False

    def mixed(self, v: Vector) -> list[Tensor]:
        """d_phi <d_w L, v>, a tensor for each of phi, zero for a frozen one."""
        if not self.trusts:
            with self.weights.testing():
                settle_mixed(self, v)
        return self._whole(self._mixed(v, self.choice))

    def mixed_by(self, name: str, v: Vector) -> list[Tensor]:
        """The mixed product by the way of this name."""
        kept, self._kept = self._kept, None  # the solve's graph is to last
        try:
            return self._mixed(v, Choice("product", name, MIXED, self.choice.accuracy, self.weights.dtype, True))
        finally:
            self._kept = kept

    def gradient(self) -> Vector:
        """d_w L by an ordinary backward pass."""
        with self._replay():
            return self.weights.hold(self.weights.differentiate(self._value()))

    def value_at(self, u: Vector, eps: float) -> float:
        """L(w + eps u)."""
        with torch.no_grad(), self._replay(), self.weights.moved(u, eps):
            return float(self._value())

    def look(self) -> None:
        """A forward pass that tells which verdict this inner loss has."""

        def values() -> list[Tensor]:
            value = self._value()
            check_reach("inner", [value], self.weights.module, self.parameters, beside=self.phi)
            return [value]

        with self._replay():
            self.trust.look(lambda: graph_of(values()).signature, (self.choice, self.hvp_choice))

    def _settle_hessian(self, u: Vector) -> None:
        self.look()
        if self.trust.is_settled(self.hvp_choice):
            return
        self.trust.verdict.follows = follows_values(self, u)

        def product(name: str, radius: float, u: Vector) -> Vector:
            choice = Choice("hessian_product", name, HVP, self.choice.accuracy, self.weights.dtype, True)
            return self._hessian(choice, radius or self.radius)(u)

        settle_hessian(self.trust, self.hvp_choice, product, self.gradient, u, self.random(SEED), self.weights.radius_of("central"),
                       self.radius, self.weights.dtype, whole=True)  # fmt: skip

    def _hessian(self, choice: Choice, radius: float | None, graph: Callable[[], tuple[Tensor, ...]] | None = None) -> Hessian:
        return Hessian(self.weights, [self._value], self._replay, choice, radius, graph=graph)

    def _value(self) -> Tensor:
        return check_scalar("inner", self.weights.forward(self.inner))

    def _whole(self, found: Sequence[Tensor]) -> list[Tensor]:
        by_tensor = {id(p): g for p, g in zip(self.phi, found)}
        return [by_tensor[id(p)] if id(p) in by_tensor else torch.zeros_like(p) for p in self.all]

    def _mixed(self, v: Vector, choice: Choice) -> list[Tensor]:
        def phi_gradient_at(eps: float) -> Vector:
            with self._replay(), self.weights.moved(v, eps):
                return Vector(tuple(self._phi_gradient(self._seen(self._value()))))

        def radius(product: str) -> float:
            return self.radius or self.weights.radius_of(product)

        found = choice.take({
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
                self._kept = versions, self.weights.differentiate(self._seen(self._value()), create_graph=True)
        return self._kept[1]

    def _seen(self, value: Tensor) -> Tensor:
        """Notes what graph L has."""
        self._signature = self._signature or graph_of([value]).signature
        return value

    def _phi_gradient(self, value: Tensor) -> list[Tensor]:
        if not value.requires_grad:
            return [torch.zeros_like(p) for p in self.phi]
        return list(torch.autograd.grad(value, self.phi, allow_unused=True, materialize_grads=True))

    def _forward_mode(self, v: Vector) -> Vector:
        with self._replay():
            pieces = self.weights.along(
                v, lambda duals: [tangent(g) for g in self._phi_gradient(self._value())], with_graph=True)  # fmt: skip
        return Vector(tuple(pieces))

    def _double_backward(self, v: Vector) -> Vector:
        slopes, self._kept = self._slopes(), None  # after the solve its graph is not needed any more
        along = torch.stack([(g * piece).sum() for g, piece in zip(slopes, v.pieces)]).sum()
        self.weights.passes["backward"] += 1
        return Vector(tuple(self._phi_gradient(along) if along.requires_grad else [torch.zeros_like(p) for p in self.phi]))
