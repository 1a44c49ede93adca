"""Every setting of the project: declared, documented, typed and checked here and nowhere else.

The text under a field is its documentation: `--help` prints it. Units stand in it; a default that is derived says from
what. Checks run when a configuration object is made, that is on the driver, before any worker starts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Optional

SOLVERS = ("identity", "neumann", "cg", "nystrom", "loss_space")
PRODUCTS = ("auto", "one_sided", "central", "forward", "double_backward")
HESSIAN_PRODUCTS = ("auto", "one_sided", "central", "double_backward", "forward_over_reverse", "gauss_newton")
ADAM_USES = ("ignore", "precondition", "fixed_point")
REGULARISERS = ("phi_only", "full", "paper")
META_BATCHES = ("recent", "next", "held_out")
COMBINERS = ("meltr", "fixed")
PRECISIONS = ("float32", "bfloat16")

UNIVL_LOSSES = (
    "joint",
    "align",
    "masked_language",
    "masked_frame",
    "masked_joint",
    "masked_align",
    "caption",
    "masked_caption",
)
CONTROL_LOSSES = ("constant", "shuffled")
"""Planted losses that should be demoted: one that depends on nothing, one that pulls captions to wrong videos."""
LOSSES = UNIVL_LOSSES + CONTROL_LOSSES
RETRIEVAL_PRIMARIES = ("joint", "align")


class ConfigError(ValueError):
    """A setting that can't be used: one line, `field=value: rule; mend`."""


def check(condition: bool, name: str, value: Any, rule: str) -> None:
    """Raise the one-line `ConfigError` of this project unless `condition` holds; `rule` reads `rule; mend`."""
    if not condition:
        raise ConfigError(f"{name}={value}: {rule}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    check(value in choices, name, value, f"unknown; use one of {', '.join(choices)}")


def check_at_least(name: str, value: float, low: float) -> None:
    check(value >= low, name, value, f"at least {low:g} is needed; raise it")


@dataclass(kw_only=True)
class DataConfig:
    """Which clips, and how much of each a batch takes."""

    name: str = "digits"
    """Name of the data set: `digits` is made on first use; others come from `workloads/prepare.py`."""
    folder: str = "data/digits"
    """Folder of the prepared data set (Parquet); relative to the working folder."""
    max_words: int = 20
    """Word pieces a caption is cut to, [CLS] and [SEP] included."""
    max_frames: int = 12
    """Frames a clip is sampled down to, evenly."""
    mask_probability: float = 0.15
    """Probability that a word piece or a frame is masked in the masked losses (BERT's 80/10/10 rule for words)."""

    def __post_init__(self):
        check_at_least("data.max_words", self.max_words, 3)
        check_at_least("data.max_frames", self.max_frames, 1)
        check(0 < self.mask_probability < 1, "data.mask_probability", self.mask_probability,
              "must lie between 0 and 1; published: 0.15")


BACKBONE_SIZES = {
    "tiny": dict(hidden_size=64, num_heads=4, feed_forward_size=128, text_layers=2, visual_layers=1, cross_layers=1,
                 decoder_layers=1, max_position_embeddings=64, max_cross_position_embeddings=128),
    "small": dict(hidden_size=128, num_heads=4, feed_forward_size=256, text_layers=1, visual_layers=1, cross_layers=1,
                  decoder_layers=1, max_position_embeddings=128, max_cross_position_embeddings=256),
    "base": dict(hidden_size=768, num_heads=12, feed_forward_size=3072, text_layers=12, visual_layers=6, cross_layers=2,
                 decoder_layers=3, max_position_embeddings=512, max_cross_position_embeddings=1024),
}  # fmt: skip


@dataclass(kw_only=True)
class BackboneConfig:
    """UniVL (arXiv 2002.06353): text, visual and cross encoders and a decoder."""

    name: str = "univl"
    """Backbone: `univl`."""
    size: str = "tiny"
    """Size that fills every field left empty below: `tiny`, `small` or `base` (the authors')."""
    hidden_size: Optional[int] = None
    """Width of every encoder and of the decoder; default: from `size`."""
    num_heads: Optional[int] = None
    """Attention heads; must divide `hidden_size`; default: from `size`."""
    feed_forward_size: Optional[int] = None
    """Width of the feed-forward layers; default: from `size`."""
    text_layers: Optional[int] = None
    """Layers of the text encoder; default: from `size`."""
    visual_layers: Optional[int] = None
    """Layers of the visual encoder; default: from `size`."""
    cross_layers: Optional[int] = None
    """Layers of the cross encoder; default: from `size`."""
    decoder_layers: Optional[int] = None
    """Layers of the caption decoder; default: from `size`."""
    max_position_embeddings: Optional[int] = None
    """Longest text, clip or caption (positions) that the encoders and the decoder take; default: from `size`."""
    max_cross_position_embeddings: Optional[int] = None
    """Longest text plus clip (positions) that the cross encoder takes; default: from `size`."""
    dropout: float = 0.1
    """Dropout probability of hidden states and attention."""
    fused_attention: bool = True
    """Use torch's fused attention kernels; false: plain matrix products, which admit a second derivative. On a CPU with dropout there is no fused kernel and the plain form runs."""
    activation_checkpointing: bool = False
    """Compute each layer again in the backward pass instead of keeping its activations (memory for time)."""
    similarity_temperature: float = 1.0
    """Divides the joint similarities before their loss; published: 1."""
    normalize_embeddings: bool = False
    """Scale text and video embeddings to length 1 before the joint similarity; the published MELTR code does."""
    joint_loss: str = "contrastive"
    """Loss on the joint similarity matrix: `contrastive` (cross entropy both ways) or `margin` (max-margin ranking, the published MELTR code)."""

    def __post_init__(self):
        check_choice("backbone.name", self.name, ("univl",))
        check_choice("backbone.size", self.size, tuple(BACKBONE_SIZES))
        for name, value in BACKBONE_SIZES[self.size].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
            check_at_least(f"backbone.{name}", getattr(self, name), 1)
        check(self.hidden_size % self.num_heads == 0, "backbone.num_heads", self.num_heads,
              f"must divide backbone.hidden_size={self.hidden_size}; change one of the two")
        check(0 <= self.dropout < 1, "backbone.dropout", self.dropout, "must lie in [0, 1); published: 0.1")
        check(self.similarity_temperature > 0, "backbone.similarity_temperature", self.similarity_temperature,
              "must be positive; published: 1")
        check_choice("backbone.joint_loss", self.joint_loss, ("contrastive", "margin"))


@dataclass(kw_only=True)
class TaskConfig:
    """The task and the losses that train for it."""

    name: str = "retrieval"
    """Task: `retrieval` (text-to-video)."""
    primary: str = "joint"
    """Primary loss, the one that the outer level lowers: `joint` or `align` for retrieval."""
    loss_set: Any = field(default_factory=lambda: ["joint", "masked_joint", "masked_language", "masked_frame", "caption"])
    """Losses that are computed, the primary included, as a list or the name of one in tune_spaces/loss_sets.py; the order is that of the combiner's inputs."""

    def __post_init__(self):
        check_choice("task.name", self.name, ("retrieval",))
        check_choice("task.primary", self.primary, RETRIEVAL_PRIMARIES)
        check(isinstance(self.loss_set, list), "task.loss_set", self.loss_set, "unknown name; use a list such as [joint,caption]")
        for loss in self.loss_set:
            check_choice("task.loss_set", loss, LOSSES)
        check(len(set(self.loss_set)) == len(self.loss_set), "task.loss_set", self.loss_set,
              "names a loss twice; remove one")
        check(self.primary in self.loss_set, "task.loss_set", self.loss_set,
              f"lacks the primary loss; add {self.primary} or change task.primary")


@dataclass(kw_only=True)
class CombinerConfig:
    """g_phi, which turns the vector of losses into one training loss."""

    name: str = "meltr"
    """Combiner: `meltr` (the meta loss transformer) or `fixed` weights."""
    weights: Any = "uniform"
    """Weights of `fixed`: `uniform`, `primary` (the primary loss alone), or a list with one number per loss."""
    mode: str = "near_sum"
    """How MELTR starts: `near_sum` adds the transformer to the plain sum of losses, its last layer small; `paper` is the published form."""
    embedding_size: int = 256
    """Width of MELTR's transformer (published: 256); its 8 heads must divide it."""
    loss_encoder_size: int = 128
    """Hidden width of the layer that embeds a loss value (published: 128)."""
    feed_forward_size: int = 512
    """Width of MELTR's feed-forward layer (published: 512)."""
    slopes: str = "any"
    """`any`, or `non_negative`: a loss whose slope is negative is held constant for that step instead of being raised."""
    average_losses: bool = False
    """Average the losses over workers before they are combined, so that R batches of B act as one of R B; false: each worker combines its own, as published."""
    dropout: Optional[float] = None
    """Dropout inside MELTR; default: 0, and 0.1 with `mode=paper` (one mask a meta step)."""

    def __post_init__(self):
        check_choice("combiner.name", self.name, COMBINERS)
        check_choice("combiner.mode", self.mode, ("near_sum", "paper"))
        check_choice("combiner.slopes", self.slopes, ("any", "non_negative"))
        if self.dropout is None:
            self.dropout = 0.1 if self.mode == "paper" else 0.0
        check(0 <= self.dropout < 1, "combiner.dropout", self.dropout, "must lie in [0, 1); published: 0.1")
        check_at_least("combiner.loss_encoder_size", self.loss_encoder_size, 1)
        check_at_least("combiner.feed_forward_size", self.feed_forward_size, 1)
        check(self.embedding_size > 0 and self.embedding_size % 8 == 0, "combiner.embedding_size", self.embedding_size,
              "must be a multiple of the 8 heads; published: 256")
        if isinstance(self.weights, str):
            check_choice("combiner.weights", self.weights, ("uniform", "primary"))
        else:
            check(isinstance(self.weights, (list, tuple)) and all(isinstance(w, (int, float)) for w in self.weights),
                  "combiner.weights", self.weights, "must be uniform, primary or a list of numbers; give one per loss")
            check(any(self.weights), "combiner.weights", self.weights, "are all zero, so nothing would be trained; raise one")


@dataclass(kw_only=True)
class AidConfig:
    """Approximate implicit differentiation: the outer level of the bi-level problem (MELTR, section 3.3)."""

    solver: str = "identity"
    """How v = (H + damping I)^-1 d_w F is approximated: `identity` (published), `neumann`, `cg`, `nystrom` (low rank) or `loss_space` (Gauss-Newton among the losses)."""
    iterations: int = 5
    """Terms of the Neumann series or iterations of conjugate gradient; each costs one Hessian-vector product."""
    rank: int = 10
    """Rank of `nystrom`; each costs one Hessian-vector product and twice the memory of the weights."""
    neumann_step: float = 0.01
    """Step length of the Neumann series; must stay below 2 over the largest eigenvalue of H + damping I."""
    damping: float = 1.0
    """Added to the diagonal of H by every solver but `identity`; H of a network is indefinite, and CG stops at negative curvature."""
    cg_tolerance: float = 1e-3
    """Relative residual at which conjugate gradient stops early."""
    warm_start: bool = False
    """Start conjugate gradient from the v of the last meta step (one more product, and memory of the weights once more)."""
    adam: str = "ignore"
    """What the solve makes of Adam's second moments: `ignore`, `precondition` (same answer, fewer iterations) or `fixed_point` (damping and truncation in Adam's own metric, as SAMA)."""
    decay_in_hessian: bool = True
    """Count AdamW's weight decay into H, as its fixed point has it (costs a gather of the second moments under ZeRO 1 and 2)."""
    inner_steps: int = 3
    """Optimiser steps on w between two meta steps on phi (published: 3 to 5)."""
    learning_rate: float = 1e-3
    """Learning rate of phi (Adam; published: 1e-3); 0 runs the meta steps and leaves phi as it is."""
    weight_decay: float = 3e-5
    """L2 weight decay of phi (published: 3e-5)."""
    gamma: float = 0.1
    """Weight of the outer regulariser |g_phi(l) - sum_t l_t| (published: 0.1); 0 switches it off."""
    regulariser: str = "phi_only"
    """What the regulariser differentiates: `phi_only` (direct term), `full` (and w: one more backward), `paper` (w alone, as published)."""
    meta_batch: str = "next"
    """Batch of the outer loss: `recent` (one of the last 10 training batches, published), `next` (the next one) or `held_out` (the meta split)."""
    num_meta_batches: int = 1
    """Meta batches that the outer loss is the mean of; each costs one forward and one backward of the primary loss."""
    product: str = "auto"
    """How J v is taken: `one_sided` or `central` differences, `forward` mode or `double_backward`; `auto`: the cheapest that the model admits at `accuracy`."""
    hessian_product: str = "auto"
    """How H u is taken: `one_sided` or `central` differences of gradients, `double_backward`, `forward_over_reverse`; `gauss_newton` keeps only the combiner's curvature."""
    accuracy: Optional[float] = None
    """Relative error that `auto` may make; default: 0.01, and 0.1 in bfloat16."""
    radius: Optional[float] = None
    """Length |eps v| of a difference's move in weight space; default: 0.001 one-sided, 0.003 central (float32; why: hypergrad/products.py)."""
    check_every: int = 0
    """Meta steps between two self-checks of the products, whose relative errors go into the results table (several passes each); 0: never."""
    clip: float = 10.0
    """Largest norm of phi's gradient (published: 10 to 50); 0 switches clipping off."""

    def __post_init__(self):
        check_choice("aid.solver", self.solver, SOLVERS)
        check_choice("aid.product", self.product, PRODUCTS)
        check_choice("aid.hessian_product", self.hessian_product, HESSIAN_PRODUCTS)
        check_choice("aid.adam", self.adam, ADAM_USES)
        check_choice("aid.regulariser", self.regulariser, REGULARISERS)
        check_choice("aid.meta_batch", self.meta_batch, META_BATCHES)
        check(self.iterations >= 1, "aid.iterations", self.iterations,
              "at least 1 is needed; for no iterations use aid.solver=identity")
        for name, low in dict(inner_steps=1, rank=1, num_meta_batches=1, check_every=0).items():
            check_at_least(f"aid.{name}", getattr(self, name), low)
        for name in ("damping", "learning_rate", "weight_decay", "gamma", "clip"):
            check(getattr(self, name) >= 0, f"aid.{name}", getattr(self, name), "must not be negative; raise it")
        check(self.neumann_step > 0, "aid.neumann_step", self.neumann_step, "must be positive; raise it")
        check(self.cg_tolerance >= 0, "aid.cg_tolerance", self.cg_tolerance, "must not be negative; raise it")
        check(self.radius is None or self.radius > 0, "aid.radius", self.radius, "must be positive; leave it out for the default")
        check(self.accuracy is None or self.accuracy > 0, "aid.accuracy", self.accuracy, "must be positive; leave it out for the default")
        check(self.damping > 0 or self.solver not in ("nystrom", "loss_space"), "aid.damping", self.damping,
              f"aid.solver={self.solver} needs it positive; raise it")
        check(self.adam == "ignore" or self.solver in ("neumann", "cg") or (self.solver, self.adam) == ("identity", "fixed_point"),
              "aid.adam", self.adam, f"aid.solver={self.solver} makes nothing of it; use aid.adam=ignore")
        check(not self.warm_start or self.solver == "cg", "aid.warm_start", self.warm_start, "only aid.solver=cg starts warm; set it to false")


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


@dataclass(kw_only=True)
class SweepConfig:
    """Which configurations are compared, and how often each is repeated."""

    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Configurations: name -> dotted settings that differ from the rest of this configuration."""
    ours: str = "meltr"
    """Arm that the report is about, named before any result is seen."""
    baselines: list[str] = field(default_factory=lambda: ["uniform", "primary_only"])
    """Arms that `ours` is compared with, pair by pair over the same seeds; the first leads the report."""
    seeds: int = 6
    """Seeds of `ours` and of each baseline; 6 is the least with which a two-sided sign test can reach 0.05."""
    other_seeds: int = 2
    """Seeds of every other arm."""
    learning_rates: list[float] = field(default_factory=list)
    """Learning rates of w tried for `ours` and each baseline before the comparison, each the same way; empty: none."""
    learning_rate_seeds: int = 1
    """Seeds of the learning-rate search, apart from those of the comparison."""
    leave_one_out: bool = True
    """Add an arm for every auxiliary loss of `ours`, without it."""
    add_one_in: bool = False
    """Add an arm for every auxiliary loss of `ours`, with the primary loss and it alone."""
    space: list[str] = field(default_factory=list)
    """Names of AID settings to search over (tune_spaces/aid.py), each as a variation of `ours`; empty: none."""
    search: str = "random"
    """How `space` is searched: `grid` (every combination) or `random`."""
    samples: int = 8
    """Configurations that a random search draws."""
    max_concurrent: int = 2
    """Trials that run at the same time."""
    progress_every: float = 10.0
    """Seconds between two progress lines where the output is not a terminal."""

    def __post_init__(self):
        for name, low in dict(seeds=1, other_seeds=1, learning_rate_seeds=1, samples=1, max_concurrent=1).items():
            check_at_least(f"sweep.{name}", getattr(self, name), low)
        check_choice("sweep.search", self.search, ("grid", "random"))
        for arm in [self.ours, *self.baselines] if self.arms else []:
            check(arm in self.arms, "sweep.ours" if arm == self.ours else "sweep.baselines", arm,
                  f"no such arm; use one of {', '.join(self.arms)}")


@dataclass(kw_only=True)
class Config:
    """One run of this project; a sweep makes one for each trial."""

    name: Optional[str] = None
    """Name of the output folder; default: the experiment's name, or that of the data set."""
    output: str = "outputs"
    """Folder under which runs and sweeps are written, relative to the working folder."""
    resume: Optional[str] = None
    """Folder of an interrupted run or sweep to go on with, with the settings that it was started with."""
    source: Optional[str] = None
    """Folder of the original distribution of a data set; used by prepare.py alone."""
    checkpoint: Optional[str] = None
    """Folder of a finished run or trial; used by evaluate.py alone."""
    split: str = "validation"
    """Split that evaluate.py scores: `validation`, `test`, `meta` or `train`."""
    cluster: str = "local"
    """Ray cluster: `local` starts one on this machine, `auto` joins the one found, else its address."""
    seed: int = 0
    """Seed of weights, data order, masks and dropout; the same seed pairs two configurations."""
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    combiner: CombinerConfig = field(default_factory=CombinerConfig)
    aid: AidConfig = field(default_factory=AidConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    def __post_init__(self):
        check_at_least("seed", self.seed, 0)
        check_choice("split", self.split, ("train", "meta", "validation", "test"))
        if isinstance(self.combiner.weights, (list, tuple)):
            check(len(self.combiner.weights) == len(self.task.loss_set), "combiner.weights", self.combiner.weights,
                  f"must have one number per loss of task.loss_set; give {len(self.task.loss_set)}")
        check(self.data.max_words <= self.backbone.max_position_embeddings, "data.max_words", self.data.max_words,
              f"longer than backbone.max_position_embeddings={self.backbone.max_position_embeddings}; lower it")
        check(self.data.max_frames <= self.backbone.max_position_embeddings, "data.max_frames", self.data.max_frames,
              f"longer than backbone.max_position_embeddings={self.backbone.max_position_embeddings}; lower it")
        total = self.data.max_words + self.data.max_frames
        check(total <= self.backbone.max_cross_position_embeddings, "backbone.max_cross_position_embeddings",
              self.backbone.max_cross_position_embeddings, f"less than words plus frames; raise it to {total}")


ABOUT_THE_COMMAND = ("name", "output", "resume", "source", "checkpoint", "split", "cluster")
"""Settings of a command, not of what it computes: no columns of the results table, free to change on resuming."""


def to_flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of every setting, e.g. `aid.solver` -> `cg`; the columns of the results table."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= to_flat(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat
