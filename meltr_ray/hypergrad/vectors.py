"""The vector space of the weights w: plain tensors, or one rank's shards of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional, Sequence

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vector:
    """A vector in R^p, held in the pieces in which w is held.

    Args:
        pieces: one tensor for each parameter: the whole of it, or this rank's shard.
        reduce: sums a tensor over the ranks that hold the other shards, in place; None where every rank holds all.
    """

    pieces: tuple[Tensor, ...]
    reduce: Optional[Callable[[Tensor], None]] = None

    def __add__(self, other: Vector) -> Vector:
        return self.plus(1.0, other)

    def __sub__(self, other: Vector) -> Vector:
        return self.plus(-1.0, other)

    def __rmul__(self, factor: float) -> Vector:
        return self._map(torch._foreach_mul(self.pieces, factor))

    def plus(self, factor: float, other: Vector) -> Vector:
        """self + factor other, without a vector in between."""
        return self._map(torch._foreach_add(self.pieces, other.pieces, alpha=factor))

    def times(self, other: Vector) -> Vector:
        """Product entry by entry: a diagonal matrix times this vector."""
        return self._map(torch._foreach_mul(self.pieces, other.pieces))

    def divided_by(self, other: Vector) -> Vector:
        """Quotient entry by entry."""
        return self._map(torch._foreach_div(self.pieces, other.pieces))

    def root(self) -> Vector:
        """Square root entry by entry."""
        return self._map(torch._foreach_sqrt(self.pieces))

    def mean(self) -> float:
        """Of all entries."""
        ones = self._map([torch.ones_like(piece) for piece in self.pieces])
        return float(ones @ self) / float(ones @ ones)

    def __matmul__(self, other: Vector) -> float:
        """Inner product; the pieces' own are summed in float64, in one order, so every rank has the same number."""
        return float(self.dots([other])[0])

    def dots(self, others: Sequence[Vector]) -> Tensor:
        """Inner products with several vectors, (n,) float64 on the CPU, reduced over shards in one collective."""
        # no product is formed: at 200 M weights a temporary of that size would cost more than the sum
        columns = [torch.stack([_dot(a, b) for a, b in zip(self.pieces, other.pieces)]) for other in others]
        total = torch.stack(columns).double().sum(1)
        if self.reduce is not None:
            self.reduce(total)
        return total.cpu()

    def norm(self) -> float:
        return (self @ self) ** 0.5

    def _map(self, pieces: Sequence[Tensor]) -> Vector:
        return Vector(tuple(pieces), self.reduce)


def nothing_like(x: Tensor) -> Tensor:
    """A zero piece that takes no memory: for weights that a loss doesn't reach."""
    return x.new_zeros(()).expand(x.shape)


def is_nothing(piece: Tensor) -> bool:
    """Whether `piece` is such a zero piece."""
    return piece.numel() > 1 and not any(piece.stride()) and not piece.as_strided((), ())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a.new_zeros(()) if is_nothing(a) or is_nothing(b) else torch.dot(a.flatten(), b.flatten())
