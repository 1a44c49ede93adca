"""The engine and its meta step with each method of tuning, ZeRO 0 to 3; which weights a method trains is in test_tuning.py."""

from __future__ import annotations

import copy
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from meltr_ray import MELTR
from meltr_ray.combining.meta import Meta
from meltr_ray.combining.slopes import slopes
from meltr_ray.config import AidConfig, Config, EngineConfig, LossesConfig, OptimizerConfig, TrainConfig, TuningConfig
from meltr_ray.hypergrad import hypergradient
from meltr_ray.hypergrad.named import SOLVERS
from meltr_ray.training.bert_adam import BertAdam
from meltr_ray.training.loss_vector import LossVector, named_weights
from meltr_ray.training.tuning import prepare_for_tuning
from meltr_ray.video.backbones.univl.settings import UNIVL_LOSSES, UniVLConfig
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.workload import Video
from tests.ranks import on_ranks
from tests.reference import DenseBilevel, as_function, flat, relative_error, trained

STAGES = (0, 1, 2, 3)
RANKS, STEPS, STOP, DAMPING = 2, 6, 3, 5.0
CPU = torch.device("cpu")


class Toy(nn.Module):
    """A backbone with UniVL's names: an encoder of two layers and two heads."""

    def __init__(self, dropout: float):
        super().__init__()
        self.bert = nn.ModuleDict({"layer": nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6)])})
        self.dropout = nn.Dropout(dropout)
        self.head, self.cls = nn.Linear(6, 3), nn.Linear(6, 3)


class ToyLosses(nn.Module):
    """Three losses of (x (B, 4), y (B, 3))."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: tuple[Tensor, Tensor], names: tuple[str, ...] | None = None) -> Tensor:
        x, y = (part.to(self.backbone.head.weight.dtype) for part in batch)
        for layer in self.backbone.bert["layer"]:
            x = self.backbone.dropout(layer(x).tanh())
        error = self.backbone.head(x) - y
        if names is not None:
            return error[:, 0].pow(2).mean()[None]
        return torch.stack([error[:, 0].pow(2).mean(), (self.backbone.cls(x) - y).pow(2).mean(), error[:, 2].cosh().mean()])


class ToyVideo(Video):
    """UniVL's encoders, as far as the toy has them."""

    @property
    def encoders(self) -> tuple[tuple[str, ...], ...]:
        there = dict(Toy(0.0).named_modules())
        return tuple(tuple(name for name in encoder if name in there) for encoder in super().encoders)


LORA = dict(lora=["layer.0", "layer.1"], lora_rank=2, lora_alpha=3.0)
METHODS = {
    "frozen": dict(frozen=["bert"], trained=["bert.layer.1"]),
    "LoRA": LORA,
    "LoRA alone": LORA | dict(lora=["layer.1"], trained=[]),
    "all, rates": dict(layer_decay=0.5, rates={"cls": 3.0}),
    "LoRA, BertAdam, rates": LORA | dict(layer_decay=0.5, rates={"cls": 3.0}),
}
TRAINED = {"frozen": 42 + 42, "LoRA": 2 * 10 + 2 * 12 + 42, "LoRA alone": 2 * 12, "all, rates": 72 + 42,
           "LoRA, BertAdam, rates": 2 * 10 + 2 * 12 + 42}  # fmt: skip
"""Weights that train: layers of 4 x 6 + 6 and 6 x 6 + 6, heads of 6 x 3 + 3 each; LoRA of rank 2."""


def toy_config(method: str, stage: int = 0) -> Config:
    return Config(
        workload=ToyVideo(),
        losses=LossesConfig(set=["joint", "caption", "masked_frame"]),
        tuning=TuningConfig(**METHODS[method]),
        engine=EngineConfig(zero_stage=stage),
        train=TrainConfig(batch_size=8, steps=STEPS),
        optimizer=OptimizerConfig(learning_rate=1e-2, name="bert_adam" if "BertAdam" in method else "adamw"),
        aid=AidConfig(solver="cg", iterations=40, damping=DAMPING, cg_tolerance=1e-6, product="one_sided", hessian_product="one_sided",
                      inner_steps=2, learning_rate=1e-2, warm_start=True),
    )  # fmt: skip


def toy(config: Config, dropout: float = 0.0) -> tuple[ToyLosses, MELTR]:
    torch.manual_seed(0)
    model, combiner = ToyLosses(Toy(dropout)), MELTR(3, embedding_size=16, loss_encoder_size=8, feed_forward_size=16)
    nn.init.normal_(combiner.fc1.weight, std=0.5)
    prepare_for_tuning(model, config)
    for name, p in model.named_parameters():
        if "lora_B" in name:  # as if training had begun: at B = 0 half of LoRA's derivatives vanish
            nn.init.normal_(p, std=0.3)
    return model, combiner


def toy_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 4, generator=generator), torch.randn(8, 3, generator=generator)


def on_a_rank(stage: int) -> dict[str, dict]:
    return {method: {"terms": terms(method, stage)} | run_and_resume(method, stage) for method in METHODS}


def terms(method: str, stage: int) -> tuple[Tensor, int]:
    """Hypergradient of the engine, mean over ranks, and how many numbers v has on all ranks."""
    from meltr_ray.training.engine import Engine

    config = toy_config(method, stage)
    model, combiner = toy(config)
    engine = Engine(model, config, CPU)
    problem = engine.problem([toy_batch(engine.rank)], [toy_batch(10 + engine.rank)], "joint", config.aid)
    problem.fixed_point = None  # weight decay has a test of its own
    result = hypergradient(problem, combiner, SOLVERS["cg"].of(config.aid), gamma=0.5)
    held = torch.tensor(float(sum(piece.numel() for piece in result.solution.v.pieces)))
    return flat(engine.average(result.total())), round(float(sum(engine.gather(held)))) if stage == 3 else int(held)


def run_and_resume(method: str, stage: int) -> dict:
    """Six steps with three meta steps and dropout: weights at the start and end, state; and the same once stopped after three."""
    from meltr_ray.hypergrad.generators import get_generators, set_generators
    from meltr_ray.training.engine import Engine

    config = toy_config(method, stage)
    config.aid.iterations = 3  # states are compared bit for bit, whatever the solve left over

    def build() -> tuple[Engine, Meta]:
        model, combiner = toy(config, dropout=0.3)
        return Engine(model, config, CPU), Meta(combiner, config.aid)

    def advance(engine: Engine, meta: Meta, first: int, last: int) -> None:
        for step in range(first, last):
            problem = engine.problem([toy_batch(100 * engine.rank + step)], [toy_batch(50 + 100 * engine.rank + step)], "joint", config.aid)
            if meta.is_due(step):
                meta.step(problem)
            losses = problem.losses()[0]
            engine.backward(slopes(meta.combiner, losses)[1] @ losses)
            engine.step(step)

    def state(engine: Engine, meta: Meta) -> dict[str, dict[str, Tensor]]:
        parts = {"weights": engine.weights(), "optimizer": engine.optimizer_state(), "meta": meta.state(), "own": meta.own_state()}
        return copy.deepcopy(parts | {"generators": get_generators(CPU)})  # some of it is what the next steps change

    engine, meta = build()
    start = engine.weights()
    torch.manual_seed(100 + engine.rank)
    advance(engine, meta, 0, STOP)
    stopped = state(engine, meta)
    advance(engine, meta, STOP, STEPS)
    whole = state(engine, meta)
    moments = engine.fixed_point(AidConfig(solver="cg", adam="precondition", decay_in_hessian=False)).scale.pieces

    model, combiner = toy(config, dropout=0.3)
    model.load_state_dict(stopped["weights"])
    engine, meta = Engine(model, config, CPU), Meta(combiner, config.aid)
    engine.load_optimizer_state(stopped["optimizer"], STOP)
    meta.load_state(stopped["meta"])
    meta.last_v = engine.w.hold(list(stopped["own"].values()))
    set_generators(stopped["generators"], CPU)
    advance(engine, meta, STOP, STEPS)
    return {"start": start, "whole": whole, "resumed": state(engine, meta), "plain": plain_steps(method, stage), "scale": moments}


def plain_steps(method: str, stage: int) -> dict[str, Tensor]:
    """Weights after six steps on the sum of the losses, without meta steps."""
    from meltr_ray.training.engine import Engine

    config = toy_config(method, stage)
    engine = Engine(toy(config)[0], config, CPU)
    for step in range(STEPS):
        engine.backward(engine.losses(toy_batch(step)).sum())
        engine.step(step)
    return engine.weights()


@lru_cache(maxsize=1)
def dense_terms() -> dict[str, Tensor]:
    """Each method's hypergradient from the whole Hessian of its trained weights, float64: losses and outer loss are means over ranks."""
    found = {}
    for method in METHODS:
        model, combiner = (module.double() for module in toy(toy_config(method)))
        losses = [as_function(model, lambda m, i=i: m(toy_batch(i))) for i in range(RANKS)]
        outer = [as_function(model, lambda m, i=i: m(toy_batch(10 + i), ("joint",))[0]) for i in range(RANKS)]

        def combine(l: Tensor, phi: Tensor, combiner: MELTR = combiner) -> Tensor:
            return as_function(combiner, lambda c: c(l))(phi)

        phi = trained(combiner)
        dense = DenseBilevel(lambda w, phi: sum(combine(l(w), phi) for l in losses) / RANKS, lambda w, phi: sum(F(w) for F in outer) / RANKS,
                             trained(model), phi)  # fmt: skip
        assert len(dense.w) == TRAINED[method]
        v = torch.linalg.solve(dense.hessian + DAMPING * torch.eye(len(dense.w)).double(), dense.outer_gradient)
        deviations = [
            0.5 * (combine(l(dense.w).detach(), x) - l(dense.w).detach().sum()).abs() for x in [phi.requires_grad_()] for l in losses
        ]
        found[method] = dense.total(v) + torch.autograd.grad(sum(deviations) / RANKS, phi)[0]
    return found


@pytest.fixture(
    scope="module", params=[pytest.param(stage, marks=[pytest.mark.whole] * (stage == 1), id=f"zero{stage}") for stage in STAGES]
)
def found(request) -> tuple[int, list[dict]]:
    """The ZeRO stage, and what each rank found for each method."""
    return request.param, on_ranks(on_a_rank, RANKS, request.param)


def test_the_hypergradient_is_the_dense_one_of_what_trains(found):
    stage, ranks = found
    for method in METHODS:
        for rank in ranks:
            got, size = rank[method]["terms"]
            assert relative_error(got.double(), dense_terms()[method]) < 1e-2, method
            padding = RANKS * 12 if stage == 3 else 0  # at most one number for each shard of a parameter
            assert TRAINED[method] <= size <= TRAINED[method] + padding, (method, size)


def test_meta_steps_and_steps_leave_frozen_weights_as_they_are(found):
    for method in METHODS:
        model, _ = toy(toy_config(method))
        for rank in found[1]:
            start, whole = rank[method]["start"], rank[method]["whole"]
            training = {name for name, p in model.named_parameters() if p.requires_grad}
            moved = {name for name in start if not torch.equal(start[name], whole["weights"][name])}
            assert moved == training and set(start) == set(dict(model.named_parameters())), method
            assert set(whole["optimizer"]) == {f"{key}/{name}" for key in ("exp_avg", "exp_avg_sq") for name in training}


def test_a_resumed_run_is_bit_identical(found):
    for method in METHODS:
        for rank in found[1]:
            whole, resumed = rank[method]["whole"], rank[method]["resumed"]
            for part in whole:
                assert whole[part].keys() == resumed[part].keys()
                assert all(torch.equal(whole[part][name], resumed[part][name]) for name in whole[part]), (method, part)


FACTORS = {"bert.layer.0": 0.25, "bert.layer.1": 0.5, "cls": 3.0, "head": 1.0}
"""Of `layer_decay=0.5` and `rates={cls: 3}`."""


@pytest.mark.parametrize("method", METHODS)
def test_steps_are_those_of_the_optimiser_alone(found, method):
    """Each weight's rate, decay and moments, in a loop without DeepSpeed."""
    model, _ = toy(toy_config(method))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rates = {name: next(f for start, f in FACTORS.items() if name.startswith(f"backbone.{start}.")) if "rates" in method else 1.0
             for name in named}  # fmt: skip
    groups = [{"params": [p], "weight_decay": 0.0 if name.endswith("bias") else 0.01} for name, p in named.items()]
    optimizer = BertAdam(groups, eps=1e-6) if "BertAdam" in method else torch.optim.AdamW(groups)
    warm = 0.1 * STEPS
    for step in range(STEPS):
        model(toy_batch(step)).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = min(1.0, (step + 1) / warm if step + 1 < warm else (STEPS - step) / (STEPS - warm))
        for group, name in zip(optimizer.param_groups, named):
            group["lr"] = 1e-2 * factor * rates[name]
        optimizer.step()
        optimizer.zero_grad()
    for rank in found[1]:
        for name, p in model.named_parameters():
            assert torch.allclose(rank[method]["plain"][name], p, atol=2e-6), name


def test_the_fixed_point_has_the_optimisers_own_denominator(found):
    """AdamW corrects the second moment's bias, BertAdam doesn't."""
    stage, ranks = found
    for rank in ranks if stage < 3 else []:
        for method, correction, epsilon in (("LoRA", 1 - 0.999**STEPS, 1e-8), ("LoRA, BertAdam, rates", 1.0, 1e-6)):
            moments = [value for name, value in rank[method]["whole"]["optimizer"].items() if name.startswith("exp_avg_sq/")]
            for scale, moment in zip(rank[method]["scale"], moments):
                assert torch.allclose(scale, (moment / correction).sqrt() + epsilon, rtol=1e-6)


# --- the real backbone


UNIVL = dict(hidden_size=16, num_heads=2, feed_forward_size=32, dropout=0.0, similarity_temperature=0.1, normalize_embeddings=True)
PLACES = {"plain": {}, "recomputed": dict(recompute=True), "zero3, recomputed": dict(recompute=True, stage=3),
          "bfloat16, recomputed": dict(recompute=True, precision="bfloat16"),
          "zero3, bfloat16, recomputed": dict(recompute=True, stage=3, precision="bfloat16")}  # fmt: skip


def univl_on_a_rank(folder: str, recompute: bool = False, stage: int = 0, precision: str = "float32") -> dict[str, Tensor]:
    """UniVL with LoRA, all losses: hypergradient, gradient of the sum of losses, and weights after a step."""
    from meltr_ray.training.engine import Engine

    config = Config(
        workload=Video(data=DataConfig(folder=folder), backbone=UniVLConfig(**UNIVL, activation_checkpointing=recompute)),
        losses=LossesConfig(set=list(UNIVL_LOSSES)),
        tuning=TuningConfig(lora=["query", "value", "att.key"], frozen=["visual"]),
        engine=EngineConfig(zero_stage=stage, precision=precision), train=TrainConfig(batch_size=6),
        optimizer=OptimizerConfig(schedule="constant", warmup=0.0),
        aid=AidConfig(radius=0.01),  # LoRA's losses bend less along v than those of all weights, so that rounding asks for more
    )  # fmt: skip
    store = config.workload.folder.split("train")
    torch.manual_seed(3)
    module = config.workload.module()
    prepare_for_tuning(module, config)
    model = LossVector(module, config.workload)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.3)
    torch.manual_seed(0)
    combiner = MELTR(8, embedding_size=16, loss_encoder_size=8, feed_forward_size=16)
    nn.init.normal_(combiner.fc1.weight, std=0.5)
    batch, meta_batch = (config.workload.inputs.batch([store[i] for i in range(s, s + 6)], seed=s) for s in (0, 6))
    engine = Engine(model, config, CPU)
    before = engine.weights()
    problem = engine.problem([batch], [meta_batch], "joint", config.aid)
    found = {"hypergradient": flat(hypergradient(problem, combiner, SOLVERS["identity"].of(config.aid)).implicit)}
    engine.backward(engine.losses(batch).sum())
    engine.step(0)
    after = engine.weights()
    frozen = [name for name, p in named_weights(engine.module) if not p.requires_grad]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    moments = engine.optimizer_state()
    return found | {"gradient": flat([value for name, value in sorted(moments.items()) if name.startswith("exp_avg/")])}


@pytest.fixture(scope="module")
def plain_univl(digits_folder) -> dict[str, Tensor]:
    return on_ranks(univl_on_a_rank, 1, str(digits_folder))[0]


@pytest.mark.parametrize("place", list(PLACES)[1:])
def test_lora_on_univl_recomputed_sharded_or_in_half_precision_is_the_plain_run(place, digits_folder, plain_univl):
    settings = PLACES[place]
    (got,) = on_ranks(univl_on_a_rank, 1, str(digits_folder), settings.get("recompute", False), settings.get("stage", 0),
                      settings.get("precision", "float32"))  # fmt: skip
    errors = {part: relative_error(got[part], plain_univl[part]) for part in plain_univl}
    print(place, errors)
    tolerance = {"hypergradient": 0.1, "gradient": 0.05} if "bfloat16" in place else {"hypergradient": 1e-2, "gradient": 1e-4}
    assert all(errors[part] < tolerance[part] for part in errors), errors
