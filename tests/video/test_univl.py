"""UniVL against the authors' classes, and its own identities: attention, checkpointing, masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from meltr_ray.video.backbones.layers import Dropout
from meltr_ray.video.backbones.univl.inputs import UniVLBatch
from meltr_ray.video.backbones.univl.losses import UniVLLosses
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UNIVL_LOSSES, UniVLConfig
from meltr_ray.video.clips import masking
from meltr_ray.video.tasks.settings import TaskConfig
from tests.reference import second_derivative_error
from tests.video.settings import vector

SHAPES = Path(__file__).parents[3] / "shared" / "reference" / "univl_state_dict_shapes.json"
CLIPS, WORDS, FEATURES, LENGTH, FRAMES = 6, 31, 10, 9, 5
"""Six clips: the published pair similarity works in blocks of 5 captions, so the last block is a short one."""


def toy_config(**settings) -> UniVLConfig:
    sizes = dict(hidden_size=16, num_heads=2, feed_forward_size=24, text_layers=2, visual_layers=2, cross_layers=2,
                 decoder_layers=2, max_position_embeddings=12, max_cross_position_embeddings=20)  # fmt: skip
    published = dict(dropout=0.0, joint_loss="margin", normalize_embeddings=True, similarity_temperature=1.0)
    return UniVLConfig(**sizes | published | settings)


def toy_univl(config: UniVLConfig) -> UniVL:
    return UniVL(config, WORDS, FEATURES)


def fill(model: torch.nn.Module) -> None:
    """Weights from numpy, by sorted name: large enough that every layer and bias matters."""
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            is_scale = name.endswith(("LayerNorm.weight", "norm2d.weight"))
            p.copy_(torch.from_numpy(generator.normal(scale=0.3, size=tuple(p.shape)) + is_scale))


def toy_batch() -> UniVLBatch:
    """Captions of 3 to 9 pieces, clips of 1 to 5 frames; ids 0 to 4 are special."""
    generator = np.random.default_rng(2)
    lengths, frames = np.array([9, 3, 5, 9, 4, 7]), np.array([5, 1, 2, 5, 3, 4])
    text_mask = np.arange(LENGTH) < lengths[:, None]
    video_mask = np.arange(FRAMES) < frames[:, None]
    ids = np.where(text_mask, generator.integers(5, WORDS, size=text_mask.shape), 0)
    ids[:, 0] = 2
    ids[np.arange(CLIPS), lengths - 1] = 3
    video = np.where(video_mask[..., None], generator.normal(size=(CLIPS, FRAMES, FEATURES)), 0).astype(np.float32)
    masked_ids, labels = masking.mask_words(ids, ids < 5, 0.3, 4, range(5, WORDS), generator)
    masked_video, masked_frames = masking.mask_frames(video, video_mask, 0.3, generator)
    arrays = (ids, text_mask, video, video_mask, masked_ids, labels, masked_video, masked_frames,
              *masking.shift_captions(ids, text_mask), masking.derange(CLIPS, generator))  # fmt: skip
    return UniVLBatch(*(torch.from_numpy(np.ascontiguousarray(x)) for x in arrays))


def probes(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A random direction for each parameter, float64, by sorted name."""
    generator = np.random.default_rng(1)
    return {name: torch.from_numpy(generator.normal(size=tuple(p.shape))) for name, p in sorted(model.named_parameters())}


def toy_task(**settings) -> UniVLLosses:
    task = UniVLLosses(toy_univl(toy_config(**settings)), TaskConfig(primary="joint", loss_set=list(UNIVL_LOSSES)))
    fill(task.backbone)
    return task


def in_float64(task: UniVLLosses) -> tuple[UniVLLosses, UniVLBatch]:
    batch = toy_batch()
    batch.video, batch.masked_video = batch.video.double(), batch.masked_video.double()
    return task.double(), batch


@pytest.mark.skipif(not SHAPES.exists(), reason=f"{SHAPES} is not there: it lies outside the repository")
def test_names_and_shapes_are_those_of_the_published_checkpoint():
    with torch.device("meta"):
        model = UniVL(UniVLConfig(size="base"), vocabulary_size=30522, video_size=1024)
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == json.loads(SHAPES.read_text())


@pytest.mark.parametrize("fused", [True, False])
def test_losses_and_gradients_are_those_of_the_authors_classes(fused):
    """Reference: losses, and for each parameter the gradient times a random direction, of the published code in float64.

    Made with the weights and the batch of this file, use_mil=False, dropout 0, and padding of captions' targets -1.
    """
    reference = np.load(Path(__file__).with_name("univl_reference.npz"))
    task, batch = in_float64(toy_task(fused_attention=fused))
    losses = vector(task(batch))
    np.testing.assert_allclose(losses.detach(), reference["losses"], rtol=1e-12)
    parameters, directions = dict(sorted(task.backbone.named_parameters())), probes(task.backbone)
    for loss, expected in zip(losses, reference["gradients"], strict=True):
        gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True)
        got = [(gradient * directions[name]).sum() for name, gradient in zip(parameters, gradients)]
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("losses, words", [(("align", "masked_frame", "caption"), 9), (("joint", "align"), 1)])
def test_explicit_attention_has_the_second_derivative_that_differences_show(losses, words):
    """Also where a text has no word behind its first piece: its embedding is 0."""
    task, batch = in_float64(toy_task(fused_attention=False))
    batch.text_mask[0, words:] = False
    parameters, directions = list(task.parameters()), probes(task)
    v = [directions[name] for name, _ in task.named_parameters()]

    def gradient(**options):
        value = vector(task(batch, losses)).sum()
        return torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True, **options)

    assert second_derivative_error(gradient, parameters, v) < 1e-6


def test_activation_checkpointing_gives_the_same_gradients_under_dropout():
    gradients = []
    for checkpointing in (False, True):
        task = toy_task(dropout=0.3, activation_checkpointing=checkpointing)
        torch.manual_seed(0)
        vector(task(toy_batch())).sum().backward()
        gradients.append([p.grad for p in task.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dropout_keeps_its_share_and_the_mean():
    torch.manual_seed(0)
    dropped = Dropout(0.1)(torch.ones(1001, 999))  # an odd count: four draws share a random number
    assert abs((dropped == 0).double().mean() - 0.1) < 1e-3  # 3 standard deviations
    assert abs(dropped.double().mean() - 1) < 1e-3
    assert torch.equal(Dropout(0.1).eval()(dropped), dropped)


def test_all_pairs_in_blocks_are_the_pairs_one_by_one():
    task, batch = in_float64(toy_task())
    model = task.backbone
    text = model.encode_text(batch.text_ids, batch.text_mask)
    video = model.encode_video(model.normalize_video(batch.video), batch.video_mask)
    whole = model.pair_similarity(text, batch.text_mask, video, batch.video_mask)
    blocks = model.pair_similarity(text, batch.text_mask, video, batch.video_mask, pairs_per_block=14)
    for q in range(CLIPS):
        for v in range(CLIPS):
            crossed = model.encode_cross(text[q : q + 1], batch.text_mask[q : q + 1], video[v : v + 1], batch.video_mask[v : v + 1])
            single = model.similarity_dense(model.cross.pooler(crossed))  # all positions in the last layer
            torch.testing.assert_close(whole[q, v], single[0, 0])
    torch.testing.assert_close(blocks, whole)
