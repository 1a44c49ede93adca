"""Settings of the outer level: the combiner g_phi, and how phi is trained."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Optional

from meltr_ray.bounds import bounded, check_settings
from meltr_ray.errors import ConfigError, check, check_choice
from meltr_ray.extras import needs

META_BATCHES = ("recent", "next", "held_out")
STARTS = ("primary", "uniform", "probe")
"""Of `look_ahead`."""

# What a name stands for is imported where a configuration is made: torch takes seconds, which `--help` can do without.


@dataclass(kw_only=True)
class CombinerConfig:
    """g_phi, which turns the vector of losses into one training loss."""

    name: str = "meltr"
    """Way to combine losses: `fixed` weights; by held-out batches: `meltr` (the meta loss transformer), `own` (the workload's), `aligned`, `tryout`, `look_ahead`, `meltr_ahead`, `meltr_gated`; from the losses alone: `uncertainty`, `uw_so`, `dwa`, `rlw`, `imtl_l`, `stch`, `famo`, `geometric_mean`; from their gradients: `pcgrad`, `cagrad`, `mgda`, `aligned_mtl`, `imtl_g`, `upgrad`, `dualproj`, `gradvac`, `fairgrad`, `pcd`, `cosine_gate` (docs/combining.md)."""
    weights: Any = bounded("uniform", -1e6, 1e6)
    """Weights of `fixed`: `uniform`, `primary` (the primary loss alone), or a list with one number per loss."""
    every: Optional[int] = bounded(None, 1, 10**6)
    """Steps between two looks at the losses' gradients, T backward passes each: of `aligned` and those from gradients (default 3); between two probes of `look_ahead`, `meltr_ahead`, `meltr_gated` (34)."""
    horizon: Optional[int] = bounded(None, 1, 10**6)
    """Steps that a probe of `look_ahead`, `meltr_ahead`, `meltr_gated` trains on before it is put back (default 20)."""
    start: Optional[str] = None
    """How `look_ahead` and the switches of `meltr_gated` begin: with the `primary` alone (default), `uniform`, or as a `probe` of all losses over the first tenth of training says."""
    share: Optional[float] = bounded(None, 1e-6, 100)
    """Steps that `tryout` spends on trying the auxiliary losses, all together, as a share of train.steps (default 0.6)."""
    gramian: str = "exact"
    """How `aligned` and those from gradients learn how the losses' gradients stand to each other: `exact`, T backward passes, or `random`, `passes` forward passes, with noise (docs/combining.md)."""
    passes: Optional[int] = bounded(None, 1, 1024)
    """Draws of a random Gramian at each look, a forward product each (default 8); with those of earlier looks they act as 19 times as many, and the relative error of a cosine is 1 / sqrt of that."""
    window: Optional[int] = bounded(None, 1, 10**6)
    """Steps that `dwa` takes a mean over, in place of an epoch (default 50)."""
    temperature: Optional[float] = bounded(None, 1e-6, 1e6)
    """How even weights are: of `dwa` (default 2), `uw_so` (1), `stch` (0.1)."""
    strength: Optional[float] = bounded(None, 1e-9, 1e3)
    """The one number of `famo` (its learning rate, default 0.025), `cagrad` (c, 0.5), `fairgrad` (alpha, 2), `gradvac` (decay, 0.5), `pcd` (tau, 0.02), `aligned` (the primary's least share, 0.25) and `look_ahead` and `meltr_gated` (least effect that turns a switch, as a share of the primary loss, 0.001) and `tryout` (the same, of a loss that is trained with, 0.01)."""
    mode: str = "near_sum"
    """How MELTR starts: `near_sum` adds the transformer to the plain sum of losses, its last layer small; `paper` is the published form."""
    embedding_size: int = bounded(256, 8, 2048)
    """Width of MELTR's transformer (published: 256); its 8 heads must divide it."""
    loss_encoder_size: int = bounded(128, 1, 16_384)
    """Hidden width of the layer that embeds a loss value (published: 128)."""
    feed_forward_size: int = bounded(512, 1, 16_384)
    """Width of MELTR's feed-forward layer (published: 512)."""
    slopes: str = "any"
    """Of g_phi: `any`; `non_negative`: a loss whose slope is negative is held constant for that step instead of being raised; `simplex`: positive, their sum T, the primary's at least `floor` of it, so that losses compete."""
    floor: Optional[float] = bounded(None, 0, 0.99)
    """Least share of the primary in slopes on a simplex (default 0.25)."""
    inputs: str = "raw"
    """What MELTR's tokens are made of: `raw` loss values (published), or what doesn't saturate its layer norm: their `log` (asinh), or `relative`: over an exponential mean of the loss's size."""
    average_losses: bool = False
    """Average the losses over workers before they are combined, so that R batches of B act as one of R B; false: each worker combines its own, as published."""
    dropout: Optional[float] = bounded(None, 0, 0.99)
    """Dropout inside MELTR; default: 0, and 0.1 with `mode=paper` (one mask a meta step)."""

    def __post_init__(self):
        check_settings("combiner", self)
        from meltr_ray.combining.inputs import INPUTS
        from meltr_ray.combining.named import WAYS
        from meltr_ray.combining.random_gramian import check_gramian
        from meltr_ray.combining.slopes import FLOOR, SLOPES
        from meltr_ray.combining.way import OWN

        check_choice("combiner.name", self.name, tuple(WAYS))
        way = WAYS[self.name]
        for name in OWN:
            given, default = getattr(self, name), getattr(way, name)
            check(
                given is None or default is not None,
                f"combiner.{name}",
                given,
                f"combiner.name={self.name} makes nothing of it; leave it out",
            )
            setattr(self, name, default if given is None else given)
        if self.start is not None:
            check_choice("combiner.start", self.start, STARTS)
        check(
            self.horizon is None or self.every >= self.horizon,
            "combiner.every",
            self.every,
            f"is less than combiner.horizon={self.horizon}, and probes don't overlap; raise it to that at least",
        )
        check(
            self.strength is None or self.strength <= way.strongest,
            "combiner.strength",
            self.strength,
            f"must be at most {way.strongest:g} for combiner.name={self.name}; lower it",
        )
        check(
            self.name == "fixed" or self.weights == "uniform",
            "combiner.weights",
            self.weights,
            f"combiner.name={self.name} makes nothing of them; leave them out, or use combiner.name=fixed",
        )
        check_gramian(self, way)
        missing = [package for package in way.needs if find_spec(package) is None]
        if missing:
            raise ConfigError(f"combiner.name={self.name}: {needs('methods', missing)}")
        check_choice("combiner.mode", self.mode, ("near_sum", "paper"))
        check_choice("combiner.slopes", self.slopes, SLOPES)
        check_choice("combiner.inputs", self.inputs, tuple(INPUTS))
        check(
            self.floor is None or self.slopes == "simplex",
            "combiner.floor",
            self.floor,
            f"combiner.slopes={self.slopes} makes nothing of it; leave it out, or use combiner.slopes=simplex",
        )
        if self.floor is None and self.slopes == "simplex":
            self.floor = FLOOR
        if self.dropout is None:
            self.dropout = 0.1 if self.mode == "paper" else 0.0
        check(
            self.embedding_size % 8 == 0,
            "combiner.embedding_size",
            self.embedding_size,
            "must be a multiple of the 8 heads; published: 256",
        )
        if isinstance(self.weights, str):
            check_choice("combiner.weights", self.weights, ("uniform", "primary"))
        else:
            check(
                isinstance(self.weights, (list, tuple)) and all(isinstance(w, (int, float)) for w in self.weights),
                "combiner.weights",
                self.weights,
                "must be uniform, primary or a list of numbers; give one per loss",
            )
            check(any(self.weights), "combiner.weights", self.weights, "are all zero, so nothing would be trained; raise one")


@dataclass(kw_only=True)
class AidConfig:
    """Approximate implicit differentiation: the outer level of the bi-level problem (MELTR, section 3.3)."""

    solver: str = "identity"
    """How v = (H + damping I)^-1 d_w F is approximated: `identity` (published), `neumann`, `cg`, `nystrom` (low rank) or `loss_space` (Gauss-Newton among the losses)."""
    iterations: int = bounded(5, 1, 1000, mend="for no iterations use aid.solver=identity")
    """Terms of the Neumann series or iterations of conjugate gradient; each costs one Hessian-vector product."""
    rank: int = bounded(10, 1, 1000)
    """Rank of `nystrom`; each costs one Hessian-vector product and twice the memory of the weights."""
    neumann_step: float = bounded(0.01, 1e-9, 100)
    """Step length of the Neumann series; must stay below 2 over the largest eigenvalue of H + damping I."""
    damping: float = bounded(1.0, 0, 1e6)
    """Added to the diagonal of H by every solver but `identity`; H of a network is indefinite, and CG stops at negative curvature."""
    cg_tolerance: float = bounded(1e-3, 0, 1)
    """Relative residual at which conjugate gradient stops early."""
    warm_start: bool = False
    """Start conjugate gradient from the v of the last meta step (one more product, and memory of the weights once more)."""
    adam: str = "ignore"
    """What the solve makes of Adam's second moments: `ignore`, `precondition` (same answer, fewer iterations) or `fixed_point` (damping and truncation in Adam's own metric, as SAMA)."""
    decay_in_hessian: bool = True
    """Count AdamW's weight decay into H, as its fixed point has it (costs a gather of the second moments under ZeRO 1 and 2)."""
    inner_steps: int = bounded(3, 1, 10**6)
    """Optimiser steps on w between two meta steps on phi (published: 3 to 5)."""
    learning_rate: float = bounded(1e-3, 0, 10)
    """Learning rate of phi (Adam; published: 1e-3); 0 runs the meta steps and leaves phi as it is."""
    betas: list[float] = bounded([0.9, 0.999], 0, 0.999999)
    """Decay rates of the two moments of phi's Adam; the second is what it remembers of the lengths of its gradients (0.99: of the last hundred)."""
    normalise: bool = False
    """Divide the alignments J v by an exponential mean of their length (decay 0.9), so that late meta steps count as much as the first."""
    weight_decay: float = bounded(3e-5, 0, 100)
    """L2 weight decay of phi (published: 3e-5)."""
    gamma: float = bounded(0.1, 0, 1e6)
    """Weight of the outer regulariser |g_phi(l) - sum_t l_t| (published: 0.1); 0 switches it off."""
    regulariser: str = "phi_only"
    """What the regulariser differentiates: `phi_only` (direct term), `full` (and w: one more backward), `paper` (w alone, as published)."""
    meta_batch: Optional[str] = None
    """Batch of the outer loss: `recent` (one of the last 10 training batches, published), `next` (the next one; default) or `held_out` (the meta split; default of `tryout`, `look_ahead`, `meltr_ahead`, `meltr_gated`)."""
    num_meta_batches: Optional[int] = bounded(None, 1, 256)
    """Meta batches that the outer loss is the mean of (default 1; 8 of `look_ahead`, `meltr_ahead`, `meltr_gated`; 16 of `tryout`); each costs one forward and one backward of the primary loss, of a probe two forwards."""
    product: str = "auto"
    """How J v is taken: `one_sided` or `central` differences, `forward` mode, `double_backward` or `gradients` (one of each loss); `auto`: the cheapest that the model admits at `accuracy`."""
    hessian_product: str = "auto"
    """How H u is taken: `one_sided` or `central` differences of gradients, `double_backward`, `forward_over_reverse`; `gauss_newton` keeps only the combiner's curvature."""
    accuracy: Optional[float] = bounded(None, 1e-6, 1)
    """Relative error that `auto` may make; default: 0.01, and 0.1 in bfloat16."""
    radius: Optional[float] = bounded(None, 1e-8, 100)
    """Length |eps v| of a difference's move in weight space; default: 0.001 one-sided, 0.003 central (float32; why: hypergrad/products.py)."""
    check_every: int = bounded(0, 0, 10**9)
    """Meta steps between two self-checks of the products, whose relative errors go into the results table (several passes each); 0: never."""
    clip: float = bounded(10.0, 0, 1e6)
    """Largest norm of phi's gradient (published: 10 to 50); 0 switches clipping off."""

    def __post_init__(self):
        check_settings("aid", self)
        from meltr_ray.hypergrad.combined import REGULARISERS
        from meltr_ray.hypergrad.named import SOLVERS
        from meltr_ray.hypergrad.products import HVP, JVP
        from meltr_ray.hypergrad.solvers import ADAM_USES

        check(len(self.betas) == 2, "aid.betas", self.betas, "must be two numbers in [0, 1); usual: [0.9, 0.999]")
        check_choice("aid.solver", self.solver, tuple(SOLVERS))
        check_choice("aid.product", self.product, ("auto", *JVP))
        check_choice("aid.hessian_product", self.hessian_product, ("auto", *HVP, "gauss_newton"))
        check_choice("aid.adam", self.adam, ADAM_USES)
        check_choice("aid.regulariser", self.regulariser, REGULARISERS)
        if self.meta_batch is not None:
            check_choice("aid.meta_batch", self.meta_batch, META_BATCHES)
        solver = SOLVERS[self.solver]
        check(
            self.damping > 0 or not solver.needs_damping,
            "aid.damping",
            self.damping,
            f"aid.solver={self.solver} needs it positive; raise it",
        )
        check(self.adam in solver.adam_uses, "aid.adam", self.adam, f"aid.solver={self.solver} makes nothing of it; use aid.adam=ignore")
        warm = [name for name, kind in SOLVERS.items() if kind.starts_warm]
        check(
            not self.warm_start or solver.starts_warm,
            "aid.warm_start",
            self.warm_start,
            f"only aid.solver={' or '.join(warm)} starts warm; set it to false",
        )
