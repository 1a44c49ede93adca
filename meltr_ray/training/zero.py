"""The weights of a DeepSpeed engine as `hypergrad` uses them: whole under ZeRO 0 to 2, in shards under ZeRO 3.

The meta step stays clear of DeepSpeed's own gradients. Where every rank holds all weights, gradients come from
`torch.autograd.grad` and one mean over ranks. Under stage 3 weights are gathered layer by layer, so the gradient goes
through `engine.backward`, is read shard by shard and cleared without a step.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from meltr_ray.hypergrad.fixed_point import FixedPoint, adam_scale
from meltr_ray.hypergrad.vectors import Vector
from meltr_ray.hypergrad.weights import ModuleWeights
from meltr_ray.training.deepspeed_imports import without

if TYPE_CHECKING:  # at run time it is imported below, once its machine is said
    from deepspeed import DeepSpeedEngine

os.environ.setdefault("LOCAL_RANK", "0")  # asked for by DeepSpeed; Ray Train sets the real one before this import
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed guesses, with a warning
with without("mlflow"):
    from deepspeed.utils import (
        safe_get_full_optimizer_state,
        safe_get_local_grad,
        safe_get_local_optimizer_state,
    )


class WholeWeights(ModuleWeights):
    """w under ZeRO 0 to 2: every rank holds all of it; p numbers a rank for each vector."""

    def __init__(self, engine: DeepSpeedEngine, average: Callable[[Sequence[Tensor]], list[Tensor]]):
        super().__init__(engine.module, average)
        self.engine = engine

    def versions(self) -> list[int]:
        return [self.engine.global_steps]

    def second_moments(self) -> list[Tensor]:
        """Adam's, one for each parameter (a collective under stages 1 and 2)."""
        if self.engine.zero_optimization_stage() == 0:
            return [self.engine.optimizer.state[p]["exp_avg_sq"] for p in self.parameters]
        return [safe_get_full_optimizer_state(p, "exp_avg_sq") for p in self.parameters]


class ShardedWeights(WholeWeights):
    """w under ZeRO 3: p / R numbers a rank for each vector, R ranks."""

    whole = False

    def gradient(self, values: Sequence[Callable[[], Tensor]]) -> Vector:
        total = self._gradient(values[0])
        for value in values[1:]:
            total = total + self._gradient(value)
        return total if len(values) == 1 else (1 / len(values)) * total

    def random(self, seed: int) -> Vector:
        generator = torch.Generator(self.device).manual_seed(seed * 1009 + dist.get_rank())
        shards = [p.ds_tensor for p in self.parameters]
        pieces = [torch.randn(s.shape, generator=generator, device=s.device, dtype=s.dtype) for s in shards]
        for p, piece in zip(self.parameters, pieces):  # the last shards are padded
            piece.flatten()[max(0, p.ds_numel - dist.get_rank() * piece.numel()) :] = 0
        return self.hold(pieces)

    def second_moments(self) -> list[Tensor]:
        return [safe_get_local_optimizer_state(p, "exp_avg_sq").view_as(p.ds_tensor) for p in self.parameters]

    def vector(self, pieces: Sequence[Tensor]) -> Vector:
        return self.hold(pieces)

    @contextmanager
    def moved(self, v: Vector | None, eps: float, consume: bool = False) -> Iterator[None]:
        held = self.shards()
        saved = [shard.clone() for shard in held] if v is not None else []
        self.is_moved = True
        try:
            if v is not None:
                torch._foreach_add_(held, v.pieces, alpha=eps)
            yield
        finally:  # from the copy: adding and subtracting is not exact
            self.is_moved = False
            if v is not None:
                torch._foreach_copy_(self.shards(), saved)

    def shards(self) -> list[Tensor]:
        """This rank's pieces of w, live."""
        for p in self.parameters:  # one that stayed gathered after a forward would hide a move of its shard
            p.partition()
        return [p.ds_tensor.data for p in self.parameters]

    def _gradient(self, value: Callable[[], Tensor]) -> Vector:
        optimizer = self.engine.optimizer
        optimizer.grad_partitions_flat_buffer.zero_()  # a parameter that `value` does not reach keeps an old gradient
        self.engine.set_gradient_accumulation_boundary(True)
        try:
            loss = value()
            self.passes["backward"] += 1
            self.engine.backward(loss, scale_wrt_gas=False)
            pieces = [safe_get_local_grad(p).clone().view_as(p.ds_tensor) for p in self.parameters]
        finally:
            self.engine._is_gradient_accumulation_boundary = None  # back to counting micro-batches
            optimizer.zero_grad()
            optimizer.grad_partitions_flat_buffer.zero_()
        return self.hold(pieces)

    def hold(self, pieces: Sequence[Tensor]) -> Vector:
        return Vector(tuple(pieces), reduce=dist.all_reduce)


def fixed_point(weights: WholeWeights, decay: Sequence[float], beta: float, epsilon: float) -> FixedPoint:
    """AdamW's fixed point at the present w; before its first step D is the identity."""
    steps = weights.engine.global_steps
    moments = weights.second_moments()
    scale = [adam_scale(m, steps, beta, epsilon) if steps else torch.ones_like(m) for m in moments]
    return FixedPoint(decay, weights.hold(scale))
