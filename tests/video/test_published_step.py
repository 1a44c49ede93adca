"""MELTR's training step on UniVL: weights and combiner after each meta step, beside the published code's, in float64.

Our loop, meta step, hypergradient (double backward), combiner and BertAdam, with a plain module in place of DeepSpeed, which
has no float64. The numbers in univl_step_reference.npz were made by `python -m tests.video.parity.univl --step --store`.

Settings that give the published step: `combiner.mode=paper` without dropout, `aid.solver=identity`,
`aid.regulariser=paper`, `aid.meta_batch=recent`, `backbone.joint_loss=margin`, `backbone.normalize_embeddings=true`,
`backbone.similarity_temperature=1`. The published loop differs from ours in two things. Its meta steps fall after optimiser
steps 0, k, 2k ... (counted from 0), ours before steps k - 1, 2k - 1 ..., which for k = 2 is the same; and their inner loss
is that of a recent training batch, where ours is that of the coming one. Here the batch that comes after each meta step is
one that came before, too, and the published code draws that one.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from meltr_ray.combining.learned import Meltr
from meltr_ray.combining.meta import Meta
from meltr_ray.config import AidConfig, CombinerConfig, Config, TrainConfig
from meltr_ray.hypergrad import ModuleProblem
from meltr_ray.training.bert_adam import BertAdam, learning_rate_factor
from meltr_ray.training.loop import Progress, train
from meltr_ray.training.loss_vector import LossVector
from meltr_ray.video.backbones.univl.inputs import UniVLBatch
from meltr_ray.video.backbones.univl.losses import UniVLLosses
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UNIVL_LOSSES
from meltr_ray.video.clips.settings import DataConfig
from tests.reference import flat
from tests.video import test_univl as toy
from tests.video.settings import video_config

REFERENCE = Path(__file__).with_name("univl_step_reference.npz")
ROWS = {"A": (0, 1, 2, 3), "B": (2, 3, 4, 5), "C": (0, 2, 4, 5)}
"""Clips of the toy batch that make a batch of training."""
TRAINING = "AABACB"
META = {1: "A", 3: "A", 5: "A"}
"""Optimiser step -> batch of the outer loss of the meta step before it; the last has another inner batch, B."""
EVERY, GAMMA, PERIOD, WARMUP = 2, 0.5, 8, 0.25
RATE, DECAY, CLIP, META_RATE, META_DECAY, META_CLIP = 1e-2, 0.01, 1.0, 2e-2, 3e-3, 0.05
"""Both clips are at work, and phi goes far enough to bend the path of w (see the last test)."""
EXEMPT = ("bias", "LayerNorm.bias", "LayerNorm.weight")
"""Parts of names that the published code exempts from decay."""


def step_config(clip: float = META_CLIP) -> Config:
    return video_config(
        UNIVL_LOSSES, "align", data=DataConfig(max_words=toy.LENGTH, max_frames=toy.FRAMES),
        backbone=toy.toy_config(hidden_size=8, feed_forward_size=8, text_layers=1, visual_layers=1, cross_layers=1,
                                decoder_layers=1, fused_attention=False),
        combiner=CombinerConfig(mode="paper", dropout=0.0, embedding_size=8, loss_encoder_size=8, feed_forward_size=8),
        aid=AidConfig(solver="identity", regulariser="paper", gamma=GAMMA, product="double_backward", inner_steps=EVERY,
                      learning_rate=META_RATE, weight_decay=META_DECAY, clip=clip),
        train=TrainConfig(steps=len(TRAINING), evaluate_every=len(TRAINING), checkpoint_every=1),
    )  # fmt: skip


def step_model(config: Config) -> tuple[UniVLLosses, nn.Module]:
    """Weights and combiner, float64, as both codes start."""
    video = config.workload
    model = UniVLLosses(UniVL(video.backbone, toy.WORDS, toy.FEATURES), video.task)
    combiner = Meltr.of(config, video).combiner
    toy.fill(model.backbone)
    generator = np.random.default_rng(3)
    with torch.no_grad():
        for name, p in sorted(combiner.named_parameters()):
            if name == "encoder.norm2.bias":  # 0, as it starts: no slope depends on it; theirs leaves it out, ours decays it
                continue
            is_scale = ".norm" in name and name.endswith("weight")
            p.copy_(torch.from_numpy(generator.normal(scale=0.4, size=tuple(p.shape)) + is_scale))
    return model.double(), combiner.double()


def step_batch(name: str) -> UniVLBatch:
    whole, rows = toy.toy_batch(), list(ROWS[name])
    held = {item.name: getattr(whole, item.name) for item in fields(whole)}
    batch = replace(whole, **{name: x[rows] for name, x in held.items() if x is not None})
    # the published data loader has [PAD] for a target after the caption, and its loss counts that
    targets = torch.where(batch.decoder_target_ids < 0, 0, batch.decoder_target_ids)
    return replace(batch, video=batch.video.double(), masked_video=batch.masked_video.double(), decoder_target_ids=targets,
                   shuffled=torch.arange(len(rows)).roll(1))  # fmt: skip


class PlainEngine:
    """What the loop asks of an engine, for a module that this process holds whole; the rate as published."""

    device = torch.device("cpu")

    def __init__(self, module: nn.Module):
        self.module = module
        named = dict(module.named_parameters())
        exempt = [p for name, p in named.items() if any(word in name for word in EXEMPT)]
        others = [p for name, p in named.items() if not any(word in name for word in EXEMPT)]
        self.optimizer = BertAdam([{"params": others, "weight_decay": DECAY}, {"params": exempt, "weight_decay": 0.0}], clip=CLIP)

    def losses(self, batch: UniVLBatch) -> Tensor:
        return self.module(batch)

    def shared(self, losses: Tensor, always: bool = False) -> Tensor:
        return losses.detach()

    def average(self, tensors: list[Tensor]) -> list[Tensor]:
        return list(tensors)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, step: int) -> None:
        nn.utils.clip_grad_norm_(self.module.parameters(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * learning_rate_factor("warmup_linear", step, PERIOD, WARMUP)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def problem(self, batches: list, meta_batches: list, primary: str, aid: AidConfig) -> ModuleProblem:
        return ModuleProblem(self.module, [lambda batch=batch: self.module(batch) for batch in batches],
                             [lambda batch=batch: self.module(batch, (primary,))[0] for batch in meta_batches],
                             product=aid.product)  # fmt: skip


def our_path(config: Config) -> list[tuple[Tensor, Tensor]]:
    """(w, phi) after each optimiser step, w by sorted name."""
    model, combiner = step_model(config)
    path = []

    def save() -> None:
        w = flat([p.detach() for _, p in sorted(model.backbone.named_parameters())])
        path.append((w, flat([p.detach() for _, p in sorted(combiner.named_parameters())])))

    meta_batches = {step: [step_batch(name)] for step, name in META.items()}
    batches = [([step_batch(name)], meta_batches.get(step)) for step, name in enumerate(TRAINING)]
    engine = PlainEngine(LossVector(model, config.workload))
    train(config, engine, Meta(combiner, config.aid), batches, Progress(), lambda: None, save)
    return path


def after_meta_steps(path: list[tuple[Tensor, Tensor]]) -> dict[str, np.ndarray]:
    """`w` (3, p) and `phi` (3, q): after each meta step and the optimiser step that followed it."""
    w, phi = (torch.stack([path[step][i] for step in META]).numpy() for i in (0, 1))
    return {"w": w, "phi": phi}


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCE))


def errors(path: list[tuple[Tensor, Tensor]], reference: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest absolute error of w and of phi; the reference is rounded to float32, so to some 1e-7."""
    return {name: float(np.abs(value - reference[name]).max()) for name, value in after_meta_steps(path).items()}


def test_weights_and_combiner_go_the_published_way(reference):
    found = errors(our_path(step_config()), reference)
    assert found["w"] < 1e-6 and found["phi"] < 1e-6


@pytest.mark.parametrize("settings", [
    dict(learning_rate=0.0), dict(regulariser="phi_only"), dict(regulariser="full"), dict(gamma=0.0), dict(clip=0.0),
    dict(weight_decay=0.0),
], ids=str)  # fmt: skip
def test_the_numbers_tell_other_settings_apart(settings, reference):
    """Each leads phi elsewhere, and w by at least ten times what the test above admits."""
    config = step_config()
    config.aid = replace(config.aid, **settings)
    found = errors(our_path(config), reference)
    assert found["phi"] > 1e-4 and found["w"] > 1e-5
