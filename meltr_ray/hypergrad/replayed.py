"""A combiner whose dropout draws the same masks in every pass of a meta step."""

from __future__ import annotations

from typing import Any, Iterator

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad.generators import get_generators, set_generators


class Replayed:
    """Calls `combiner` with the generators where they stood at the first call, or at `seed`, and leaves them as they were.

    Else two passes of one difference would see two functions.
    """

    def __init__(self, combiner: nn.Module, seed: int | None = None):
        self.combiner, self.seed = combiner, seed
        self._start: dict[str, Tensor] | None = None

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.combiner.parameters()

    def __call__(self, losses: Tensor, *batch: Any) -> Tensor:
        now = get_generators(losses.device)
        self._start = self._start or now
        try:
            if self.seed is not None:
                torch.manual_seed(self.seed)
            else:
                set_generators(self._start, losses.device)
            return self.combiner(losses, *batch)
        finally:
            set_generators(now, losses.device)
