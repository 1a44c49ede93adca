"""Question answering by VIOLET and All-in-one on real frames: texts, examples, predictions, losses and the meta step."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from meltr_ray.combining.meltr import MELTR
from meltr_ray.config import ConfigError
from meltr_ray.hypergrad import hypergradient
from meltr_ray.hypergrad.module_problem import ModuleProblem
from meltr_ray.training.evaluation import quietly
from meltr_ray.video.backbones.allinone.inputs import AllInOneInputs
from meltr_ray.video.backbones.allinone.losses import AllInOneLosses
from meltr_ray.video.backbones.allinone.model import TASK_HEADS, AllInOne
from meltr_ray.video.backbones.allinone.settings import AllInOneConfig
from meltr_ray.video.backbones.violet.inputs import VioletInputs
from meltr_ray.video.backbones.violet.losses import VioletLosses
from meltr_ray.video.backbones.violet.model import Violet
from meltr_ray.video.backbones.violet.settings import VioletConfig
from meltr_ray.video.backbones.violet.visual_tokens import VisualTokens
from meltr_ray.video.clips.answers import Answers, build_answers
from meltr_ray.video.clips.clip import Clip, Question
from meltr_ray.video.clips.questions import encode_option, pad_options
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.clips.shards import write_manifest, write_split
from meltr_ray.video.clips.store import ClipStore
from meltr_ray.video.clips.vocabulary import Vocabulary, build_vocabulary
from meltr_ray.video.tasks import question_answering
from meltr_ray.video.tasks.settings import TaskConfig
from tests.reference import flat, relative_error
from tests.video.settings import vector, video_config

COLOURS = ("red", "green", "blue", "grey", "white")
NAMES = "abcdefghijkl"
SMALL = dict(hidden_size=16, num_heads=2, feed_forward_size=32, dropout=0.0, drop_path=0.0)
BACKBONES = {"violet": VioletConfig, "allinone": AllInOneConfig}
TASKS = ("open_ended", "multiple_choice")
CASES = [(name, task) for name in BACKBONES for task in TASKS]


def ask(number: int) -> list[Question]:
    """An open question, one with two or three options, and one whose answer no train question has."""
    colour = COLOURS[number % 4]
    options = [colour, COLOURS[(number + 1) % 4], COLOURS[(number + 2) % 4]][: 2 + number % 2]
    options = options[::-1] if number % 3 else options
    return [
        Question(f"open{number}", f"what colour is {NAMES[number]} ?", colour),
        Question(f"choice{number}", f"which colour is {NAMES[number]} ?", colour, options, options.index(colour)),
        Question(f"unknown{number}", "how is it ?", "odd"),
    ]


@pytest.fixture(scope="module")
def folder(digits_folder, tmp_path_factory) -> Path:
    """Videos of bouncing digits with questions of ours; `validation` holds clips that train doesn't."""
    path, digits = tmp_path_factory.mktemp("questions"), ClipStore(digits_folder, "train", videos=True)
    clips = [replace(digits[at], id=f"clip{at}", source=f"source{at // 2}", features=None, questions=ask(at)) for at in range(12)]
    splits = {"train": write_split(path, "train", clips[:8]), "validation": write_split(path, "validation", clips[8:])}
    texts = [question.question for clip in clips for question in clip.questions] + list(COLOURS) * 2
    build_vocabulary(texts, path / "vocabulary.txt")
    build_answers([clip.questions[0].answer for clip in clips[:8]], path / "answers.txt")
    write_manifest(path, name="questions", description="", source="", splits=splits, feature_size=0, feature_extractor="none")
    return path


def make_case(name: str, task: str, folder: Path, split: str = "train", **settings):
    """Workload, examples, inputs and module."""
    sizes = dict(num_visual_tokens=16, num_frames=3, cross_layers=1, matching_temperature=1.0, answer_dropout=0.0)
    sizes = sizes if name == "violet" else dict(num_frames=2, shuffle_patches=False)
    backbone = BACKBONES[name](**SMALL | sizes | settings)
    video = video_config(data=DataConfig(folder=str(folder)), backbone=backbone, task=TaskConfig(name=task)).workload
    vocabulary, answers = Vocabulary(folder / "vocabulary.txt"), Answers(folder / "answers.txt")
    examples = question_answering.examples(ClipStore(folder, split, videos=True), video)
    torch.manual_seed(3)
    if name == "violet":
        tokens = VisualTokens(np.random.default_rng(0).integers(256, size=(16, 192)).astype(np.uint8), backbone.patch_pixels)
        inputs = VioletInputs(vocabulary, video.data, backbone, tokens, video.task, answers)
        return video, examples, inputs, VioletLosses(Violet(backbone, len(vocabulary), task, len(answers)), video.task)
    inputs = AllInOneInputs(vocabulary, video.data, backbone, video.task, answers)
    model = AllInOne(backbone, len(vocabulary), TASK_HEADS[task], len(answers))
    return video, examples, inputs, AllInOneLosses(model, video.task)


def test_question_and_option_make_one_text_as_the_style_says(folder):
    vocabulary, question = Vocabulary(folder / "vocabulary.txt"), Question("", "which colour is it ?", "red", ["red", "blue"], 0)

    def whole(text: str) -> list[int]:
        return vocabulary.encode(text, 99)

    pair = encode_option(question, "blue", "pair", vocabulary, 20)
    assert pair == [*whole(question.question), *whole("blue")[1:]]
    assert encode_option(question, "blue", "listed", vocabulary, 99) == whole("which colour is it ?Options: red blueAnswer: blue")
    assert encode_option(replace(question, question=""), "blue", "listed", vocabulary, 20) == whole("blue")
    for style in ("pair", "listed"):
        for length in range(12, 40):  # a text that is cut keeps its option
            encoded = [encode_option(question, option, style, vocabulary, length) for option in question.options]
            assert encoded[0] != encoded[1] and all(len(ids) <= length and ids[-1] == vocabulary.sep_id for ids in encoded)
    assert vocabulary.decode(encode_option(question, "blue", "pair", vocabulary, 5)) == "which blue"


def test_questions_with_fewer_options_are_padded(folder):
    vocabulary = Vocabulary(folder / "vocabulary.txt")
    questions = [Question("", "which ?", "red", ["red", "blue"], 0), Question("", "which ?", "red", ["grey", "green", "red"], 2)]
    ids, mask = pad_options(questions, "pair", vocabulary, 10)
    assert ids.shape == (2, 3, 10) and mask.any(2).tolist() == [[True, True, False], [True, True, True]]
    assert (ids[~mask] == vocabulary.pad_id).all()
    assert ids[1, 2][mask[1, 2]].tolist() == encode_option(questions[1], "red", "pair", vocabulary, 10)


def test_examples_are_the_questions_of_the_task(folder):
    _, train, *_ = make_case("violet", "open_ended", folder)
    video, validation, *_ = make_case("violet", "open_ended", folder, "validation")
    assert [clip.question.id for clip in train] == [f"open{at}" for at in range(8)]  # no answer is `odd`
    assert [clip.question.id for clip in validation] == [f"{kind}{at}" for at in range(8, 12) for kind in ("open", "unknown")]
    assert question_answering.left_out(train.store, video) == 8 and question_answering.left_out(validation.store, video) == 0
    _, choice, *_ = make_case("violet", "multiple_choice", folder)
    assert [clip.question.id for clip in choice] == [f"choice{at}" for at in range(8)]
    for examples in (train, choice):
        assert pickle.loads(pickle.dumps(examples))[3] == examples[3]


def test_the_published_fault_of_options_asks_for_as_many_options_each(folder):
    with pytest.raises(ConfigError, match=r"^backbone.published_options=True: [^\n]*2 to 3; [^\n]*$"):
        make_case("violet", "multiple_choice", folder, published_options=True)


@pytest.mark.parametrize("name, task", CASES)
def test_a_batch_is_that_of_its_seed_and_evaluation_that_of_nothing_random(name, task, folder):
    _, examples, inputs, model = make_case(name, task, folder)
    clips = [examples[at] for at in range(6)]
    first, again, other = (vars(inputs.batch(clips, seed)) for seed in (5, 5, 6))
    assert all(torch.equal(x, again[key]) for key, x in first.items() if x is not None)
    assert not torch.equal(first["masked_text_ids"], other["masked_text_ids"])
    evaluated = inputs.evaluation(clips)
    assert torch.equal(evaluated.text_ids, first["text_ids"]) and evaluated.masked_text_ids is None
    scores = model.eval().scores(evaluated)
    for row, clip in zip(scores, clips):  # padded options change nothing
        (alone,) = model.scores(inputs.evaluation([clip]))
        torch.testing.assert_close(row[: len(alone)], alone)
    if task == "multiple_choice":
        assert scores.isinf().sum(1).tolist() == [3 - len(clip.question.options) for clip in clips]


@pytest.mark.parametrize("name, task", CASES)
def test_the_primary_loss_is_the_cross_entropy_of_the_scores(name, task, folder):
    """On frames of training; VIOLET's have masked patches."""
    video, examples, inputs, model = make_case(name, task, folder)
    batch = inputs.batch([examples[at] for at in range(6)], 0)
    questions = [examples[at].question for at in range(6)]
    right = [question.right if question.options else inputs.answers.words.index(question.answer) for question in questions]
    expected = -model.eval().scores(batch).log_softmax(1)[torch.arange(6), torch.tensor(right)].mean()
    torch.testing.assert_close(model(batch, (video.primary,))[video.primary], expected)


def test_predictions_are_judged_by_all_answers_and_ties_are_lost(folder):
    answers = Answers(folder / "answers.txt")
    clip = Clip("a", questions=ask(0))
    known, choice, unknown = (replace(clip, question=question) for question in clip.questions)
    scores = np.zeros(len(answers))
    assert not question_answering.answer_row(known, scores, answers)["correct"]
    assert not question_answering.answer_row(choice, np.zeros(3), None)["correct"]
    scores[answers.number("red")] = np.log(3)
    row = question_answering.answer_row(known, scores, answers)
    assert row["correct"] and row["predicted"] == "red" and row["known"]
    assert row["confidence"] == row["quality"] == pytest.approx(0.5)
    lost = question_answering.answer_row(unknown, scores, answers)
    assert not lost["correct"] and not lost["known"] and lost["predicted"] == "red" and lost["quality"] == 0
    won = question_answering.answer_row(choice, np.array([1.0, 0.0, -np.inf]), None)  # two options; the third is padding
    assert won["correct"] and won["options"] == ["red", "green"] and won["confidence"] == pytest.approx(1 / (1 + np.exp(-1)))
    metrics = question_answering.metrics([row, lost, won])
    assert metrics["accuracy"] == pytest.approx(200 / 3) and metrics["accuracy_known"] == 100
    assert metrics["accuracy_what"] == metrics["accuracy_which"] == 100 and metrics["accuracy_how"] == 0
    assert metrics["num_unknown"] == 1


@pytest.mark.parametrize("name, task", CASES)
def test_a_few_steps_answer_the_train_questions(name, task, folder):
    """The whole chain, to predictions that come out equal twice; the answers of these are in the words."""
    shuffled = {"shuffle_patches": True} if name == "allinone" else {}
    video, examples, inputs, model = make_case(name, task, folder, hidden_size=32, **shuffled)
    batch = inputs.evaluation([examples[at] for at in range(8)])
    optimizer = torch.optim.Adam(model.eval().parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(batch, (video.primary,))[video.primary].backward()
        optimizer.step()
    video.inputs = inputs  # VIOLET's with tokens of ours
    rows, again = (quietly(model, lambda: video.predict(model, examples, torch.device("cpu"))) for _ in range(2))
    found, intervals, notes = question_answering.report(rows)
    assert rows == again and [row["question_id"] for row in rows] == [clip.question.id for clip in examples]
    assert found["accuracy"] >= 75 and intervals["accuracy"][0] <= found["accuracy"] <= intervals["accuracy"][1]
    assert notes[0] == "8 questions about 8 clips."


@pytest.mark.parametrize("name, task", [("violet", "multiple_choice"), ("allinone", "open_ended")])
def test_the_meta_step_is_double_backward_in_float64(name, task, folder):
    """Every default loss through MELTR, v = d_w F: fused attention and differences in float32 beside explicit attention."""
    workload, examples, inputs, model = make_case(name, task, folder)
    batches = [inputs.batch([examples[at] for at in range(start, start + 4)], start) for start in (0, 4)]
    torch.manual_seed(0)
    primary, combiner = workload.primary, MELTR(len(workload.loss_set), embedding_size=16, loss_encoder_size=8, feed_forward_size=16)
    nn.init.normal_(combiner.fc1.weight, std=0.5)
    *_, exact = make_case(name, task, folder, fused_attention=False)
    exact.load_state_dict(model.eval().state_dict())
    problem = ModuleProblem(model, lambda: vector(model(batches[0])), lambda: model(batches[1], (primary,))[primary])
    got = flat(hypergradient(problem, combiner).implicit).double()

    video = "frames" if name == "violet" else "video"
    wide = [replace(b, **{key: getattr(b, key).double() for key in (video, "false_video") if hasattr(b, key)}) for b in batches]
    exact, combiner = exact.double().eval(), combiner.double()
    w, phi = list(exact.parameters()), list(combiner.parameters())
    options = dict(allow_unused=True, materialize_grads=True)
    v = torch.autograd.grad(exact(wide[1], (primary,))[primary], w, **options)
    slopes = torch.autograd.grad(combiner(vector(exact(wide[0]))), w, create_graph=True, **options)
    along = sum((slope * direction).sum() for slope, direction in zip(slopes, v))
    expected = -flat(list(torch.autograd.grad(along, phi, **options)))
    assert relative_error(got, expected) < 1e-2
