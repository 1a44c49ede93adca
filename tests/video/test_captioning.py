"""Captioning: keys and values kept while captions are generated, greedy and beam search, and that no caption leaks into its text."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from meltr_ray.video.backbones.named import losses_of
from meltr_ray.video.backbones.univl.inputs import UniVLInputs
from meltr_ray.video.backbones.univl.losses import UniVLLosses
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UniVLConfig
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.clips.vocabulary import SPECIAL, Vocabulary
from meltr_ray.video.tasks import captioning
from meltr_ray.video.tasks.settings import TaskConfig
from tests.video.settings import vector

WORDS = ["zero", "one", "two"]
CAPTIONS = ["zero one", "one two zero", "two", "two two one zero", "zero", "one one"]
END_BIAS = 8.0
"""Added to the score of [SEP], so that with weights drawn at random some captions end."""
DATA = DataConfig(max_words=7, max_frames=4)
TASK = TaskConfig(name="captioning", primary="caption", loss_set=list(losses_of("univl", "captioning").offered))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.txt"
    path.write_text("\n".join(SPECIAL + WORDS))
    return Vocabulary(path)


def make_clips() -> list[Clip]:
    """1 to 6 frames; every third clip has a transcript."""
    generator, said = np.random.default_rng(0), ["two one", None, None]
    return [
        Clip(str(i), [caption, "one"], generator.normal(size=(1 + i, 10)).astype(np.float32), transcript=said[i % 3])
        for i, caption in enumerate(CAPTIONS)
    ]


def make_model(vocabulary: Vocabulary, scale: float = 0.5, **settings) -> UniVLLosses:
    """Float64, in evaluation mode, with dropout that would show if it were on; weights far from those at the start."""
    torch.manual_seed(0)
    config = UniVLConfig(**dict(hidden_size=16, num_heads=2, feed_forward_size=16, decoder_layers=2, dropout=0.5) | settings)
    model = UniVLLosses(UniVL(config, len(vocabulary), 10, "captioning"), TASK)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p) * (scale if p.dim() > 1 else 0.1)
        model.backbone.decoder.classifier["cls"]["predictions"].bias[vocabulary.sep_id] += END_BIAS * scale
    return model.double().eval()


def make_inputs(vocabulary: Vocabulary, **settings) -> UniVLInputs:
    return UniVLInputs(vocabulary, DATA, TASK, backbone=UniVLConfig(**settings))


def evaluation(vocabulary: Vocabulary):
    batch = make_inputs(vocabulary).evaluation(make_clips())
    return replace(batch, video=batch.video.double())


def encoded(model: UniVLLosses, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross encoder's output for what captions are generated from, and its mask."""
    backbone = model.backbone
    text = backbone.encode_text(batch.context_ids, batch.context_mask)
    video = backbone.encode_video(backbone.normalize_video(batch.video), batch.video_mask)
    crossed = backbone.encode_cross(text, batch.context_mask, video, batch.video_mask)
    return crossed, torch.cat((batch.context_mask, batch.video_mask), dim=1)


def next_log_p(model: UniVLLosses, batch, words: list[list[int]], forbidden: list[int] | None = None) -> torch.Tensor:
    """Log probabilities (B, V) of the word after [CLS] and `words` of each clip, by the decoder of training, without a cache."""
    ids = torch.tensor([[int(batch.special_ids[2]), *row] for row in words])
    everything = torch.ones_like(ids, dtype=torch.bool)
    scores = model.backbone.predict_caption(ids, everything, *encoded(model, batch), everything)
    log_p = scores.unflatten(0, ids.shape)[:, -1].log_softmax(-1)
    log_p[:, forbidden or []] = -torch.inf
    return log_p


@torch.no_grad()
def test_the_cache_changes_nothing(vocabulary):
    model, batch = make_model(vocabulary), evaluation(vocabulary)
    generator = torch.Generator().manual_seed(0)
    cache = model.backbone.decoder.start(*encoded(model, batch), num_beams=2)
    said = torch.full((len(CAPTIONS), 2, 1), int(batch.special_ids[2]))
    for _ in range(5):
        scores = model.backbone.decoder.step(said[..., -1], cache)
        for beam in range(2):
            expected = next_log_p(model, batch, said[:, beam, 1:].tolist())
            torch.testing.assert_close(scores[:, beam].log_softmax(-1), expected, rtol=0, atol=1e-12)
        beams = torch.randint(2, (len(CAPTIONS), 2), generator=generator)
        cache.follow((2 * torch.arange(len(CAPTIONS))[:, None] + beams).flatten())
        said = said.gather(1, beams[..., None].expand_as(said))
        said = torch.cat((said, torch.randint(len(vocabulary), (len(CAPTIONS), 2, 1), generator=generator)), dim=-1)


@torch.no_grad()
def test_one_beam_takes_the_likeliest_word_each_time(vocabulary):
    model, batch = make_model(vocabulary), evaluation(vocabulary)
    forbidden, end = [vocabulary.pad_id, vocabulary.unk_id, vocabulary.cls_id, vocabulary.mask_id], vocabulary.sep_id
    said, total = [[] for _ in CAPTIONS], np.zeros(len(CAPTIONS))
    for _ in range(6):
        best, ids = next_log_p(model, batch, said, forbidden).max(-1)
        total += [0 if end in row else value for row, value in zip(said, best.tolist())]
        said = [row + [word] for row, word in zip(said, ids.tolist())]
    expected = [row[: row.index(end)] if end in row else row for row in said]
    got = model.generate(batch, replace(TASK, beam_size=1, max_caption_words=6))
    assert [ids for ids, _ in got] == expected
    assert len(set(map(len, expected))) > 2  # some end, each at its own place
    np.testing.assert_allclose([log_p for _, log_p in got], total, rtol=1e-10)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@torch.no_grad()
def test_as_many_beams_as_captions_find_the_best_of_all(vocabulary, length_penalty):
    model, batch = make_model(vocabulary), evaluation(vocabulary)
    end, words = vocabulary.sep_id, range(len(SPECIAL), len(vocabulary))
    captions = [(*some, end) for count in range(3) for some in product(words, repeat=count)] + list(product(words, repeat=3))
    rank = {}
    for caption in captions:
        total = sum(next_log_p(model, batch, [list(caption[:t])] * len(CAPTIONS))[:, word] for t, word in enumerate(caption))
        rank[caption] = total / len(caption) ** length_penalty, total
    got = model.generate(batch, replace(TASK, beam_size=64, max_caption_words=3, length_penalty=length_penalty))
    for clip, (ids, log_p) in enumerate(got):
        best = max(captions, key=lambda caption: rank[caption][0][clip])
        assert ids == [word for word in best if word != end]
        assert log_p == pytest.approx(rank[best][1][clip].item(), rel=1e-10)


def test_captions_depend_neither_on_the_other_clips_nor_on_the_time(vocabulary):
    model, inputs = make_model(vocabulary), make_inputs(vocabulary)
    task, clips = replace(TASK, beam_size=3, length_penalty=0.5), make_clips()

    def captions(clips: list[Clip]) -> list[tuple[list[int], float]]:
        batch = inputs.evaluation(clips)
        return model.generate(replace(batch, video=batch.video.double()), task)

    together = captions(clips)
    assert together == captions(clips)
    for clip, (ids, log_p) in zip(clips, together):
        alone = captions([clip])[0]
        assert alone[0] == ids and alone[1] == pytest.approx(log_p, rel=1e-10)


def test_no_caption_leaks_into_what_it_is_generated_from(vocabulary):
    inputs, clips = make_inputs(vocabulary), make_clips()
    batch, others = inputs.evaluation(clips), inputs.evaluation([replace(clip, captions=["two"]) for clip in clips])
    assert torch.equal(batch.context_ids, others.context_ids) and batch.decoder_input_ids is None
    silent = batch.context_ids[1]
    assert silent[silent != vocabulary.pad_id].tolist() == [vocabulary.cls_id, vocabulary.sep_id]
    assert vocabulary.decode(batch.context_ids[0].tolist()) == "two one"
    model, batch = make_model(vocabulary).float(), inputs.batch(clips, 0)
    wrong = replace(batch, text_ids=batch.text_ids.flip(0), masked_text_ids=batch.masked_text_ids.flip(0))
    before, after = (vector(model(b, ("caption", "masked_caption", "masked_language"))) for b in (batch, wrong))
    assert torch.equal(before[:2], after[:2]) and before[2] != after[2]


def test_as_published_every_loss_reads_the_transcript(vocabulary):
    clips = make_clips()
    batch = make_inputs(vocabulary, auxiliary_text="transcript").batch(clips, 0)
    expected = make_inputs(vocabulary).evaluation(clips)
    assert batch.context_ids is None and torch.equal(batch.text_ids, expected.context_ids)
    said = [vocabulary.decode(ids.clamp(min=0).tolist()) for ids in batch.decoder_target_ids]
    assert all(caption in clip.captions for caption, clip in zip(said, clips))
    model = make_model(vocabulary, auxiliary_text="transcript")
    alone = make_inputs(vocabulary, auxiliary_text="transcript").evaluation(clips)
    got = [model.generate(replace(b, video=b.video.double()), TASK) for b in (alone, expected)]
    assert got[0] == got[1]


PASSES = {  # names -> calls of: text, visual and cross encoder, decoder; rows of the text and of the cross encoder, by clip
    ("caption",): (1, 1, 1, 1, 1, 1),
    ("caption", "masked_caption"): (1, 1, 1, 1, 2, 2),
    ("caption", "joint"): (1, 1, 1, 1, 2, 1),
    ("caption", "masked_caption", "joint", "masked_joint", "masked_language", "masked_frame"): (1, 1, 1, 1, 4, 3),
}


@pytest.mark.parametrize("names", PASSES, ids="+".join)
def test_a_subset_has_the_losses_of_the_full_set_and_only_its_passes(vocabulary, names):
    model, batch = make_model(vocabulary).float(), make_inputs(vocabulary).batch(make_clips(), 0)
    full = {name: loss.item() for name, loss in model(batch).items()}
    backbone, calls, rows = model.backbone, Counter(), Counter()

    def count(module, inputs, output):
        calls[module] += 1
        rows[module] += len(inputs[0]) // len(CAPTIONS)

    modules = (backbone.bert, backbone.visual, backbone.cross, backbone.decoder)
    for module in modules:
        module.register_forward_hook(count)
    assert list(full) == TASK.loss_set
    assert vector(model(batch, names)).tolist() == pytest.approx([full[name] for name in names], rel=1e-5)
    assert (*(calls[module] for module in modules), rows[backbone.bert], rows[backbone.cross]) == PASSES[names]


def test_an_overfitted_model_says_its_captions(vocabulary):
    clips = [replace(clip, captions=clip.captions[:1]) for clip in make_clips()]
    model, inputs = make_model(vocabulary, scale=0.0, hidden_size=32, dropout=0.0).float().train(), make_inputs(vocabulary)
    adam = torch.optim.Adam(model.parameters(), lr=5e-3)
    for seed in range(120):
        adam.zero_grad()
        model(inputs.batch(clips, seed), ("caption",))["caption"].backward()
        adam.step()
    rows = captioning.predict(model.eval(), clips, inputs, "cpu", TASK)
    assert [row["caption"] for row in rows] == CAPTIONS
    assert all(row["log_probability"] > -0.5 and row["references"] == [row["caption"]] for row in rows)
    found = captioning.metrics(rows)
    assert found["distinct_captions"] == 6 and (found["bleu_1"], found["rouge_l"]) == pytest.approx((100, 100))
    assert found["cider"] == pytest.approx(np.mean([row["quality"] for row in rows]))
    wrong = [row | {"caption": "one one"} for row in rows]
    assert captioning.metrics(wrong)["cider"] < found["cider"] and captioning.metrics(wrong)["distinct_captions"] == 1
