"""A combiner whose dropout draws the same masks in every pass of a meta step."""

from __future__ import annotations

from typing import Any, Iterator, Optional

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad.generators import get_generators, set_generators


class Replayed:
    """Calls `combiner` with the generators where they stood at the first call, or at `seed`, and leaves them as they were.

    Else two passes of one difference would see two functions. `without_trace`: its buffers stay as they were, too, as a hypergradient
    asks; in a training step they move on.
    """

    def __init__(self, combiner: nn.Module, seed: int | None = None, without_trace: bool = False):
        self.combiner, self.seed, self.without_trace = combiner, seed, without_trace
        self._start: Optional[dict[str, Tensor]] = None

    def still(self) -> Replayed:
        """The same without a trace."""
        found = Replayed(self.combiner, self.seed, without_trace=True)
        found._start = self._start
        return found

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.combiner.parameters()

    def __call__(self, losses: Tensor, *batch: Any) -> Tensor:
        now = get_generators(losses.device)
        self._start = self._start or now
        modules = self.combiner.modules() if self.without_trace and isinstance(self.combiner, nn.Module) else ()
        buffers = [(m, name, b) for m in modules for name, b in m._buffers.items() if b is not None]
        try:
            for owner, name, buffer in buffers:
                owner._buffers[name] = buffer.clone()
            if self.seed is not None:
                torch.manual_seed(self.seed)
            else:
                set_generators(self._start, losses.device)
            return self.combiner(losses, *batch)
        finally:
            for owner, name, buffer in buffers:
                owner._buffers[name] = buffer
            set_generators(now, losses.device)
