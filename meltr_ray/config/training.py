"""Settings of the inner level: data, optimiser, DeepSpeed and the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from meltr_ray.config.checks import check, check_at_least, check_choice

PRECISIONS = ("float32", "bfloat16")


@dataclass(kw_only=True)
class DataConfig:
    """Which clips, and how much of each a batch takes."""

    name: str = "digits"
    """Name of the data set: `digits` is made on first use; others come from `workloads/prepare.py`."""
    folder: str = "data/digits"
    """Folder of the prepared data set (Parquet); relative to the working folder."""
    vocabulary: Optional[str] = None
    """Vocabulary file, one word piece a line (for a published checkpoint BERT's `vocab.txt`); default: that of the data set."""
    max_words: int = 20
    """Word pieces a caption is cut to, [CLS] and [SEP] included."""
    max_frames: int = 12
    """Frame features a clip is sampled down to, evenly; backbones that read pixels take `backbone.num_frames` frames."""
    mask_probability: float = 0.15
    """Probability that a word piece or a frame is masked in the masked losses (BERT's 80/10/10 rule for words)."""

    def __post_init__(self):
        check_at_least("data.max_words", self.max_words, 3)
        check_at_least("data.max_frames", self.max_frames, 1)
        check(0 < self.mask_probability < 1, "data.mask_probability", self.mask_probability,
              "must lie between 0 and 1; published: 0.15")


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW on w."""

    learning_rate: float = 1e-3
    """Peak learning rate of w."""
    weight_decay: float = 0.01
    """Decoupled weight decay; biases and LayerNorm are left out."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises linearly from 0; it falls linearly to 0 after."""
    clip: float = 1.0
    """Largest norm of the gradient of w; 0 switches clipping off."""

    def __post_init__(self):
        check(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "must be positive; raise it")
        check(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "must not be negative; raise it")
        check(0 <= self.warmup < 1, "optimizer.warmup", self.warmup, "must lie in [0, 1); published: 0.1")
        check(self.clip >= 0, "optimizer.clip", self.clip, "must not be negative; 0 switches clipping off")


@dataclass(kw_only=True)
class EngineConfig:
    """DeepSpeed."""

    zero_stage: int = 0
    """ZeRO stage: 0 replicates all, 1 shards optimiser state, 2 also gradients, 3 also weights."""
    precision: str = "float32"
    """Arithmetic: `float32`, or `bfloat16` (autocast; weights, optimiser and all differences stay float32; meant for a GPU)."""
    gradient_accumulation: int = 1
    """Micro-batches an optimiser step; the meta step uses all of them."""

    def __post_init__(self):
        check(self.zero_stage in (0, 1, 2, 3), "engine.zero_stage", self.zero_stage, "unknown; use 0, 1, 2 or 3")
        check_choice("engine.precision", self.precision, PRECISIONS)
        check_at_least("engine.gradient_accumulation", self.gradient_accumulation, 1)


@dataclass(kw_only=True)
class TrainConfig:
    """One run."""

    steps: int = 300
    """Optimiser steps."""
    batch_size: int = 32
    """Clips a micro-batch on each worker."""
    evaluate_every: int = 50
    """Optimiser steps between two evaluations on the validation split; the last step is always evaluated."""
    checkpoint_every: int = 50
    """Optimiser steps between two checkpoints; the last step is always saved; 0 saves only the last."""
    num_workers: int = 0
    """Ray Train workers; 0 runs the same loop in the trial's own process."""
    use_gpu: bool = False
    """Give each worker one GPU."""
    threads: int = 1
    """CPU threads (and Ray CPUs) a worker."""
    max_failures: int = 3
    """How often a killed worker or trial starts again from its last checkpoint."""

    def __post_init__(self):
        for name, low in dict(steps=1, batch_size=2, evaluate_every=1, checkpoint_every=0, num_workers=0, threads=1,
                              max_failures=0).items():  # fmt: skip
            check_at_least(f"train.{name}", getattr(self, name), low)
