"""Sentiment from text, frames and audio: each is read where it is there, and nothing depends on the other clips of a batch."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from meltr_ray.video.backbones.named import losses_of
from meltr_ray.video.backbones.univl.features import AudioScale
from meltr_ray.video.backbones.univl.inputs import UniVLBatch, UniVLInputs
from meltr_ray.video.backbones.univl.losses import UniVLLosses
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UniVLConfig
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.clips.vocabulary import SPECIAL, Vocabulary
from meltr_ray.video.metrics import sentiment as reference
from meltr_ray.video.tasks import sentiment
from meltr_ray.video.tasks.settings import TaskConfig
from tests.video.settings import vector

WORDS = ["good", "bad", "film", "very"]
DATA = DataConfig(max_words=6, max_frames=4)
TASK = TaskConfig(name="sentiment", primary="sentiment", loss_set=list(losses_of("univl", "sentiment").offered))
FEATURES, AUDIO = 10, 3


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.txt"
    path.write_text("\n".join(SPECIAL + WORDS))
    return Vocabulary(path)


def make_clips(count: int = 8, frames: bool = True, audio: bool = True) -> list[Clip]:
    """1 to 6 frames and rows of audio; some clips lack frames, some audio, some a transcript."""
    generator = np.random.default_rng(0)
    clips = []
    for i in range(count):
        features = generator.normal(size=(1 + i % 6, FEATURES)).astype(np.float32)
        sound = (generator.normal(size=(6 - i % 6, AUDIO)) * [1, 100, 0] + [0, 300, 7]).astype(np.float32)
        text = " ".join(generator.choice(WORDS, 1 + i % 5))
        clips.append(
            Clip(
                str(i),
                features=features if frames and i % 4 != 1 else None,
                audio=sound if audio and i % 4 != 2 else None,
                transcript=text if i % 4 != 3 else None,
                score=float(generator.uniform(-3, 3)),
                source=f"video{i // 2}",
            )  # fmt: skip
        )
    return clips


def make_inputs(vocabulary: Vocabulary, clips: list[Clip], feature_size: int = FEATURES) -> UniVLInputs:
    return UniVLInputs(vocabulary, DATA, TASK, feature_size=feature_size, audio=AudioScale.of(clips))


def make_model(vocabulary: Vocabulary, feature_size: int = FEATURES, audio_size: int = AUDIO, scale: float = 0.3) -> UniVLLosses:
    torch.manual_seed(0)
    config = UniVLConfig(hidden_size=16, num_heads=2, feed_forward_size=16, dropout=0.0)
    model = UniVLLosses(UniVL(config, len(vocabulary), feature_size, "sentiment", audio_size=audio_size), TASK)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p) * (scale if p.dim() > 1 else scale / 5)
    return model.eval()


def test_audio_is_standardised_over_train(vocabulary):
    clips = make_clips(40)
    scale = AudioScale.of(clips)
    rows = np.concatenate([scale(clip.audio) for clip in clips if clip.audio is not None])
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(rows.std(0), [1, 1, 0], atol=1e-2)  # the last feature is constant
    assert abs(scale(np.full((1, AUDIO), 1e6, np.float32))).max() == 5
    assert AudioScale.of(make_clips(audio=False)) is None
    together = np.concatenate([clip.audio for clip in clips if clip.audio is not None]).astype(np.float64)
    np.testing.assert_allclose(scale.mean, together.mean(0), rtol=1e-9)
    np.testing.assert_allclose(scale.deviation[:2], together.std(0)[:2], rtol=1e-9)


def test_scaling_audio_holds_one_clip_at_a_time():
    clips = (Clip(str(at), audio=np.full((20_000, 20), at, np.float32)) for at in range(30))  # 1.6 MB each
    tracemalloc.start()
    scale = AudioScale.of(clips)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scale.mean[0] == pytest.approx(14.5) and peak < 24e6  # all of them are 48 MB, and 96 in float64


@torch.no_grad()
def test_a_clip_is_rated_by_its_own_text_frames_and_audio(vocabulary):
    clips = make_clips()
    model, inputs = make_model(vocabulary), make_inputs(vocabulary, clips)
    together = model.rate(inputs.evaluation(clips))
    for clip, expected in zip(clips, together):
        torch.testing.assert_close(model.rate(inputs.evaluation([clip]))[0], expected, rtol=1e-4, atol=1e-5)
        for part in ("transcript", "features", "audio"):
            if getattr(clip, part) is not None:
                without = model.rate(inputs.evaluation([replace(clip, **{part: None})]))[0]
                assert abs(without - expected) > 1e-4, part


def changed_padding(batch: UniVLBatch) -> UniVLBatch:
    video, audio, ids = batch.video.clone(), batch.audio.clone(), batch.text_ids.clone()
    video[~batch.video_mask], audio[~batch.audio_mask], ids[~batch.text_mask] = 50.0, 50.0, 6
    return replace(batch, video=video, audio=audio, text_ids=ids)


def test_padding_changes_no_loss(vocabulary):
    clips = make_clips()
    model, batch = make_model(vocabulary), make_inputs(vocabulary, clips).batch(clips, 0)
    torch.testing.assert_close(vector(model(changed_padding(batch))), vector(model(batch)))


@pytest.mark.parametrize("parts", [("frames", "audio"), ("frames",), ("audio",), ()], ids="+".join)
def test_every_weight_is_used_and_what_is_not_there_has_none(vocabulary, parts):
    clips = make_clips(frames="frames" in parts, audio="audio" in parts)
    feature_size = FEATURES if "frames" in parts else 0
    model = make_model(vocabulary, feature_size, AUDIO if "audio" in parts else 0)
    losses = vector(model(make_inputs(vocabulary, clips, feature_size).batch(clips, 0)))
    assert losses.isfinite().all() and losses.shape == (len(TASK.loss_set),)
    losses.sum().backward()
    unused = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is None and ".pooler." not in name}
    assert unused == {"decoder"}  # there is no captioning loss
    assert hasattr(model.backbone, "visual") == ("frames" in parts) and hasattr(model.backbone, "audio") == ("audio" in parts)


def test_a_batch_is_the_transcripts_and_the_scores(vocabulary):
    clips = make_clips()
    batch = make_inputs(vocabulary, clips).batch(clips, 0)
    said = [vocabulary.decode(ids.tolist()) for ids in batch.text_ids]
    assert said == [" ".join((clip.transcript or "").split()[:4]) for clip in clips]
    np.testing.assert_allclose(batch.score, [clip.score for clip in clips], rtol=1e-6)
    model = make_model(vocabulary)
    expected = (model.rate(batch) - batch.score).abs().mean()
    torch.testing.assert_close(model(batch, ("sentiment",))["sentiment"], expected)


def test_an_overfitted_model_rates_as_the_truth(vocabulary):
    clips = make_clips()
    model, inputs = make_model(vocabulary, scale=0.0), make_inputs(vocabulary, clips)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for seed in range(120):
        adam.zero_grad()
        model(inputs.batch(clips, seed), ("sentiment",))["sentiment"].backward()
        adam.step()
    with torch.no_grad():
        rows = sentiment.predict(model, clips, inputs, "cpu", TASK)
    found, intervals, notes = sentiment.report(rows)
    assert found["mae"] < 0.2 and -found["mae"] == pytest.approx(np.mean([row["quality"] for row in rows]))
    expected = reference.metrics([row["predicted"] for row in rows], [clip.score for clip in clips])
    assert found["accuracy_2"] == expected["accuracy_2"] == pytest.approx(100 * np.mean([row["correct"] for row in rows]))
    assert intervals["mae"][0] <= found["mae"] <= intervals["mae"][1]
