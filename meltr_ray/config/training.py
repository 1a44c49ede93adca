"""Settings of the inner level: optimiser, what trains, DeepSpeed and the run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Optional

from meltr_ray.bounds import bounded, check_settings, check_text
from meltr_ray.errors import check, check_choice

PRECISIONS = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "bert_adam")
PLACEMENTS = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
"""Ray's strategies for the workers of a trial."""
SCHEDULES = ("linear", "constant", "cosine", "polynomial", "warmup_linear", "warmup_cosine", "warmup_constant", "warmup_linear_down")


@dataclass(kw_only=True)
class OptimizerConfig:
    """The optimiser of w and the course of its learning rate."""

    name: str = "adamw"
    """Optimiser: `adamw`, or `bert_adam` (UniVL's: Adam without correction of the moments' bias)."""
    learning_rate: float = bounded(1e-3, 1e-30, 10)
    """Peak learning rate of w; `tuning.rates` and `tuning.layer_decay` scale it for some weights."""
    betas: list[float] = bounded([0.9, 0.999], 0, 0.999999)
    """Decay rates of the two moments (VIOLET and All-in-one: [0.9, 0.98])."""
    epsilon: Optional[float] = bounded(None, 1e-16, 1)
    """Added to the root of the second moment; default: 1e-8 of `adamw`, 1e-6 of `bert_adam`."""
    weight_decay: float = bounded(0.01, 0, 100)
    """Decoupled weight decay."""
    no_decay: list[str] = field(default_factory=lambda: ["bias", "LayerNorm", "visual_norm2d"])
    """Weights whose name has one of these in it aren't decayed (VIOLET: [], All-in-one: [bias, LayerNorm, norm.weight, norm1, norm2])."""
    schedule: str = "linear"
    """Learning rate after its warm-up: `linear` to 0, `constant`; `cosine` or `polynomial` to `end` (All-in-one's: rate 0 at the first step); `warmup_linear`, `warmup_cosine`, `warmup_constant` or `warmup_linear_down` (UniVL's, which start again after `period`)."""
    warmup: float = bounded(0.1, 0, 0.99)
    """Share of the steps in which the learning rate rises linearly from 0 (VIOLET: 0)."""
    end: float = bounded(0.0, 0, 1)
    """Share of the peak learning rate that `cosine` and `polynomial` end at."""
    power: float = bounded(1.0, 1e-3, 100)
    """Exponent of `polynomial`; 1 is linear decay."""
    period: Optional[int] = bounded(None, 1, 10**9)
    """Optimiser steps of a `warmup_` schedule, which then starts again (UniVL with MELTR: those of 4 epochs); default: train.steps."""
    clip: float = bounded(1.0, 0, 1e6)
    """Largest norm of the gradient of w; 0 switches clipping off."""

    def __post_init__(self):
        check_settings("optimizer", self)
        check_choice("optimizer.name", self.name, OPTIMIZERS)
        check_choice("optimizer.schedule", self.schedule, SCHEDULES)
        check(len(self.betas) == 2, "optimizer.betas", self.betas, "must be two numbers in [0, 1); usual: [0.9, 0.999]")
        check(
            self.period is None or self.schedule.startswith("warmup_"),
            "optimizer.period",
            self.period,
            f"optimizer.schedule={self.schedule} doesn't start again; use a `warmup_` schedule or leave it out",
        )


@dataclass(kw_only=True)
class TuningConfig:
    """What of the backbone trains, and how fast; everything at one rate by default.

    Names are those of modules and weights as the backbone's checkpoint has them, and stand for all that is below them; where
    two fit, the longer counts. A weight that two modules share belongs to the first of them (UniVL's word embeddings to `bert`).
    """

    frozen: list[str] = field(default_factory=list)
    """Modules that don't train and get no LoRA, such as [bert,visual]."""
    lora: list[str] = field(default_factory=list)
    """Linear layers that train by LoRA (arXiv 2106.09685), by the ends of their names, such as [query,value]; all else of the backbone is frozen but for `trained`. A layer that trains as a whole gets none."""
    trained: Optional[list[str]] = None
    """Modules that train as a whole beside LoRA, or inside a frozen one; default: with LoRA the heads, that is all but the encoders."""
    lora_rank: int = bounded(8, 1, 4096)
    """Rank of LoRA's update."""
    lora_alpha: float = bounded(16.0, 1e-6, 1e6)
    """LoRA's update is scaled by this over the rank."""
    lora_dropout: float = bounded(0.0, 0, 0.99)
    """Dropout probability of LoRA's input."""
    layer_decay: float = bounded(1.0, 1e-3, 1)
    """Learning rate of the last layer of each encoder over that of its heads, of the layer before over that of the last, and so on down to the embeddings (BEiT, arXiv 2106.08254); 1: all alike."""
    rates: Any = bounded(None, 1e-9, 1e6, mend="to train nothing there use tuning.frozen")
    """Modules and the factors of their learning rates, such as {bert: 0.1} (UniVL) or {vqa_classifier: 10} (All-in-one); default: none."""

    def __post_init__(self):
        check_settings("tuning", self)
        for name in self.frozen:
            check(name not in (self.trained or []), "tuning.frozen", name, "stands in tuning.trained, too; remove it from one")
        check(
            not self.trained or self.lora or self.frozen,
            "tuning.trained",
            self.trained,
            "everything trains anyway; say with tuning.frozen what doesn't, or give tuning.lora",
        )
        check(isinstance(self.rates or {}, dict), "tuning.rates", self.rates, "must map modules to factors; give such as {bert: 0.1}")
        for name, factor in (self.rates or {}).items():
            check(
                isinstance(factor, (int, float)),
                f"tuning.rates.{name}",
                factor,
                "must be a positive number; to train nothing there use tuning.frozen",
            )


@dataclass(kw_only=True)
class EngineConfig:
    """DeepSpeed."""

    zero_stage: int = bounded(0, 0, 3)
    """ZeRO stage: 0 replicates all, 1 shards optimiser state, 2 also gradients, 3 also weights."""
    precision: str = "float32"
    """Arithmetic: `float32`, or `bfloat16` (autocast; weights, optimiser and all differences stay float32; meant for a GPU)."""
    gradient_accumulation: int = bounded(1, 1, 256)
    """Micro-batches an optimiser step; the meta step uses all of them."""
    deepspeed: Optional[str] = None
    """JSON file with more of DeepSpeed's own settings, passed on to it; what these settings decide is refused there."""

    def __post_init__(self):
        check(self.zero_stage in (0, 1, 2, 3), "engine.zero_stage", self.zero_stage, "unknown; use 0, 1, 2 or 3")
        check_settings("engine", self)
        check_choice("engine.precision", self.precision, PRECISIONS)


@dataclass(kw_only=True)
class TrainConfig:
    """One run."""

    steps: int = bounded(300, 1, 10**8)
    """Optimiser steps."""
    batch_size: int = bounded(32, 2, 65_536)
    """Examples a micro-batch on each worker."""
    evaluate_every: int = bounded(50, 1, 10**9)
    """Optimiser steps between two evaluations on the validation split; the last step is always evaluated."""
    checkpoint_every: int = bounded(50, 0, 10**9)
    """Optimiser steps between two checkpoints; the last step is always saved; 0 saves only the last."""
    checkpoints_kept: int = bounded(2, 2, 10**6)
    """Newest checkpoints that stay; the one before the newest stands in where that is damaged."""
    num_workers: int = bounded(0, 0, 4096)
    """Ray Train workers; 0 runs the same loop in the trial's own process."""
    use_gpu: bool = False
    """Give each worker one GPU."""
    threads: int = bounded(1, 1, 1024)
    """CPU threads a worker, and its Ray CPUs unless `cpus_per_worker` gives another number."""
    cpus_per_worker: Optional[int] = bounded(None, 1, 1024)
    """Ray CPUs that a worker takes of its machine, such as those of its loaders, too; default: `threads`."""
    accelerator: Optional[str] = None
    """Kind of GPU that a worker needs, by Ray's name for it, such as A100; default: any."""
    resources: dict[str, float] = bounded({}, 1e-4, 1e15)
    """What else a worker needs of its machine: resources by the names that `ray start --resources` gave them, and `memory` in bytes."""
    placement: str = "PACK"
    """Where the workers of a trial go: `PACK` (few machines), `SPREAD` (many), `STRICT_PACK` (one), `STRICT_SPREAD` (a machine each)."""
    loader_workers: Optional[int] = bounded(None, 0, 64)
    """Processes that read, decode and make batches ahead of training, for each worker, beside `train.threads`; 0: none, training waits for its batches; any number gives the same batches; default: the workload's (for video 1 where pixels are read, else 0)."""
    prefetch: int = bounded(2, 1, 64)
    """Steps that each of them is ahead; their batches are held in shared memory (/dev/shm)."""
    max_failures: int = bounded(3, 0, 1000)
    """How often a killed worker or trial starts again from its last checkpoint; a machine that says that it will be taken away isn't counted."""
    grace: float = bounded(25.0, 2, 86_400)
    """Seconds from SIGTERM or Ctrl-C to the end of the command: running trials finish their step and save it, then the report is written. SLURM and Kubernetes send SIGKILL after 30 s unless told otherwise."""

    @property
    def cpus(self) -> int:
        """Ray CPUs of a worker."""
        return self.cpus_per_worker or self.threads

    def __post_init__(self):
        check_settings("train", self)
        check_choice("train.placement", self.placement, PLACEMENTS)
        check(
            self.placement == "PACK" or self.num_workers > 1,
            "train.placement",
            self.placement,
            "is for workers of one trial, of which there is one; leave it out, or give train.num_workers",
        )
        check(
            self.accelerator is None or (self.use_gpu and re.fullmatch(r"[\w.-]+", self.accelerator) is not None),
            "train.accelerator",
            self.accelerator,
            "is of workers with a GPU, by a name such as A100; set train.use_gpu=true and give such a name",
        )
        for name, count in self.resources.items():
            own = {"CPU": "cpus_per_worker", "GPU": "use_gpu"}.get(
                name.upper(), "accelerator" if name.startswith("accelerator_type:") else ""
            )
            check(own == "", f"train.resources.{name}", count, f"has a setting of its own; use train.{own}")
            check_text("train.resources", name)
            check(count < 1 or count == int(count), f"train.resources.{name}", count, "Ray gives parts of 1, or whole numbers; round it")
