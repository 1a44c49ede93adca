"""Independent answers in dense float64: whole Hessians and Jacobians by torch.func, and linear solves."""

from __future__ import annotations

from typing import Callable

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
