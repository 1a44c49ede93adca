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
        return self._map(torch._foreach_add(self.pieces, other.pieces))

    def __sub__(self, other: Vector) -> Vector:
        return self._map(torch._foreach_sub(self.pieces, other.pieces))

    def __rmul__(self, factor: float) -> Vector:
        return self._map(torch._foreach_mul(self.pieces, factor))

    def __matmul__(self, other: Vector) -> float:
        """Inner product, summed in float64; the same number on every rank."""
        total = sum((torch.sum(a * b, dtype=torch.float64) for a, b in zip(self.pieces, other.pieces)),
                    torch.zeros((), dtype=torch.float64, device=self.pieces[0].device))  # fmt: skip
        if self.reduce is not None:
            self.reduce(total)
        return float(total)

    def norm(self) -> float:
        return (self @ self) ** 0.5

    def _map(self, pieces: Sequence[Tensor]) -> Vector:
        return Vector(tuple(pieces), self.reduce)
