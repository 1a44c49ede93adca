"""Independent answers in dense float64: whole Hessians and Jacobians by torch.func, and linear solves."""

from __future__ import annotations

from functools import cached_property
from typing import Callable, Optional

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev


class DenseReference:
    """The bi-level problem of a small module, every derivative formed as a dense matrix.

    Args:
        module: in float64; its parameters are w.
        losses, primary: module -> (T,) losses of the training batch, module -> outer loss.
    """

    def __init__(self, module: nn.Module, losses: Callable[[nn.Module], Tensor], primary: Callable[[nn.Module], Tensor]):
        self.names = [name for name, _ in module.named_parameters()]
        self.shapes = [p.shape for p in module.parameters()]
        self.w = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
        self.losses = lambda w: self._call(module, losses, w)
        self.primary = lambda w: self._call(module, primary, w)

    def outer_gradient(self) -> Tensor:
        return jacrev(self.primary)(self.w)

    def hessian(self, combiner: nn.Module) -> Tensor:
        return hessian(lambda w: combiner(self.losses(w)))(self.w)

    def v(self, combiner: nn.Module, damping: float) -> Tensor:
        H = self.hessian(combiner)
        return torch.linalg.solve(H + damping * torch.eye(len(H), dtype=H.dtype), self.outer_gradient())

    def neumann(self, combiner: nn.Module, iterations: int, step: float, damping: float) -> Tensor:
        """The truncated series as a sum of matrix powers."""
        H = self.hessian(combiner)
        I = torch.eye(len(H), dtype=H.dtype)
        powers = sum(torch.linalg.matrix_power(I - step * (H + damping * I), j) for j in range(iterations + 1))
        return step * powers @ self.outer_gradient()

    def implicit(self, combiner: nn.Module, v: Tensor) -> Tensor:
        """-(d2 L / d phi d w) v by the whole mixed derivative, (q,)."""
        phi = dict(combiner.named_parameters())
        flat = torch.cat([p.detach().reshape(-1) for p in phi.values()])

        def slope_along_v(flat_phi: Tensor) -> Tensor:
            pieces = flat_phi.split([p.numel() for p in phi.values()])
            named = {name: piece.view_as(p) for (name, p), piece in zip(phi.items(), pieces)}
            return jacrev(lambda w: functional_call(combiner, named, (self.losses(w),)))(self.w) @ v

        return -jacrev(slope_along_v)(flat)

    def _call(self, module: nn.Module, function: Callable[[nn.Module], Tensor], w: Tensor) -> Tensor:
        pieces = w.split([shape.numel() for shape in self.shapes])
        named = {name: piece.view(shape) for name, piece, shape in zip(self.names, pieces, self.shapes)}

        class Bound(nn.Module):  # functional_call swaps parameters for the duration of one forward
            def __init__(self):
                super().__init__()
                self.inner = module

            def forward(self) -> Tensor:
                return function(self.inner)

        return functional_call(Bound(), {f"inner.{name}": value for name, value in named.items()}, ())


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm())


class DenseBilevel:
    """A bi-level problem as two functions of flat vectors, every derivative a dense float64 matrix, made row by row.

    Knows nothing of how phi enters: the mixed derivative is formed whole. Plain loops of `torch.autograd.grad`, for `jacrev` and
    whatever else batches rows by `vmap` gives wrong second derivatives of a layer norm with weights (torch 2.13).

    Args:
        inner, outer: (w (p,), phi (q,)) -> L and F, scalars.
        w, phi: where to differentiate; float64.
        losses, combine: w -> l (T,) and (l, phi) -> L, where the inner loss is made that way.
    """

    def __init__(self, inner: Callable[[Tensor, Tensor], Tensor], outer: Callable[[Tensor, Tensor], Tensor],
                 w: Tensor, phi: Tensor, losses: Optional[Callable[[Tensor], Tensor]] = None,
                 combine: Optional[Callable[[Tensor, Tensor], Tensor]] = None):  # fmt: skip
        self.inner, self.outer, self.w, self.phi, self.losses, self.combine = inner, outer, w, phi, losses, combine

    @property
    def hessian(self) -> Tensor:
        """H = d2_ww L, (p, p)."""
        return self._second_derivatives[0]

    @property
    def mixed(self) -> Tensor:
        """d2_w_phi L, (p, q)."""
        return self._second_derivatives[1]

    @property
    def outer_gradient(self) -> Tensor:
        """b = d_w F, (p,)."""
        return self._outer_gradients[0]

    @property
    def direct(self) -> Tensor:
        """d_phi F at fixed w, (q,)."""
        return self._outer_gradients[1]

    @cached_property
    def jacobian(self) -> Tensor:
        """J = dl/dw, (T, p)."""
        w = self.w.clone().requires_grad_()
        return rows(self.losses(w), [w])[0]

    @cached_property
    def gauss_newton(self) -> Tensor:
        """J^T G J, (p, p), G = d2_ll g_phi at l(w)."""
        l = self.losses(self.w).detach().requires_grad_()
        (slopes,) = torch.autograd.grad(self.combine(l, self.phi), l, create_graph=True)
        (G,) = rows(slopes, [l]) if slopes.requires_grad else [torch.zeros(len(l), len(l), dtype=l.dtype)]
        return self.jacobian.T @ G @ self.jacobian

    def total(self, v: Tensor) -> Tensor:
        """d F / d phi for this v, (q,)."""
        return self.direct - self.mixed.T @ v

    def gradient(self, w: Tensor, phi: Tensor) -> Tensor:
        """d_w L at another w and phi, (p,)."""
        w = w.detach().clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.inner(w, phi), w)[0]

    @cached_property
    def _second_derivatives(self) -> list[Tensor]:
        w, phi = self.w.clone().requires_grad_(), self.phi.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.inner(w, phi), w, create_graph=True)
        return rows(gradient, [w, phi])

    @cached_property
    def _outer_gradients(self) -> tuple[Tensor, ...]:
        w, phi = self.w.clone().requires_grad_(), self.phi.clone().requires_grad_()
        return torch.autograd.grad(self.outer(w, phi), [w, phi], allow_unused=True, materialize_grads=True)


def rows(values: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Jacobians of values (n,) with respect to each vector of `inputs`, (n, m) each, one backward pass a row."""
    made = [torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True, materialize_grads=True) for value in values]
    return [torch.stack(column) for column in zip(*made)]


def as_function(module: nn.Module, function: Callable[[nn.Module], Tensor]) -> Callable[[Tensor], Tensor]:
    """`function` of `module` as a function of the module's trained parameters in one flat vector, (p,) -> value."""
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    shapes = [p.shape for p in module.parameters() if p.requires_grad]

    class Bound(nn.Module):  # functional_call swaps parameters for the duration of one forward
        def __init__(self):
            super().__init__()
            self.bound = module

        def forward(self) -> Tensor:
            return function(self.bound)

    def of_flat(w: Tensor) -> Tensor:
        pieces = w.split([shape.numel() for shape in shapes])
        named = {f"bound.{name}": piece.view(shape) for name, piece, shape in zip(names, pieces, shapes)}
        return functional_call(Bound(), named, ())

    return of_flat


def trained(module: nn.Module) -> Tensor:
    """The module's trained parameters in one flat vector, (p,), the order of `as_function`."""
    return flat([p.detach() for p in module.parameters() if p.requires_grad])


def truncated_neumann(A: Tensor, b: Tensor, iterations: int, step: float) -> Tensor:
    """step sum_{j=0..iterations} (I - step A)^j b, the sum of matrix powers."""
    I = torch.eye(len(A), dtype=A.dtype)
    return step * sum(torch.linalg.matrix_power(I - step * A, j) for j in range(iterations + 1)) @ b


def textbook_conjugate_gradient(A: Tensor, b: Tensor, iterations: int) -> Tensor:
    """The k-th iterate of conjugate gradient on A x = b from zero, as in Golub and Van Loan, algorithm 11.3.3; numpy only."""
    matrix, r = A.numpy(), b.numpy().copy()
    x, p, rho = np.zeros_like(r), r.copy(), r @ r
    for _ in range(iterations):
        w = matrix @ p
        alpha = rho / (p @ w)
        x = x + alpha * p
        r = r - alpha * w
        rho_before, rho = rho, r @ r
        p = r + (rho / rho_before) * p
    return torch.from_numpy(x)


def second_derivative_error(gradient: Callable[..., tuple[Tensor, ...]], parameters: list[Tensor], v: list[Tensor]) -> float:
    """Relative error of double backward's H v beside a central difference of `gradient`, a function of autograd's options."""
    product = sum((g * d).sum() for g, d in zip(gradient(create_graph=True), v))
    hessian_v = torch.autograd.grad(product, parameters, allow_unused=True, materialize_grads=True)
    sides = []
    for eps in (1e-6, -1e-6):
        with torch.no_grad():
            torch._foreach_add_(parameters, v, alpha=eps)
        sides.append(gradient())
        with torch.no_grad():
            torch._foreach_add_(parameters, v, alpha=-eps)
    difference = flat([(a - b) / 2e-6 for a, b in zip(*sides)])
    exact = flat(list(hessian_v))
    return float((exact - difference).norm() / exact.norm())
