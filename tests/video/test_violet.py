"""VIOLET and its Video Swin against the authors' classes, and identities of their own: attention, pairs, masking.

The numbers in violet_reference.npz were made by `python -m tests.video.parity.violet`, which takes a checkout of their code.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from meltr_ray.config import ConfigError
from meltr_ray.video.backbones.violet import block_masking
from meltr_ray.video.backbones.violet.inputs import VioletBatch
from meltr_ray.video.backbones.violet.losses import violet_losses
from meltr_ray.video.backbones.violet.model import VIOLET_TASKS, Violet
from meltr_ray.video.backbones.violet.settings import VioletConfig
from meltr_ray.video.backbones.violet.video_swin import VideoSwin
from tests.reference import second_derivative_error
from tests.video.settings import vector

REFERENCE = Path(__file__).with_name("violet_reference.npz")
CLIPS, FRAMES, ROWS, COLUMNS, LENGTH, OPTIONS, WORDS, ANSWERS = 4, 3, 5, 3, 7, 3, 120, 9
"""Four clips of three options: the published matching of multiple choice then takes rows from two questions."""
CLS, SEP, MASK = 101, 102, 103
LOSSES = {"retrieval": ("matching", "masked_language", "masked_patch")}
LOSSES |= {task: ("answer", *LOSSES["retrieval"]) for task in VIOLET_TASKS[1:]}
SWINS = {"padded": ((2, 3, 3), (3, 18, 22)), "cut": ((4, 4, 3), (3, 40, 14)), "whole": ((8, 7, 7), (2, 30, 32))}
"""Windows and pixels (T, rows, columns): padded everywhere, to whole patches too; larger than the grid on some axes; on all."""


def toy_config(**settings) -> VioletConfig:
    """Grids of 3 x 10 x 6 and 3 x 5 x 3 patches: windows are padded, shifted, and in the second stage cut to 3 columns."""
    sizes = dict(hidden_size=16, num_heads=2, feed_forward_size=24, cross_layers=2, max_position_embeddings=12, max_frames=6,
                 max_rows=4, swin_depths=(2, 2), swin_heads=(1, 2), swin_window=(2, 3, 4), num_visual_tokens=11,
                 matching_loss="texts", published_options=True)  # fmt: skip
    return VioletConfig(**sizes | settings)


def toy_violet(task: str, **settings) -> Violet:
    """In evaluation mode, so without dropout."""
    model = Violet(toy_config(**settings), WORDS, task, ANSWERS if task == "open_ended" else 0)
    fill(model)
    return model.eval()


def toy_swin(window: tuple[int, int, int], **settings) -> VideoSwin:
    model = VideoSwin(8, (2, 2), (1, 2), window, drop_path=0.2, **settings)
    fill(model)
    return model.eval()


def fill(model: torch.nn.Module) -> None:
    """Weights from numpy, by sorted name: large enough that every layer and bias matters."""
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            is_scale = "norm" in name.lower().split(".")[-2] and name.endswith("weight")
            p.copy_(torch.from_numpy(generator.normal(scale=0.2, size=tuple(p.shape)) + is_scale))


def toy_pixels(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).random(shape))


def toy_batch(task: str) -> VioletBatch:
    """Texts of 4 to 7 pieces, for multiple choice one for each option; float64 pixels."""
    generator = np.random.default_rng(2)
    grid, is_choice = (FRAMES, ROWS, COLUMNS), task == "multiple_choice"
    lengths = generator.integers(4, LENGTH + 1, size=(CLIPS, OPTIONS) if is_choice else CLIPS)
    place = np.arange(LENGTH)
    mask = place < lengths[..., None]
    ids = np.where(mask, generator.integers(MASK + 1, WORDS, size=mask.shape), 0)
    ids = np.where(place == 0, CLS, np.where(place == lengths[..., None] - 1, SEP, ids))
    hide = block_masking.hide_options if is_choice else block_masking.hide_words
    masked_ids, word_labels = hide(ids, (ids <= SEP), 0.2, MASK, generator)
    blocks = block_masking.cover(*block_masking.draw_blocks(CLIPS, grid, generator), grid)
    side = toy_config().patch_pixels
    frames = block_masking.hide_pixels(generator.random((CLIPS, FRAMES, 3, ROWS * side, COLUMNS * side)), blocks)
    tokens = generator.integers(toy_config().num_visual_tokens, size=blocks.shape)
    answers = generator.integers({"retrieval": 1, "multiple_choice": OPTIONS, "open_ended": ANSWERS}[task], size=CLIPS)
    arrays = (frames, ids, mask, masked_ids, word_labels, block_masking.label_patches(tokens, blocks), answers)
    return VioletBatch(*(torch.from_numpy(x) for x in arrays))


def probes(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A random direction for each parameter, float64, by sorted name."""
    generator = np.random.default_rng(1)
    return {name: torch.from_numpy(generator.normal(size=tuple(p.shape))) for name, p in sorted(model.named_parameters())}


def slopes(value: torch.Tensor, model: torch.nn.Module) -> np.ndarray:
    """For each parameter, by sorted name, its gradient of `value` times its probe."""
    parameters = dict(sorted(model.named_parameters()))
    gradients = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True)
    return np.array([(g * direction).sum().item() for g, direction in zip(gradients, probes(model).values(), strict=True)])


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCE))


@pytest.mark.parametrize("task", VIOLET_TASKS)
def test_names_and_shapes_at_base_size_are_those_of_the_authors_classes(task, reference):
    with torch.device("meta"):
        model = Violet(VioletConfig(size="base"), 30522, task, 1000)
    state = model.state_dict()
    names = [f"{name} {tuple(value.shape)}" for name, value in sorted(state.items())]
    assert names == reference[f"{task}/names"].tobytes().decode().split("\n")
    assert sum(p.numel() for p in model.parameters()) == reference[f"{task}/count"]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("case", SWINS)
def test_video_swin_is_that_of_the_authors(case, fused, reference):
    window, (frames, rows, columns) = SWINS[case]
    model, pixels = toy_swin(window, fused=fused).double(), toy_pixels(1, frames, 3, rows, columns)
    output = model(pixels)
    np.testing.assert_allclose(output.detach(), reference[f"swin/{case}/output"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(slopes(output.square().mean(), model), reference[f"swin/{case}/slopes"], rtol=1e-8, atol=1e-11)
    with torch.no_grad():  # on a CPU the fused kernel runs only here
        torch.testing.assert_close(model(pixels), output.detach())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("task", VIOLET_TASKS)
def test_losses_and_gradients_are_those_of_the_authors_classes(task, fused, reference):
    """Reference: losses, and for each parameter the gradient times a random direction, of the published code in float64."""
    model, batch = toy_violet(task, fused_attention=fused).double(), toy_batch(task)
    losses = vector(violet_losses(model, batch, LOSSES[task]))
    np.testing.assert_allclose(losses.detach(), reference[f"{task}/losses"], rtol=1e-11)
    for loss, expected in zip(losses, reference[f"{task}/slopes"], strict=True):
        np.testing.assert_allclose(slopes(loss, model), expected, rtol=1e-7, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("task", VIOLET_TASKS)
def test_a_loss_alone_is_the_loss_among_others(task):
    model, batch = toy_violet(task).double(), toy_batch(task)
    together = violet_losses(model, batch, LOSSES[task])
    alone = {name: violet_losses(model, batch, (name,))[name] for name in LOSSES[task]}
    torch.testing.assert_close(vector(alone), vector(together))


def test_multiple_choice_as_meant_matches_each_clip_with_the_right_options():
    model, batch = toy_violet("multiple_choice", published_options=False).double(), toy_batch("multiple_choice")
    own = torch.arange(CLIPS)
    text = model.embed_text(batch.text_ids[own, batch.answers])
    similarity = model.pair_similarity(text, batch.text_mask[own, batch.answers], model.encode_video(batch.frames))
    expected = torch.nn.functional.cross_entropy(similarity.T / 0.05, own)
    torch.testing.assert_close(violet_losses(model, batch, ("matching",))["matching"], expected)


def test_all_pairs_in_blocks_are_the_pairs_one_by_one():
    model, batch = toy_violet("retrieval").double(), toy_batch("retrieval")
    text, video = model.embed_text(batch.text_ids[:3]), model.encode_video(batch.frames)
    blocks = model.pair_similarity(text, batch.text_mask[:3], video, pairs_per_block=5)
    for q in range(3):
        for v in range(CLIPS):
            crossed = model.encode_cross(text[q : q + 1], batch.text_mask[q : q + 1], video[v : v + 1])
            torch.testing.assert_close(blocks[q, v], model.match(crossed[0, 0]))  # all positions in the last layer


def test_explicit_attention_has_the_second_derivative_that_differences_show():
    model, batch = toy_violet("open_ended", fused_attention=False).double(), toy_batch("open_ended")
    parameters, directions = list(model.parameters()), probes(model)
    v = [directions[name] for name, _ in model.named_parameters()]

    def gradient(**options):
        value = vector(violet_losses(model, batch, ("answer", "masked_language", "masked_patch"))).sum()
        return torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True, **options)

    assert second_derivative_error(gradient, parameters, v) < 1e-5


def test_activation_checkpointing_gives_the_same_gradients_under_dropout():
    gradients = []
    for checkpointing in (False, True):
        model, batch = toy_violet("retrieval", activation_checkpointing=checkpointing).train(), toy_batch("retrieval")
        batch.frames = batch.frames.float()
        torch.manual_seed(0)
        vector(violet_losses(model, batch, LOSSES["retrieval"])).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_padding_of_text_changes_nothing():
    model, batch = toy_violet("retrieval").double(), toy_batch("retrieval")
    before = vector(violet_losses(model, batch, LOSSES["retrieval"]))
    batch.text_ids = torch.where(batch.text_mask, batch.text_ids, 77)
    batch.masked_text_ids = torch.where(batch.text_mask, batch.masked_text_ids, 77)
    assert torch.equal(vector(violet_losses(model, batch, LOSSES["retrieval"])), before)


@pytest.mark.parametrize("task", ["retrieval", "open_ended"])
def test_padding_of_text_is_not_computed(task):
    """The stored numbers of the authors' classes are those of padded texts."""
    model, batch = toy_violet(task).double(), toy_batch(task)
    longest, before = int(batch.text_mask.sum(-1).max()), vector(violet_losses(model, batch, LOSSES[task]))
    for name, filler in (("text_ids", 0), ("text_mask", False), ("masked_text_ids", 0), ("word_labels", -1)):
        setattr(batch, name, torch.nn.functional.pad(getattr(batch, name), (0, 4), value=filler))
    lengths = []
    model.trsfr.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].size(1)))
    assert torch.equal(vector(violet_losses(model, batch, LOSSES[task])), before)
    assert set(lengths) == {longest + FRAMES * (1 + ROWS * COLUMNS)}


def test_nothing_masked_is_a_loss_of_zero():
    model, batch = toy_violet("retrieval").double(), toy_batch("retrieval")
    batch.word_labels, batch.patch_labels = torch.full_like(batch.word_labels, -1), torch.full_like(batch.patch_labels, -1)
    assert vector(violet_losses(model, batch, ("masked_language", "masked_patch"))).tolist() == [0, 0]


def test_tiny_is_small():
    model = Violet(VioletConfig(size="tiny"), 400)
    assert sum(p.numel() for p in model.parameters()) < 500_000
    assert model.encode_video(torch.rand(2, 4, 3, 64, 64)).shape == (2, 4 * (1 + 8 * 8), 64)


def test_sizes_that_do_not_fit_are_refused():
    for settings in ({"swin_heads": (3, 2)}, {"swin_heads": (2,)}, {"hidden_size": 17, "num_heads": 1}, {"drop_path": 1.0}):
        with pytest.raises(ConfigError, match="backbone"):
            toy_config(**settings)


def test_blocks_cover_what_a_loop_over_them_covers():
    generator, grid = np.random.default_rng(0), (5, 7, 6)
    starts, sizes = block_masking.draw_blocks(50, grid, generator)
    assert starts.shape == (50, 5, 3) and (sizes >= 1).all() and (starts >= 0).all() and (starts + sizes <= grid).all()
    assert sizes.max((0, 1)).tolist() == [4, 3, 3]  # below T, and below two thirds of 7 and of 6 as whole numbers
    assert (starts + sizes == grid).any((0, 1)).all() and (starts == 0).any((0, 1)).all()
    expected = np.zeros((50, *grid), dtype=bool)
    for clip, (t, h, w), (dt, dh, dw) in zip(np.arange(50).repeat(5), starts.reshape(-1, 3), sizes.reshape(-1, 3)):
        expected[clip, t : t + dt, h : h + dh, w : w + dw] = True
    assert np.array_equal(block_masking.cover(starts, sizes, grid), expected)


def test_small_grids_have_blocks_of_one_patch():
    starts, sizes = block_masking.draw_blocks(3, (1, 1, 2), np.random.default_rng(0))
    assert (sizes == 1).all() and (starts[..., 0] == 0).all()


def test_pixels_and_labels_follow_the_masked_patches():
    generator = np.random.default_rng(0)
    frames, tokens = generator.random((2, 3, 3, 20, 12)) + 0.1, generator.integers(9, size=(2, 3, 5, 3))
    masked = generator.random((2, 3, 5, 3)) < 0.4
    hidden = block_masking.hide_pixels(frames, masked)
    labels = block_masking.label_patches(tokens.astype(np.int16), masked)
    assert labels.shape == (2, 3 * 16) and labels.dtype == np.int64
    for b, t, h, w in np.ndindex(masked.shape):
        patch = np.s_[b, t, :, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4]
        assert np.array_equal(hidden[patch], 0 * frames[patch] if masked[b, t, h, w] else frames[patch])
        assert labels[b, 16 * t + 1 + 3 * h + w] == (tokens[b, t, h, w] if masked[b, t, h, w] else -1)
    assert (labels.reshape(2, 3, 16)[:, :, 0] == -1).all()


def test_hidden_words_are_labelled_and_special_pieces_stay():
    generator = np.random.default_rng(0)
    ids = np.where(generator.random((200, 9)) < 0.4, 0, generator.integers(5, 50, size=(200, 9)))
    masked, labels = block_masking.hide_words(ids, ids == 0, 0.15, 4, generator)
    assert np.array_equal(np.where(labels >= 0, labels, masked), ids) and ((masked == 4) == (labels >= 0)).all()
    assert (labels[ids == 0] == -1).all() and ((labels >= 0).any(1) == (ids > 0).any(1)).all()


def test_published_masking_of_options_hides_whole_options():
    ids = np.arange(5, 5 + 2 * 3 * 4).reshape(2, 3, 4)
    drawn = np.zeros(ids.shape, dtype=bool)
    drawn[0, 1, 2] = drawn[1, 0, 1] = drawn[1, 0, 3] = True
    masked, labels = block_masking.read_as_options(ids, drawn, 4)
    assert (masked[0, 1] == 4).all() and np.array_equal(labels[0, 1], ids[0, 1])  # one word drawn
    assert (masked[1, 0] == 4).all() and (labels[1, 0] == 4).all()  # two
    untouched = ~drawn.any(2)
    assert np.array_equal(masked[untouched], ids[untouched]) and (labels[untouched] == -1).all()
    special = np.zeros(ids.shape, dtype=bool)
    special[..., 0] = True
    _, labels = block_masking.hide_options(ids, special, 0.1, 4, np.random.default_rng(0))
    assert (labels >= 0).any((1, 2)).all()
