"""The engine's hypergradient on UniVL with all its losses, against the published formula by double backward through the whole model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from meltr_ray import MELTR
from meltr_ray.config import AidConfig, Config, EngineConfig, LossesConfig, TrainConfig
from meltr_ray.hypergrad import Identity, ModuleProblem, hypergradient
from meltr_ray.training.loss_vector import LossVector
from meltr_ray.video.backbones.univl.settings import UNIVL_LOSSES, UniVLConfig
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.workload import Video
from tests.ranks import on_ranks
from tests.reference import flat, relative_error


def univl_terms(digits_folder: str, aid: dict, stage: int = 0, precision: str = "float32") -> Tensor:
    """Implicit term on UniVL with every loss, float32 weights, fused attention."""
    from meltr_ray.training.engine import Engine

    model, batch, meta_batch, config = univl_case(digits_folder, fused=True)
    config.aid, config.engine = AidConfig(**aid), EngineConfig(zero_stage=stage, precision=precision)
    engine = Engine(model, config, torch.device("cpu"))
    problem = engine.problem([batch], [meta_batch], "joint", config.aid)
    return flat(hypergradient(problem, univl_combiner(), Identity()).implicit)


def univl_combiner() -> MELTR:
    torch.manual_seed(0)
    combiner = MELTR(8, embedding_size=16, loss_encoder_size=8, feed_forward_size=16)
    nn.init.normal_(combiner.fc1.weight, std=0.5)
    return combiner


def univl_case(digits_folder: str, fused: bool):
    backbone = UniVLConfig(hidden_size=16, num_heads=2, feed_forward_size=32, dropout=0.0, fused_attention=fused,
                           similarity_temperature=0.1, normalize_embeddings=True)  # fmt: skip
    config = Config(workload=Video(data=DataConfig(folder=digits_folder), backbone=backbone), losses=LossesConfig(set=list(UNIVL_LOSSES)),
                    train=TrainConfig(batch_size=6))  # fmt: skip
    store, inputs = config.workload.folder.split("train"), config.workload.inputs
    torch.manual_seed(3)
    model = LossVector(config.workload.module(), config.workload)
    batches = [inputs.batch([store[i] for i in range(start, start + 6)], seed=start) for start in (0, 6)]
    return model, *batches, config


@pytest.fixture(scope="module")
def univl_in_float64(digits_folder):
    """UniVL in float64 with explicit attention: module, its two batches and a combiner."""
    model, batch, meta_batch, _ = univl_case(str(digits_folder), fused=False)
    wide = [dataclasses.replace(b, video=b.video.double(), masked_video=b.masked_video.double()) for b in (batch, meta_batch)]
    return model.double(), *wide, univl_combiner().double()


def test_paper_mode_on_univl_is_the_published_formula(univl_in_float64):
    """-grad_phi <dL/dw, dF/dw>, direct term dropped, by double backward through the whole model."""
    model, batch, meta_batch, combiner = univl_in_float64
    w, phi, gamma = list(model.parameters()), list(combiner.parameters()), 0.3
    losses = model(batch)
    training = combiner(losses)
    outer = model(meta_batch, ("joint",))[0] + gamma * (losses.sum() - training).abs()
    of_outer = torch.autograd.grad(outer, w, retain_graph=True, allow_unused=True, materialize_grads=True)
    of_training = torch.autograd.grad(training, w, create_graph=True, allow_unused=True, materialize_grads=True)
    along = sum((g * b).sum() for g, b in zip(of_training, of_outer))
    published = flat(list(torch.autograd.grad(-along, phi, allow_unused=True, materialize_grads=True)))
    for product in ("forward", "double_backward", "central"):
        problem = ModuleProblem(model, lambda: model(batch), lambda: model(meta_batch, ("joint",))[0], product=product)
        ours = flat(hypergradient(problem, combiner, gamma=gamma, regulariser="paper").total())
        assert relative_error(ours, published) < 1e-6, product


@pytest.mark.parametrize("aid, stage, precision, tolerance", [
    (dict(product="central"), 0, "float32", 1e-2), (dict(product="one_sided"), 0, "float32", 5e-2),
    (dict(product="forward"), 0, "float32", 1e-4), (dict(), 0, "bfloat16", 0.1), (dict(), 3, "bfloat16", 0.1),
], ids=lambda value: str(value))  # fmt: skip
def test_the_engine_on_univl_is_double_backward_through_the_whole_model(aid, stage, precision, tolerance, digits_folder, univl_in_float64):
    """The published way, float64 and explicit attention, against ours with float32 weights and fused attention, eight losses."""
    model, batch, meta_batch, combiner = univl_in_float64
    problem = ModuleProblem(model, lambda: model(batch), lambda: model(meta_batch, ("joint",))[0], product="double_backward")
    expected = flat(hypergradient(problem, combiner).implicit)
    (got,) = on_ranks(univl_terms, 1, str(digits_folder), aid, stage, precision)
    error, cosine = relative_error(got.double(), expected), float(torch.cosine_similarity(got.double(), expected, dim=0))
    print(f"{aid} ZeRO {stage} {precision}: relative error {error:.1e}, cosine {cosine:.5f}")
    assert error < tolerance and cosine > 0.99
