"""UniVL's questions: scores of options and answers, each pass once, and what a text is made of."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from meltr_ray.video.backbones.named import losses_of
from meltr_ray.video.backbones.univl.inputs import UniVLInputs
from meltr_ray.video.backbones.univl.losses import UniVLLosses
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UniVLConfig
from meltr_ray.video.checkpoints import official
from meltr_ray.video.clips.answers import Answers
from meltr_ray.video.clips.clip import Clip, Question
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.clips.vocabulary import SPECIAL, Vocabulary
from meltr_ray.video.tasks.settings import TaskConfig
from tests.video.settings import vector

WORDS = ["what", "moves", "which", "way", "up", "down", "left", "right"]
OPTIONS = [["up", "down", "left"], ["down", "up"], ["left", "right up", "down", "up"], ["up", "left"]]
ANSWERS = ["up", "down", "left"]
DATA = DataConfig(max_words=10, max_frames=4)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.txt"
    path.write_text("\n".join(SPECIAL + WORDS))
    return Vocabulary(path)


def make_clips(with_options: bool = True) -> list[Clip]:
    """The last clip's answer is in no list of answers; every second clip has a caption."""
    generator = np.random.default_rng(0)
    answers = ["down", "up", "right up", "left"] if with_options else ["up", "down", "up", "right up"]
    clips = []
    for i, (options, answer) in enumerate(zip(OPTIONS, answers)):
        chosen = dict(options=options, right=options.index(answer)) if with_options else {}
        features = generator.normal(size=(1 + i, 10)).astype(np.float32)
        question = Question(str(i), "what moves which way", answer, **chosen)
        clips.append(Clip(str(i), captions=["moves up"] if i % 2 else [], features=features, question=question))
    return clips


def make(vocabulary: Vocabulary, tmp_path, task_name: str, **settings) -> tuple[UniVLLosses, UniVLInputs]:
    losses = losses_of("univl", task_name)
    task = TaskConfig(name=task_name, primary=losses.primaries[0], loss_set=list(losses.offered))
    (tmp_path / "answers.txt").write_text("\n".join(ANSWERS))
    config = UniVLConfig(hidden_size=16, num_heads=2, feed_forward_size=16, dropout=0.0, **settings)
    torch.manual_seed(0)
    model = UniVLLosses(UniVL(config, len(vocabulary), 10, task_name, num_answers=len(ANSWERS)), task)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p) * (0.3 if p.dim() > 1 else 0.1)
    return model.eval(), UniVLInputs(vocabulary, DATA, task, Answers(tmp_path / "answers.txt"), config)


def crossed(model: UniVLLosses, inputs: UniVLInputs, text: str, clip: Clip) -> torch.Tensor:
    """Pooled output of the cross encoder for one text and one clip, through all positions of its last layer; (1, H)."""
    ids, mask = inputs.texts([text])
    video, video_mask = inputs.videos([clip])
    backbone = model.backbone
    words, frames = backbone.encode_text(ids, mask), backbone.encode_video(backbone.normalize_video(video), video_mask)
    return backbone.cross.pooler(backbone.encode_cross(words, mask, frames, video_mask))


@torch.no_grad()
def test_an_options_score_is_that_of_the_pair(vocabulary, tmp_path):
    model, inputs = make(vocabulary, tmp_path, "multiple_choice")
    clips = make_clips()
    scores = model.scores(inputs.evaluation(clips))
    assert scores.shape == (4, 4)
    for clip, row in zip(clips, scores):
        for option, score in zip(clip.question.options, row):  # [SEP] in a text is that word piece
            pooled = crossed(model, inputs, f"{clip.question.question} [SEP] {option}", clip)
            torch.testing.assert_close(score, model.backbone.similarity_dense(pooled)[0, 0], rtol=1e-4, atol=1e-5)
        assert (row[len(clip.question.options) :] == -torch.inf).all()
    right = torch.tensor([clip.question.right for clip in clips])
    expected = torch.stack([row[: len(o)].log_softmax(0)[r] for row, o, r in zip(scores, OPTIONS, right)]).mean()
    torch.testing.assert_close(-model(inputs.batch(clips, 0), ("choice",))["choice"], expected)


@torch.no_grad()
def test_a_joint_score_is_the_cosine_over_the_temperature(vocabulary, tmp_path):
    model, inputs = make(vocabulary, tmp_path, "multiple_choice", choice_score="joint")
    clips = [replace(clip, question=replace(clip.question, question="")) for clip in make_clips()]
    scores, backbone = model.scores(inputs.evaluation(clips)), model.backbone
    query = backbone.embed_text(*encode(backbone.encode_text, inputs.texts(["right up"])))
    video, mask = inputs.videos(clips[2:3])
    candidate = backbone.embed_video(*encode(backbone.encode_video, (backbone.normalize_video(video), mask)))
    expected = torch.cosine_similarity(query, candidate)[0] / backbone.config.similarity_temperature
    torch.testing.assert_close(scores[2, 1], expected)
    assert (scores[1, 2:] == -torch.inf).all()


def encode(encoder, inputs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return encoder(*inputs), inputs[1]


@torch.no_grad()
def test_answers_and_one_that_is_not_in_the_list(vocabulary, tmp_path):
    model, inputs = make(vocabulary, tmp_path, "open_ended")
    clips = make_clips(with_options=False)
    batch = inputs.batch(clips, 0)
    assert batch.answer.tolist() == [0, 1, 0, -1]
    scores = model.scores(inputs.evaluation(clips))
    for clip, row in zip(clips, scores):
        expected = model.backbone.answer_dense(crossed(model, inputs, clip.question.question, clip))[0]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
    expected = -scores.log_softmax(1)[torch.arange(3), batch.answer[:3]].mean()
    torch.testing.assert_close(model(batch, ("answer",))["answer"], expected)
    assert model(inputs.batch(clips[3:], 0), ("answer",))["answer"] == 0


def test_auxiliary_losses_read_a_caption_or_the_question_with_its_answer(vocabulary, tmp_path):
    _, inputs = make(vocabulary, tmp_path, "multiple_choice")
    clips = make_clips()
    texts = [vocabulary.decode(ids.tolist()) for ids in inputs.batch(clips, 0).text_ids]
    assert texts == ["what moves which way down", "moves up", "what moves which way right up", "moves up"]
    short = replace(inputs, data=replace(DATA, max_words=8)).batch(clips, 0)
    assert vocabulary.decode(short.text_ids[2].tolist()) == "what moves which right up"  # the question is cut, not the answer
    batch = inputs.evaluation(clips)
    assert len(batch.option_ids) == 4 and batch.text_ids is None  # each text once, of 11 options


PASSES = {  # names -> calls of: text, visual and cross encoder, decoder; rows of the text encoder
    "multiple_choice": {("choice",): (1, 1, 1, 0, 4), ("choice", "joint"): (1, 1, 1, 0, 8),
                        ("choice", "joint", "masked_joint", "masked_language", "masked_frame"): (1, 1, 2, 0, 12)},
    "open_ended": {("answer",): (1, 1, 1, 0, 4), ("answer", "joint", "masked_language", "caption"): (1, 1, 2, 1, 12)},
}  # fmt: skip


@pytest.mark.parametrize("task_name", PASSES)
def test_a_subset_has_the_losses_of_the_full_set_and_only_its_passes(vocabulary, tmp_path, task_name):
    model, inputs = make(vocabulary, tmp_path, task_name)
    backbone, batch = model.backbone, inputs.batch(make_clips(task_name == "multiple_choice"), 0)
    full = {name: loss.item() for name, loss in model(batch).items()}
    assert list(full) == model.config.loss_set
    calls, rows = Counter(), Counter()

    def count(module, arguments, output):
        calls[module] += 1
        rows[module] += len(arguments[0])

    modules = (backbone.bert, backbone.visual, backbone.cross, backbone.decoder)
    for module in modules:
        module.register_forward_hook(count)
    for names, expected in PASSES[task_name].items():
        calls.clear()
        rows.clear()
        assert vector(model(batch, names)).tolist() == pytest.approx([full[name] for name in names], rel=1e-4)
        assert (*(calls[module] for module in modules), rows[backbone.bert]) == expected


@pytest.mark.parametrize("task_name", PASSES)
def test_every_weight_is_used(vocabulary, tmp_path, task_name):
    model, inputs = make(vocabulary, tmp_path, task_name)
    vector(model(inputs.batch(make_clips(task_name == "multiple_choice"), 0))).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None and ".pooler." not in name]


@pytest.mark.parametrize("task_name, frames", [("open_ended", 10), ("sentiment", 0)])
def test_a_published_checkpoint_starts_a_model_with_heads_of_ours(vocabulary, task_name, frames):
    config = UniVLConfig(hidden_size=16, num_heads=2, feed_forward_size=16)
    published = UniVL(config, len(vocabulary), 10).state_dict()
    model = UniVL(config, len(vocabulary), frames, task_name, num_answers=3, audio_size=5)
    names = config.naming()
    missing, _ = official.match(published, model, names.may_be_missing, names.may_be_unexpected)
    heads = {"open_ended": {"answer_dense"}, "sentiment": {"score_dense", "audio"}}
    assert {name.split(".")[0] for name in missing} == heads[task_name]
