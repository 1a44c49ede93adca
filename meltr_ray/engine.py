"""DeepSpeed behind the seams of this project: the inner step on w, and `Problem` under ZeRO 0 to 3.

The meta step stays clear of DeepSpeed's own gradients. Under stages 0 to 2 every rank holds all weights, so gradients come
from `torch.autograd.grad` and one mean over ranks. Under stage 3 weights are gathered layer by layer, so the gradient goes
through `engine.backward`, is read shard by shard and cleared without a step.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from meltr_ray.config import AidConfig, Config
from meltr_ray.hypergrad.problem import Combiner
from meltr_ray.hypergrad.products import directional_derivative
from meltr_ray.vectors import Vector

os.environ.setdefault("LOCAL_RANK", "0")  # asked for by DeepSpeed; Ray Train sets the real one before this import
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed guesses, with a warning
import deepspeed  # noqa: E402
from deepspeed.utils import (  # noqa: E402
    safe_get_full_optimizer_state,
    safe_get_local_grad,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)

NO_DECAY = ("bias", "LayerNorm", "visual_norm2d")
ADAM_STATE = ("exp_avg", "exp_avg_sq")


def start_process_group(device: torch.device) -> None:
    """Make the process group of a run of one process, where Ray Train has not made one; needs no port."""
    # The shared-memory collectives are compiled at first use (half a minute) and leave segments behind after SIGKILL.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


class Engine:
    """Holds w: forward, backward and step through DeepSpeed, and what a meta step and a checkpoint need of it.

    Args:
        model: forward(batch, names=None) -> losses (T,), all of its parameters used inside module forwards.
        config: settings `optimizer`, `engine` and `train`.
        device: where the model runs.
    """

    def __init__(self, model: nn.Module, config: Config, device: torch.device):
        start_process_group(device)
        self.config, self.device, self.stage = config, device, config.engine.zero_stage
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.autocast = config.engine.precision == "bfloat16"
        optimizer = torch.optim.AdamW(_decay_groups(model, config.optimizer.weight_decay), config.optimizer.learning_rate)
        self.deepspeed, *_ = deepspeed.initialize(
            model=model.to(device),
            optimizer=optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": config.train.batch_size,
                "gradient_accumulation_steps": config.engine.gradient_accumulation,
                "gradient_clipping": config.optimizer.clip,
                "zero_optimization": {"stage": self.stage},
                "zero_allow_untested_optimizer": True,
            },
        )
        self.module = self.deepspeed.module
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]

    # --- the inner step

    def losses(self, batch: Any, names: tuple[str, ...] | None = None) -> Tensor:
        """Training forward of one micro-batch, (T,), with its graph."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return self.deepspeed(batch, names)

    def backward(self, loss: Tensor) -> None:
        self.deepspeed.backward(loss)

    def step(self, step: int) -> None:
        """Optimiser step at the end of the micro-batches of step number `step`, counted from 0."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.deepspeed.step()

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then linear decay to 0 (BertAdam's `warmup_linear`); a pure function of the step."""
        settings, total = self.config.optimizer, self.config.train.steps
        warm = settings.warmup * total
        done = step + 1
        factor = done / warm if done < warm else max(0.0, (total - step) / (total - warm))
        return settings.learning_rate * factor

    def problem(self, batch: Any, meta_batch: Any, primary: str, aid: AidConfig) -> EngineProblem:
        """The bi-level problem whose inner step comes next; make it when the generators stand where that step starts."""
        return EngineProblem(self, batch, meta_batch, primary, aid)

    # --- weights moved along v

    @contextmanager
    def moved(self, v: Vector, eps: float) -> Iterator[None]:
        """w + eps v inside, w outside, bit for bit, also after an error.

        ZeRO keeps its float32 master weights apart, so the optimiser never sees the move.
        """
        held = self._held_weights()
        saved = [w.clone() for w in held]
        try:
            torch._foreach_add_(held, v.pieces, alpha=eps)
            yield
        finally:  # from the copy: adding and subtracting is not exact
            torch._foreach_copy_(self._held_weights(), saved)

    def _held_weights(self) -> list[Tensor]:
        if self.stage < 3:
            return [p.data for p in self.parameters]
        for p in self.parameters:  # one that stayed gathered after a forward would hide a move of its shard
            p.partition()
        return [p.ds_tensor.data for p in self.parameters]

    # --- gradients that leave no trace in DeepSpeed

    def pass_losses(self, batch: Any, names: tuple[str, ...] | None = None) -> Tensor:
        """Forward of a meta step, (T,), in float32: past DeepSpeed's engine, unless its stage 3 has to run the backward."""
        through_engine = self.stage == 3 and torch.is_grad_enabled()
        return (self.deepspeed if through_engine else self.module)(batch, names)

    def gradient(self, value: Callable[[], Tensor]) -> Vector:
        """d_w value(), mean over ranks, in the sharding of w; `value` runs a forward through `self.pass_losses`."""
        if self.stage == 3:
            return self._sharded_gradient(value)
        pieces = list(torch.autograd.grad(value(), self.parameters, allow_unused=True, materialize_grads=True))
        return Vector(tuple(self.average(pieces)))

    def _sharded_gradient(self, value: Callable[[], Tensor]) -> Vector:
        optimizer = self.deepspeed.optimizer
        optimizer.grad_partitions_flat_buffer.zero_()  # a parameter that `value` does not reach keeps an old gradient
        self.deepspeed.set_gradient_accumulation_boundary(True)
        try:
            self.deepspeed.backward(value(), scale_wrt_gas=False)
            pieces = tuple(safe_get_local_grad(p).clone().view_as(p.ds_tensor) for p in self.parameters)
        finally:
            self.deepspeed._is_gradient_accumulation_boundary = None  # back to counting micro-batches
            optimizer.zero_grad()
            optimizer.grad_partitions_flat_buffer.zero_()
        return Vector(pieces, reduce=dist.all_reduce)

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Mean over ranks, one collective; the result is bit-identical on every rank."""
        if self.world_size == 1 or not tensors:
            return list(tensors)
        flat = torch.cat([t.reshape(-1) for t in tensors]) / self.world_size
        dist.all_reduce(flat)
        return [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors)]

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()

    # --- state

    def weights(self) -> dict[str, Tensor]:
        """Whole weights and buffers by name, on the CPU, on every rank (a collective under stage 3)."""
        state = {}
        for name, p in self.module.named_parameters():
            with deepspeed.zero.GatheredParameters([p], enabled=self.stage == 3):
                state[name] = p.detach().cpu().clone()
        return state | {name: b.detach().cpu().clone() for name, b in self.module.named_buffers()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's moments, whole, by `moment/name`: the same for every stage and number of ranks (a collective)."""
        self._link_moments()
        state = {}
        for name, p in self.module.named_parameters():
            for key in ADAM_STATE:
                value = self.deepspeed.optimizer.state[p][key] if self.stage == 0 else safe_get_full_optimizer_state(p, key)
                state[f"{key}/{name}"] = value.detach().cpu().clone().view(p.ds_shape if self.stage == 3 else p.shape)
        return state

    def load_optimizer_state(self, state: dict[str, Tensor], step: int) -> None:
        """Put back what `optimizer_state` gave after `step` optimiser steps."""
        self._link_moments()
        for name, p in self.module.named_parameters():
            for key in ADAM_STATE:
                value = state[f"{key}/{name}"].to(self.device)
                if self.stage == 0:
                    self.deepspeed.optimizer.state[p][key].copy_(value)
                elif self.stage == 3:
                    safe_set_local_optimizer_state(p, self._shard(p, value), key)
                else:
                    safe_set_full_optimizer_state(p, value, key)
        for entry in self._adam().state.values():
            entry["step"].fill_(step)
        self.deepspeed.global_steps = step
        self.deepspeed.micro_steps = step * self.config.engine.gradient_accumulation

    def _shard(self, p: nn.Parameter, whole: Tensor) -> Tensor:
        """This rank's shard of `whole`; DeepSpeed's own setter fails where the last shard is padded."""
        size = p.ds_tensor.numel()
        padded = torch.zeros(size * self.world_size, device=self.device)
        padded[: whole.numel()] = whole.flatten()
        return padded[self.rank * size : (self.rank + 1) * size]

    def _adam(self) -> torch.optim.Optimizer:
        return self.deepspeed.optimizer if self.stage == 0 else self.deepspeed.optimizer.optimizer

    def _link_moments(self) -> None:
        """Make the moments that torch makes at the first step, and let DeepSpeed's accessors find them.

        Stages 1 and 2 look them up once, after the step of the first parameter group, and miss those of the others.
        """
        adam = self._adam()
        for group in adam.param_groups if self.stage != 3 else []:
            for flat in group["params"]:
                _make_moments(adam, flat)
        if self.stage == 3:
            for flat in self.deepspeed.optimizer.fp32_partitioned_groups_flat:
                _make_moments(adam, flat)
        elif self.stage > 0:
            self.deepspeed.optimizer._hp_optimizer_states_linked = False
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()


class EngineProblem:
    """`Problem` for the micro-batch that the next inner step uses: its forward is the inner step's own.

    `losses()` is the inner forward, graph and all, made once; every other pass over the batch sees the masks that it will
    see. So a meta step pays no forward for l(w), and leaves the generators where a run without meta steps has them.
    """

    def __init__(self, engine: Engine, batch: Any, meta_batch: Any, primary: str, aid: AidConfig):
        self.engine, self.batch, self.meta_batch, self.primary, self.aid = engine, batch, meta_batch, primary, aid
        self.generators = get_generators(engine.device)
        self._losses: Tensor | None = None

    def losses(self) -> Tensor:
        if self._losses is None:
            self._losses = self.engine.losses(self.batch)
        return self._losses

    def outer_gradient(self) -> Vector:
        with self._meta_pass():
            return self.engine.gradient(lambda: self.engine.pass_losses(self.meta_batch, (self.primary,))[0])

    def gradient(self, function: Combiner) -> Vector:
        with self._meta_pass():
            return self.engine.gradient(lambda: function(self.engine.pass_losses(self.batch)))

    def jvp(self, v: Vector) -> Tensor:
        def losses_at(eps: float) -> Tensor:
            with self._meta_pass(), torch.no_grad(), self.engine.moved(v, eps):
                return self.engine.pass_losses(self.batch)

        here = (lambda: self.losses().detach()) if self.aid.product == "one_sided" else None
        return directional_derivative(losses_at, v, self.aid.radius, here)

    def hvp(self, u: Vector, combiner: Combiner) -> Vector:
        def gradient_at(eps: float) -> Vector:
            with self.engine.moved(u, eps):
                return self.gradient(combiner)  # slopes computed again at the moved weights

        here = (lambda: self._gradient_here(combiner)) if self.aid.product == "one_sided" else None
        return directional_derivative(gradient_at, u, self.aid.radius, here)

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return self.engine.average(tensors)

    def _gradient_here(self, combiner: Combiner) -> Vector:
        if not hasattr(self, "_gradient"):
            self._gradient = self.gradient(combiner)
        return self._gradient

    @contextmanager
    def _meta_pass(self) -> Iterator[None]:
        """Same masks as the inner forward; generators put back."""
        now = get_generators(self.engine.device)
        set_generators(self.generators, self.engine.device)
        try:
            yield
        finally:
            set_generators(now, self.engine.device)


def get_generators(device: torch.device) -> dict[str, Tensor]:
    """States of torch's generators, which dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_generators(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def _make_moments(adam: torch.optim.Optimizer, p: Tensor) -> None:
    if not adam.state[p]:
        adam.state[p] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    exempt = [p for n, p in named if any(word in n for word in NO_DECAY)]
    others = [p for n, p in named if not any(word in n for word in NO_DECAY)]
    return [group for group in ({"params": others, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0})
            if group["params"]]  # fmt: skip
