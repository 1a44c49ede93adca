"""All-in-one against the authors' classes, by stored numbers, and its own identities: attention, checkpointing, rolling.

`tests/video/parity/allinone.py` compares with a checkout of the authors' code and makes the stored numbers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from meltr_ray.config import ConfigError
from meltr_ray.video.backbones.allinone import model as allinone
from meltr_ray.video.backbones.allinone.inputs import AllInOneBatch
from meltr_ray.video.backbones.allinone.losses import compute_losses, transport_plan
from meltr_ray.video.backbones.allinone.model import AllInOne
from meltr_ray.video.backbones.allinone.settings import ALLINONE_SIZES, AllInOneConfig
from tests.reference import second_derivative_error

REFERENCE = Path(__file__).with_name("allinone_reference.npz")
CLIPS, FRAMES, WORDS, LENGTH, CHOICES, ANSWERS = 5, 3, 31, 7, 4, 6
"""Five clips: an odd batch splits unevenly into matched and unmatched pairs."""
PUBLISHED_LOSSES = {"matching": "itm_loss", "alignment": "itm_wpa_loss", "masked_language": "mlm_loss",
                    "contrastive": "ind_itc_loss", "rank": "multiple_choice_loss", "choice": "mc_vqa_loss",
                    "answer": "vqa_loss"}  # fmt: skip
"""Losses and what the published code calls them; its `irtr_loss` is `rank` with choice 0 the right one."""
LOSSES = tuple(PUBLISHED_LOSSES)
VARIANTS = {
    "plain": {"distilled": False, "unaligned_tokens": 1},
    "distilled": {"distilled": True, "unaligned_tokens": 2},
}
"""Toy models in the shape of size B, and of size S with its [distillation] token; 16 patches, of which 2 + 2 roll."""


def toy_config(variant: str = "plain", **settings) -> AllInOneConfig:
    sizes = dict(hidden_size=16, num_heads=2, feed_forward_size=32, num_layers=3, image_size=32, patch_size=8,
                 retrieval_size=6, num_frames=FRAMES, max_position_embeddings=LENGTH + 2)  # fmt: skip
    return AllInOneConfig(**sizes | VARIANTS[variant] | settings)


def toy_model(variant: str = "plain", **settings) -> AllInOne:
    """In evaluation mode, that is without dropout; weights as `fill` makes them."""
    model = AllInOne(toy_config(variant, **settings), WORDS, num_answers=ANSWERS)
    fill(model)
    return model.eval()


def fill(model: torch.nn.Module) -> None:
    """Weights from numpy, by sorted name: large enough that every layer and bias matters."""
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            is_scale = p.dim() == 1 and name.endswith("weight")  # every other weight has more dimensions
            p.copy_(torch.from_numpy(generator.normal(scale=0.3, size=tuple(p.shape)) + is_scale))


def toy_batch(dtype: torch.dtype = torch.float64) -> AllInOneBatch:
    """Texts of 3 to 7 pieces; ids 0 to 4 are special."""
    generator = np.random.default_rng(2)

    def texts(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = generator.integers(3, LENGTH + 1, size=shape)
        mask = np.arange(LENGTH) < lengths[..., None]
        ids = np.where(mask, generator.integers(5, WORDS, size=mask.shape), 0)
        ids[..., 0] = 2
        np.put_along_axis(ids, lengths[..., None] - 1, 3, axis=-1)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    text_ids, text_mask = texts(CLIPS)
    choice_ids, choice_mask = texts(CLIPS, CHOICES)
    choice_ids[:, 0], choice_mask[:, 0] = text_ids, text_mask
    masked = (text_ids >= 5) & torch.from_numpy(generator.random(text_ids.shape) < 0.5)
    video, false_video = torch.from_numpy(generator.normal(size=(2, CLIPS, FRAMES, 3, 32, 32))).to(dtype)
    return AllInOneBatch(
        text_ids, text_mask, video, torch.where(masked, 4, text_ids), torch.where(masked, text_ids, -1), false_video,
        matched=torch.tensor([False, True, False, True, False]), choice_ids=choice_ids, choice_mask=choice_mask,
        answer=torch.tensor([0, 3, 1, 2, 0]),
    )  # fmt: skip


def patch_order() -> torch.Tensor:
    """(T, P): one order for each frame of a clip."""
    generator = np.random.default_rng(3)
    return torch.from_numpy(np.stack([generator.permutation(16) for _ in range(FRAMES)]))


def probes(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A random direction for each parameter, float64, by sorted name."""
    generator = np.random.default_rng(1)
    return {name: torch.from_numpy(generator.normal(size=tuple(p.shape))) for name, p in sorted(model.named_parameters())}


@pytest.fixture
def same_order(monkeypatch):
    """Patches in the order of the stored numbers."""
    monkeypatch.setattr(allinone, "random_order", lambda patches: patch_order().expand(len(patches), -1, -1))


@pytest.mark.parametrize("size", ["Ti", "S", "B"])
def test_names_and_shapes_are_those_of_the_authors_classes(size):
    """Theirs with every head of a video task, without MELTR's combiner."""
    with torch.device("meta"):
        model = AllInOne(AllInOneConfig(size=size), vocabulary_size=30522)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == json.loads(bytes(np.load(REFERENCE)[f"shapes_{size}"]))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_those_of_the_authors_classes(variant, fused, same_order):
    """Reference: losses, and for each parameter the gradient times a random direction, of the published code in float64."""
    reference = np.load(REFERENCE)
    model, batch = toy_model(variant, fused_attention=fused).double(), toy_batch()
    losses = compute_losses(model, batch, LOSSES)
    np.testing.assert_allclose([losses[name].item() for name in LOSSES], reference[f"losses_{variant}"], rtol=1e-11)
    parameters, directions = dict(sorted(model.named_parameters())), probes(model)
    for name, expected in zip(LOSSES, reference[f"gradients_{variant}"], strict=True):
        gradients = torch.autograd.grad(
            losses[name], list(parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        got = [(gradient * directions[name]).sum() for name, gradient in zip(parameters, gradients)]
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS)
def test_passes_are_those_of_the_authors_classes(variant, same_order):
    reference = np.load(REFERENCE)
    model, batch = toy_model(variant).double(), toy_batch()
    with torch.no_grad():
        tokens = model.embed_video(batch.video)
        got = {
            "joint": model.encode_joint(batch.text_ids, batch.text_mask, tokens, None),
            "text": model.encode_text(batch.text_ids, batch.text_mask),
            "video": model.encode_video(tokens),
        }
    for name, value in got.items():
        np.testing.assert_allclose(value, reference[f"{name}_{variant}"], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "names, passes",
    [(("masked_language",), 1), (("contrastive",), 2), (("masked_language", "contrastive"), 3), (LOSSES, 3),
     (("matching", "alignment", "masked_language", "rank", "answer"), 1)],
)  # fmt: skip
def test_encoder_passes_of_a_loss_set(names, passes):
    model = toy_model()
    calls = []
    model.transformer.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    compute_losses(model, toy_batch(torch.float32), names)
    assert len(calls) == passes


def test_losses_do_not_depend_on_what_they_are_computed_with(same_order):
    model, batch = toy_model().double(), toy_batch()
    together = compute_losses(model, batch, LOSSES)
    for name in LOSSES:
        torch.testing.assert_close(compute_losses(model, batch, (name,))[name], together[name])


def test_padding_of_text_is_not_computed(same_order):
    model, batch = toy_model().double(), toy_batch()
    longest, before = int(batch.choice_mask.sum(-1).max()), compute_losses(model, batch, LOSSES)
    for name, filler in (("text_ids", 0), ("text_mask", False), ("masked_text_ids", 0), ("masked_word_labels", -1),
                         ("choice_ids", 0), ("choice_mask", False)):  # fmt: skip
        setattr(batch, name, torch.nn.functional.pad(getattr(batch, name), (0, 2), value=filler))
    lengths = []
    model.transformer.blocks[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].size(1)))
    after = compute_losses(model, batch, LOSSES)
    assert all(torch.equal(after[name], before[name]) for name in LOSSES)
    assert sorted(lengths) == sorted([longest, 17, longest + 17])  # text alone, frames alone, both


def test_rolling_moves_an_eighth_each_way_and_comes_back_after_as_many_layers_as_frames():
    x = torch.arange(2 * FRAMES * (LENGTH + 17)).view(2, FRAMES, LENGTH + 17, 1)
    rolled = allinone.roll(x, LENGTH)
    moved = (rolled != x)[0, 0, :, 0].nonzero()[:, 0] - LENGTH
    assert moved.tolist() == [1, 2, 15, 16]
    assert torch.equal(rolled[:, 1, LENGTH + 1], x[:, 0, LENGTH + 1]) and torch.equal(rolled[:, 1, -1], x[:, 2, -1])
    for _ in range(FRAMES - 1):
        rolled = allinone.roll(rolled, LENGTH)
    assert torch.equal(rolled, x)


def test_transport_plan_has_equal_shares_of_words_and_patches():
    cost = torch.rand(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    words = torch.arange(5) < torch.tensor([[5], [2], [0]])
    plan = transport_plan(cost.masked_fill(~words[..., None], 0), words, num_steps=200)
    shares = words / words.sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(plan.sum(2), shares.double())
    torch.testing.assert_close(plan[:2].sum(1), torch.full((2, 8), 1 / 8, dtype=torch.float64), rtol=1e-3, atol=0)
    assert torch.equal(plan[2], torch.zeros(5, 8, dtype=torch.float64))  # no words: nothing to move, and no NaN


def test_patches_in_order_give_the_same_scores_twice():
    model, batch = toy_model(shuffle_patches=False), toy_batch(torch.float32)
    first, second = (compute_losses(model, batch, ("rank",))["rank"] for _ in range(2))
    assert torch.equal(first, second)


def test_activation_checkpointing_gives_the_same_gradients_under_dropout():
    gradients = []
    for checkpointing in (False, True):
        model = toy_model(dropout=0.3, drop_path=0.3, activation_checkpointing=checkpointing).train()
        torch.manual_seed(0)
        sum(compute_losses(model, toy_batch(torch.float32), LOSSES).values()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_explicit_attention_has_the_second_derivative_that_differences_show(same_order):
    model, batch = toy_model(fused_attention=False).double(), toy_batch()
    parameters, directions = list(model.parameters()), probes(model)
    v = [directions[name] for name, _ in model.named_parameters()]

    def gradient(**options):
        value = sum(compute_losses(model, batch, ("masked_language", "contrastive", "matching")).values())
        return torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True, **options)

    assert second_derivative_error(gradient, parameters, v) < 1e-6


@pytest.mark.parametrize("frames", [2, 5])
def test_positions_of_other_lengths_are_fitted_as_published(frames):
    model = toy_model(num_frames=frames, max_position_embeddings=LENGTH)
    published = toy_model().state_dict()
    fitted = model.config.naming().fit_start(published, model)
    kept = min(frames, FRAMES)
    temporal = fitted["transformer.temporal_embed"]
    assert temporal.shape == (1, frames, 16) and torch.count_nonzero(temporal[:, kept:]) == 0
    assert torch.equal(temporal[:, :kept], published["transformer.temporal_embed"][:, :kept])
    assert "text_embeddings.position_embeddings.weight" not in fitted
    assert "text_embeddings.position_embeddings.weight" in published


def test_ranking_starts_from_the_matching_head():
    model = AllInOne(toy_config(), WORDS)
    assert torch.equal(model.rank_output.weight, model.itm_score["fc"].weight[1:])
    x = torch.randn(2, 1, 16)
    torch.testing.assert_close(model.predict_rank(x), model.predict_match(x)[:, 1])


def test_every_size_has_every_field_and_a_bad_one_is_named():
    for size in ALLINONE_SIZES:
        AllInOneConfig(size=size)
    for field, value in (("size", "L"), ("num_heads", 3), ("patch_size", 16), ("drop_path", 1.0), ("num_frames", 0)):
        with pytest.raises(ConfigError, match=rf"^backbone.{field}={value}: [^\n]*; [^\n]*$|^backbone.size=L: "):
            AllInOneConfig(**{field: value})
