"""DeepSpeed behind the seams of this project: the inner step on w, the bi-level problem of a meta step, and state."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import Any, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from meltr_ray.config import AidConfig, Config
from meltr_ray.hypergrad.fixed_point import FixedPoint
from meltr_ray.hypergrad.module_problem import LossesProblem
from meltr_ray.hypergrad.named import SOLVERS
from meltr_ray.hypergrad.products import Choice
from meltr_ray.hypergrad.vectors import Vector
from meltr_ray.training.bert_adam import BertAdam
from meltr_ray.training.deepspeed_end import let_go
from meltr_ray.training.deepspeed_imports import import_muon_as_it_is
from meltr_ray.training.deepspeed_settings import deepspeed_settings
from meltr_ray.training.loss_vector import PREFIX, named_weights
from meltr_ray.training.scalar_weights import clip_as_vectors, sent_as_vectors
from meltr_ray.training.schedules import rate_factor
from meltr_ray.training.snapshot import Snapshot
from meltr_ray.training.tuning import parameter_groups
from meltr_ray.training.within import bounded_weights, keep_within
from meltr_ray.training.zero import ShardedWeights, WholeWeights, fixed_point  # first: it tells DeepSpeed what machine this is

import deepspeed  # isort: skip
from deepspeed.utils import (  # isort: skip
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)

OPTIMIZERS = {"adamw": torch.optim.AdamW, "bert_adam": BertAdam}
ADAM_STATE = ("exp_avg", "exp_avg_sq")


def start_process_group(device: torch.device) -> None:
    """Make the process group of a run of one process, where Ray Train has not made one; needs no port."""
    # The shared-memory collectives are compiled at first use (half a minute) and leave segments behind after SIGKILL.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


@contextmanager
def opened(model: nn.Module, config: Config, device: torch.device) -> Iterator[Engine]:
    """An engine for as long as a run needs it; then its model is left to the garbage collector. The error of a run stays the one that is raised."""
    engine = Engine(model, config, device)
    try:
        yield engine
    except BaseException:
        with suppress(Exception):
            let_go(engine.deepspeed)
        raise
    let_go(engine.deepspeed)


class Engine:
    """Holds w: forward, backward and step through DeepSpeed, and what a meta step and a checkpoint need of it.

    Args:
        model: forward(batch, names=None) -> losses (T,) (`LossVector`), all of its parameters used inside module forwards. w is
            those that require a gradient (`tuning.py`); the others stay as they are.
        config: settings `optimizer`, `tuning`, `engine` and `train`.
        device: where the model runs.
    """

    def __init__(self, model: nn.Module, config: Config, device: torch.device):
        start_process_group(device)
        self.config, self.device, self.stage = config, device, config.engine.zero_stage
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.autocast = config.engine.precision == "bfloat16"
        groups, settings = parameter_groups(model, config), config.optimizer
        self.decay = {p: group["weight_decay"] for group in groups for p in group["params"]}
        epsilon = {} if settings.epsilon is None else {"eps": settings.epsilon}
        optimizer = OPTIMIZERS[settings.name](groups, settings.learning_rate, tuple(settings.betas), **epsilon)
        import_muon_as_it_is()
        with sent_as_vectors():
            self.deepspeed, *_ = deepspeed.initialize(
                model=model.to(device),
                optimizer=optimizer,
                dist_init_required=False,
                config=deepspeed_settings(config),
            )
        clip_as_vectors(self.deepspeed)
        self.module = self.deepspeed.module
        self.w = (ShardedWeights if self.stage == 3 else WholeWeights)(self.deepspeed, self.average)
        self.bounded = bounded_weights(self.module, config.workload.within)
        self.choices: tuple[Choice | None, Choice | None] = (None, None)
        """How J v and H u turned out to be taken, so that `auto` tries a product once a run."""

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
            group["lr"] = self.learning_rate(step) * group["rate"]
        self.deepspeed.step()
        keep_within(self.bounded, self.stage)

    def learning_rate(self, step: int) -> float:
        """Of weights whose rate isn't scaled; a pure function of the step."""
        return self.config.optimizer.learning_rate * rate_factor(self.config.optimizer, step, self.config.train.steps)

    def problem(self, batches: Sequence[Any], meta_batches: Sequence[Any], primary: str, aid: AidConfig) -> LossesProblem:
        """The bi-level problem of the optimiser step whose micro-batches are `batches`.

        To be made when the generators stand where that step starts: its `losses()` then are the inner step's own forward of
        the first micro-batch, graph and all, so that a meta step pays no forward for them and leaves the generators where a
        run without meta steps has them.
        """

        def forward(batch: Any, names: tuple[str, ...] | None = None) -> Tensor:
            # a difference needs float32; DeepSpeed's engine only where its stage 3 has to run the backward
            module = self.deepspeed if self.stage == 3 and torch.is_grad_enabled() else self.module
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast and not self.w.is_moved):
                return module(batch, names)

        problem = LossesProblem(
            self.w,
            [lambda batch=batch: forward(batch) for batch in batches],
            [lambda batch=batch: forward(batch, (primary,)).mean() for batch in meta_batches],
            product=self.choices[0] or aid.product, hessian_product=self.choices[1] or aid.hessian_product,
            radius=aid.radius, accuracy=aid.accuracy,
            fixed_point=self.fixed_point(aid), inner=lambda: self.losses(batches[0]),
            arithmetic=torch.bfloat16 if self.autocast else torch.float32,
            num_ranks=self.world_size, rank=self.rank, gather=self.gather, average_losses=self.config.combiner.average_losses,
        )  # fmt: skip
        self.choices = problem.jvp_choice, problem.hvp_choice
        return problem

    def fixed_point(self, aid: AidConfig) -> FixedPoint | None:
        """What the optimiser adds to the fixed point, if the solver makes anything of it."""
        decays = aid.decay_in_hessian and SOLVERS[aid.solver].counts_decay and self.config.optimizer.weight_decay > 0
        if not decays and aid.adam == "ignore":
            return None
        return self._fixed_point([self.decay[p] if decays else 0.0 for p in self.w.parameters])

    def adam_scale(self) -> Vector | None:
        """sqrt of Adam's second moments, their bias corrected, plus epsilon; None before its first step."""
        return self._fixed_point([0.0] * len(self.w.parameters)).scale if self.deepspeed.global_steps else None

    def _fixed_point(self, decay: Sequence[float]) -> FixedPoint:
        self.link_moments()
        group = self.adam().param_groups[0]
        beta = group["betas"][1] if self.config.optimizer.name == "adamw" else 0.0  # BertAdam corrects no bias
        return fixed_point(self.w, decay, beta, group["eps"])

    # --- over ranks

    def shared(self, losses: Tensor, always: bool = False) -> Tensor:
        """Losses as a way of combining sees them: this rank's own, or the mean over ranks (`combiner.average_losses`, or `always`)."""
        return self.average([losses.detach()])[0] if always or self.config.combiner.average_losses else losses.detach()

    def gather(self, own: Tensor) -> list[Tensor]:
        """Small tensors of every rank, in the order of ranks."""
        if self.world_size == 1:
            return [own]
        all_ranks = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(all_ranks, own.contiguous())
        return all_ranks

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Mean over ranks, one collective; the result is bit-identical on every rank."""
        if self.world_size == 1 or not tensors:
            return list(tensors)
        flat = torch.cat([t.reshape(-1) for t in tensors]) / self.world_size
        dist.all_reduce(flat)
        return [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors)]

    def of_first_rank(self, number: int) -> int:
        """A whole number of rank 0, on every rank."""
        if self.world_size == 1:
            return number
        shared = torch.tensor(number, device=self.device)
        dist.broadcast(shared, 0)
        return int(shared)

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()

    # --- state

    def snapshot(self) -> Snapshot:
        """All that optimiser steps change, to be put back by `restore`."""
        return Snapshot.of(self)

    def restore(self, snapshot: Snapshot) -> None:
        """w, its moments, counts, buffers and generators bit for bit as they were; every rank calls it."""
        snapshot.put_back(self)

    def weights(self) -> dict[str, Tensor]:
        """Whole weights and buffers by name, on the CPU, on every rank (a collective under stage 3)."""
        state = {}
        for name, p in named_weights(self.module):
            with deepspeed.zero.GatheredParameters([p], enabled=self.stage == 3):
                state[name] = p.detach().cpu().clone()
        return state | {name.removeprefix(PREFIX): b.detach().cpu().clone() for name, b in self.module.named_buffers()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's moments, whole, by `moment/name`: the same for every stage and number of ranks (a collective)."""
        self.link_moments()
        state = {}
        for name, p in self._trained():
            for key in ADAM_STATE:
                value = self.deepspeed.optimizer.state[p][key] if self.stage == 0 else safe_get_full_optimizer_state(p, key)
                state[f"{key}/{name}"] = value.detach().cpu().clone().view(p.ds_shape if self.stage == 3 else p.shape)
        return state

    def load_optimizer_state(self, state: dict[str, Tensor], step: int) -> None:
        """Put back what `optimizer_state` gave after `step` optimiser steps."""
        self.link_moments()
        for name, p in self._trained():
            for key in ADAM_STATE:
                value = state[f"{key}/{name}"].to(self.device)
                if self.stage == 0:
                    self.deepspeed.optimizer.state[p][key].copy_(value)
                elif self.stage == 3:
                    safe_set_local_optimizer_state(p, self._shard(p, value), key)
                else:
                    safe_set_full_optimizer_state(p, value, key)
        for entry in self.adam().state.values():
            entry["step"].fill_(step)
        self.deepspeed.global_steps = step
        self.deepspeed.micro_steps = step * self.config.engine.gradient_accumulation

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name.removeprefix(PREFIX), p) for name, p in zip(self.w.names, self.w.parameters)]

    def _shard(self, p: nn.Parameter, whole: Tensor) -> Tensor:
        """This rank's shard of `whole`; DeepSpeed's own setter fails where the last shard is padded."""
        size = p.ds_tensor.numel()
        padded = torch.zeros(size * self.world_size, device=self.device)
        padded[: whole.numel()] = whole.flatten()
        return padded[self.rank * size : (self.rank + 1) * size]

    def adam(self) -> torch.optim.Optimizer:
        """The optimiser that DeepSpeed's wraps."""
        return self.deepspeed.optimizer if self.stage == 0 else self.deepspeed.optimizer.optimizer

    def link_moments(self) -> None:
        """Make the moments that torch makes at the first step, and let DeepSpeed's accessors find them.

        Stages 1 and 2 look them up once, after the step of the first parameter group, and miss those of the others.
        """
        adam = self.adam()
        for group in adam.param_groups if self.stage != 3 else []:
            for flat in group["params"]:
                _make_moments(adam, flat)
        if self.stage == 3:
            for flat in self.deepspeed.optimizer.fp32_partitioned_groups_flat:
                _make_moments(adam, flat)
        elif self.stage > 0:
            self.deepspeed.optimizer._hp_optimizer_states_linked = False
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()


def _make_moments(adam: torch.optim.Optimizer, p: Tensor) -> None:
    if not adam.state[p]:
        adam.state[p] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
