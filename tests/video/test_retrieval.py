"""Retrieval: batches from a seed alone, passes shared and left out, padding, metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from meltr_ray.config import ConfigError
from meltr_ray.video.backbones.settings import CONTROL_LOSSES
from meltr_ray.video.backbones.univl.inputs import UniVLBatch, UniVLInputs
from meltr_ray.video.backbones.univl.losses import UniVLLosses
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UNIVL_LOSSES, UniVLConfig
from meltr_ray.video.clips import masking
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.clips.vocabulary import SPECIAL, Vocabulary
from meltr_ray.video.tasks import retrieval
from meltr_ray.video.tasks.reranking import rerank
from meltr_ray.video.tasks.settings import TaskConfig
from tests.video.settings import vector, video_config

WORDS = ["zero", "one", "two", "three", "four", "moves", "left", "right", "up", "down", "fast", "slowly"]
LOSSES = UNIVL_LOSSES + CONTROL_LOSSES
DATA = DataConfig(max_words=8, max_frames=4)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.txt"
    path.write_text("\n".join(SPECIAL + WORDS))
    return Vocabulary(path)


def make_clips(count: int, captions: tuple[int, ...] = (3,)) -> list[Clip]:
    """Captions of 3 to 11 words, all different, and clips of 1 to 6 frames: shorter and longer than `DATA` takes."""
    generator = np.random.default_rng(0)
    return [
        Clip(
            id=str(i),
            captions=[
                " ".join([WORDS[i % 12], WORDS[i // 12], WORDS[j], *generator.choice(WORDS, (i + j) % 9)])
                for j in range(captions[i % len(captions)])
            ],
            features=generator.normal(size=(1 + i % 6, 10)).astype(np.float32),
        )
        for i in range(count)
    ]


def make_task(vocabulary: Vocabulary, primary: str = "joint", dropout: float = 0.0) -> UniVLLosses:
    torch.manual_seed(0)
    config = UniVLConfig(hidden_size=16, feed_forward_size=16, dropout=dropout)
    task = UniVLLosses(UniVL(config, len(vocabulary), 10), TaskConfig(primary=primary, loss_set=list(LOSSES)))
    with torch.no_grad():  # away from the start, where all scores are alike
        for _name, p in task.named_parameters():
            p += torch.randn_like(p) * (0.2 if p.dim() > 1 else 0.05)
    return task


def test_a_batch_depends_on_clips_and_seed_alone(vocabulary):
    clips = make_clips(16)
    first, again, other = (UniVLInputs(vocabulary, DATA).batch(clips, seed) for seed in (5, 5, 6))
    pairs = [(getattr(first, item.name), getattr(again, item.name)) for item in fields(first)]
    assert all(torch.equal(a, b) for a, b in pairs if a is not None)  # None: what other tasks have
    assert not torch.equal(first.masked_video, other.masked_video)


def test_a_batch_keeps_the_rules_of_masking(vocabulary):
    batch = UniVLInputs(vocabulary, DATA).batch(make_clips(64), 0)
    special = torch.tensor([vocabulary.pad_id, vocabulary.cls_id, vocabulary.sep_id])
    masked = batch.masked_word_labels >= 0
    assert not torch.isin(batch.text_ids[masked], special).any() and masked.any(1).all()
    assert torch.equal(batch.masked_word_labels[masked], batch.text_ids[masked])
    assert torch.equal(batch.masked_text_ids[~masked], batch.text_ids[~masked])
    assert batch.masked_frames.any(1).all() and not (batch.masked_frames & ~batch.video_mask).any()
    assert torch.equal(batch.masked_video, batch.video * ~batch.masked_frames[..., None])
    assert torch.equal(batch.shuffled.sort().values, torch.arange(64))
    assert not (batch.shuffled == torch.arange(64)).any()
    real = batch.decoder_target_ids >= 0
    assert torch.equal(real, batch.decoder_mask)
    assert torch.equal(batch.decoder_input_ids[:, 1:][real[:, 1:]], batch.decoder_target_ids[:, :-1][real[:, 1:]])


def test_choices_are_independent_draws_given_that_one_hits():
    chosen = masking.choose(np.ones((20000, 2), dtype=bool), 0.3, np.random.default_rng(0))
    assert chosen.any(1).all()
    assert chosen.all(1).mean() == pytest.approx(0.3**2 / (1 - 0.7**2), abs=0.01)  # 4 standard deviations
    assert not masking.choose(np.zeros((2, 3), dtype=bool), 0.3, np.random.default_rng(0)).any()


def test_of_the_masked_words_80_10_10():
    ids = np.full((4000, 10), 7)
    generator = np.random.default_rng(0)
    masked, labels = masking.mask_words(ids, np.zeros_like(ids, dtype=bool), 0.5, 4, range(100, 200), generator)
    after = masked[labels >= 0]
    shares = [(after == 4).mean(), (after >= 100).mean(), (after == 7).mean()]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


PASSES = {  # names -> calls of: text, visual and cross encoder, decoder, word and frame heads
    ("joint",): (1, 1, 0, 0, 0, 0),
    ("joint", "shuffled", "masked_joint"): (1, 1, 0, 0, 0, 0),
    ("align",): (1, 1, 1, 0, 0, 0),
    ("align", "masked_align"): (1, 1, 2, 0, 0, 0),
    ("masked_language",): (1, 1, 1, 0, 1, 0),
    ("masked_frame", "joint"): (1, 1, 1, 0, 0, 1),
    ("masked_language", "masked_frame", "masked_caption"): (1, 1, 1, 1, 1, 1),
    ("caption",): (1, 1, 1, 1, 0, 0),
    ("caption", "masked_caption"): (1, 1, 1, 1, 0, 0),
    ("caption", "masked_language", "constant"): (1, 1, 1, 1, 1, 0),
    ("joint", "masked_joint", "masked_language", "masked_frame", "caption"): (1, 1, 1, 1, 1, 1),
    ("constant",): (0, 0, 0, 0, 0, 0),
    LOSSES: (1, 1, 3, 1, 1, 1),
}
"""One call takes clean and masked views together; the number of clips that go through is checked beside."""


@pytest.mark.parametrize("names", PASSES, ids="+".join)
def test_a_subset_has_the_losses_of_the_full_set_and_only_its_passes(vocabulary, names):
    task = make_task(vocabulary)
    batch = UniVLInputs(vocabulary, DATA).batch(make_clips(5), 0)
    full = {name: loss.item() for name, loss in task(batch).items()}
    assert tuple(full) == LOSSES and len(set(full.values())) == len(LOSSES)
    backbone, calls, rows = task.backbone, Counter(), Counter()

    def count(module, inputs, output):
        calls[module] += 1
        rows[module] += len(inputs[0])

    modules = (backbone.bert, backbone.visual, backbone.cross, backbone.decoder,
               backbone.cls["predictions"], backbone.cls_visual["predictions"])  # fmt: skip
    for module in modules:
        module.register_forward_hook(count)
    assert vector(task(batch, names)).tolist() == pytest.approx([full[name] for name in names], rel=1e-5)
    assert tuple(calls[module] for module in modules) == PASSES[names]
    views = {"masked" in name for name in names if name != "constant"}
    assert rows[backbone.bert] == rows[backbone.visual] == 5 * len(views)


def test_constant_has_no_gradient_and_shuffled_wants_the_wrong_video(vocabulary):
    task = make_task(vocabulary)
    batch = UniVLInputs(vocabulary, DATA).batch(make_clips(5), 0)
    assert not task(batch, ("constant",))["constant"].requires_grad
    constant, shuffled = vector(task(batch, ("constant", "shuffled")))
    assert constant == 1
    assert all(not g.any() for g in torch.autograd.grad(
        constant, list(task.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True))  # fmt: skip
    wrong = replace(batch, text_ids=batch.text_ids[batch.shuffled], text_mask=batch.text_mask[batch.shuffled])
    torch.testing.assert_close(shuffled, task(wrong, ("joint",))["joint"])


def test_padding_changes_no_loss(vocabulary):
    task = make_task(vocabulary)
    batch = UniVLInputs(vocabulary, DATA).batch(make_clips(5), 0)
    frames = {name: F.pad(getattr(batch, name), (0, 0, 0, 3)) for name in ("video", "masked_video")}
    frames |= {name: F.pad(getattr(batch, name), (0, 3)) for name in ("video_mask", "masked_frames")}
    captions = {name: F.pad(getattr(batch, f"decoder_{name}"), (0, 2), value=value)
                for name, value in dict(input_ids=0, mask=False, target_ids=-1).items()}  # fmt: skip
    padded = replace(batch, **frames, **{f"decoder_{name}": value for name, value in captions.items()})
    torch.testing.assert_close(vector(task(padded)), vector(task(batch)))

    # Words too, but only short of the cross encoder: there frames take the positions behind the padded text (published).
    words = {name: F.pad(getattr(batch, name), (0, 2)) for name in ("text_ids", "masked_text_ids", "text_mask")}
    names = ("joint", "masked_joint", "shuffled")
    torch.testing.assert_close(vector(task(replace(batch, **words), names)), vector(task(batch, names)))


def test_the_text_that_is_padded_does_not_matter(vocabulary):
    task = make_task(vocabulary)
    batch = UniVLInputs(vocabulary, DATA).batch(make_clips(5), 0)
    text_ids, video = batch.text_ids.clone(), batch.video.clone()
    text_ids[~batch.text_mask], video[~batch.video_mask] = 7, 100.0
    torch.testing.assert_close(vector(task(replace(batch, text_ids=text_ids, video=video))), vector(task(batch)))


def one_similarity(backbone: UniVL, batch: UniVLBatch, primary: str) -> float:
    """Of one caption and one clip, through all positions of the last layer."""
    text = backbone.encode_text(batch.text_ids, batch.text_mask)
    video = backbone.encode_video(backbone.normalize_video(batch.video), batch.video_mask)
    if primary == "joint":
        return torch.cosine_similarity(text[batch.text_mask][1:].mean(0), video[batch.video_mask].mean(0), dim=0).item()
    crossed = backbone.encode_cross(text, batch.text_mask, video, batch.video_mask)
    return backbone.similarity_dense(backbone.cross.pooler(crossed)).item()


@pytest.mark.parametrize("primary", ["joint", "align"])
def test_evaluation_is_that_of_clips_and_captions_one_by_one(vocabulary, primary):
    task, clips = make_task(vocabulary, primary, dropout=0.5), make_clips(16, captions=(2, 1, 3))
    task.eval()
    with torch.no_grad():
        rows = retrieval.predict(task, clips, UniVLInputs(vocabulary, DATA), "cpu", task.config)
    got = retrieval.metrics(rows)
    queries = [(i, j, caption) for i, clip in enumerate(clips) for j, caption in enumerate(clip.captions)]
    score = np.zeros((len(queries), len(clips)))
    with torch.no_grad():
        for v, clip in enumerate(clips):
            for q, (_, _, caption) in enumerate(queries):
                single = UniVLInputs(vocabulary, DATA).batch([Clip("", [caption], clip.features)], 0)
                score[q, v] = one_similarity(task.backbone, single, primary)
    found, back_found = [], []
    for j in range(3):
        chosen = [q for q, query in enumerate(queries) if query[1] == j]
        own = [score[q, queries[q][0]] + 1e-6 for q in chosen]
        rank = np.array([1 + (score[q] > own[n]).sum() for n, q in enumerate(chosen)])
        back = np.array([1 + (score[chosen, queries[q][0]] > own[n]).sum() for n, q in enumerate(chosen)])
        found, back_found = np.append(found, rank), np.append(back_found, back)
    expected = {f"recall_at_{k}": 100 * np.mean(found <= k) for k in (1, 5, 10)}
    expected |= dict(median_rank=np.median(found), mean_rank=np.mean(found))
    expected |= dict(video_to_text_recall_at_10=100 * np.mean(back_found <= 10))
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 3, 16])
def test_reranking_scores_the_nearest_pairs_alone_and_leaves_the_rest_behind(vocabulary, k):
    task, clips = make_task(vocabulary, "align"), make_clips(16)
    task.eval()
    inputs, passes = UniVLInputs(vocabulary, DATA), []
    with torch.no_grad():
        query, candidate = task.query(*inputs.texts([clip.captions[0] for clip in clips])), task.candidate(*inputs.videos(clips))
        all_pairs, near = task.similarity(query, candidate), task.embedding_similarity(query, candidate)
        task.backbone.cross.register_forward_hook(lambda module, given, output: passes.append(len(given[0])))
        found = rerank(task, query, candidate, k)
    kth_of_row, kth_of_column = near.sort(1, descending=True)[0][:, k - 1 : k], near.sort(0, descending=True)[0][k - 1 : k]
    chosen = (near >= kth_of_row) | (near >= kth_of_column)
    assert sum(passes) == chosen.sum() <= min(2 * k * 16, 256)
    torch.testing.assert_close(found[chosen], all_pairs[chosen])
    if k < 16:
        assert found[~chosen].max() < found[chosen].min()
        assert torch.equal(found[~chosen].argsort(), near[~chosen].argsort())


def test_reranking_needs_pairs_to_choose_from_and_a_loss_that_trains_the_choice():
    video_config(["align", "joint"], "align", task=TaskConfig(rerank=5))
    for losses, primary, mend in ((None, None, "losses.primary=align"), (["align"], "align", "add joint")):
        with pytest.raises(ConfigError, match=f"^task.rerank=5: .*{mend}"):
            video_config(losses, primary, task=TaskConfig(rerank=5))
