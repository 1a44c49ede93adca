"""Closed-form baselines against simulation, plain linear algebra and reference metrics, and that no answer is looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from meltr_ray.video.baselines import baselines, captions, questions, retrieval, sentiment
from meltr_ray.video.baselines.ridge import STRENGTHS, fit_ridge, held_out
from meltr_ray.video.clips.answers import Answers, build_answers
from meltr_ray.video.clips.clip import Clip, Question
from meltr_ray.video.metrics.captions import evaluate
from meltr_ray.video.metrics.retrieval import rank_metrics, ranks

COLOURS = ["red", "green", "blue", "white"]


def pairs(count: int, seed: int, options: bool) -> list[questions.Asked]:
    """Two kinds of questions about features of which the first four say the colour and the next two the size."""
    random, found = np.random.default_rng(seed), []
    for number in range(count):
        colour, size = random.integers(4), random.integers(2)
        features = np.concatenate([np.eye(4)[colour], np.eye(2)[size]]) + 0.1 * random.normal(size=(3, 6))
        values, answer = (COLOURS, COLOURS[colour]) if number % 2 else (["small", "large"], ["small", "large"][size])
        shown = list(random.permutation(values)) if options else []
        question = Question(str(number), "what colour is it" if number % 2 else "what size has it", answer, shown)
        question.kind, question.right = values[0], shown.index(answer) if options else None
        found.append((Clip(f"{seed}-{number}", ["a thing"], features), question))
    return found


def test_chance_of_retrieval_is_that_of_a_random_order():
    similarity = np.random.default_rng(0).normal(size=(20000, 24))
    simulated = rank_metrics(ranks(similarity, np.zeros(20000, int)))
    assert {name: pytest.approx(value, abs=1) for name, value in simulated.items()} == retrieval.chance(24)


def test_retrieval_ridge_is_the_regression_written_out():
    random = np.random.default_rng(0)
    words = np.array("aa bb cc dd ee".split())
    clips = [Clip(str(at), [" ".join(words[random.random(5) < 0.4])], random.normal(size=(3, 4))) for at in range(60)]
    there = np.array([[word in clip.captions[0].split() for word in words] for clip in clips])
    text = there * np.log(2) * np.log(60 / there.sum(0))
    text /= np.maximum(np.linalg.norm(text, axis=1, keepdims=True), 1e-12)
    text -= text.mean(0)
    video = np.array([[*clip.features.mean(0), *clip.features.std(0)] for clip in clips])
    video = (video - video.mean(0)) / video.std(0)
    stacked = np.concatenate([video, np.sqrt(30.0) * np.eye(8)])  # a penalty is a row of data
    weights = np.linalg.lstsq(stacked, np.concatenate([text, np.zeros((8, 5))]), rcond=None)[0]
    expected = retrieval.of_length_one(text) @ retrieval.of_length_one(video @ weights).T  # all 5 components: a rotation
    found = retrieval.Ridge.fit(clips, 30.0).scores([clip.captions[0] for clip in clips], clips)
    assert np.allclose(found, expected, atol=1e-4)


def test_quick_components_span_the_same_as_exact_ones(monkeypatch):
    centred = np.random.default_rng(0).normal(size=(150, 90)) * np.linspace(3, 0.1, 90)
    exact = retrieval.principal_components(centred)
    monkeypatch.setattr(retrieval, "EXACT", 10)
    quick = retrieval.principal_components(centred)
    assert np.array_equal(quick, retrieval.principal_components(centred))
    assert np.allclose(np.abs((quick * exact).sum(0)), 1)


def test_the_strength_is_chosen_on_whole_videos_that_are_held_out():
    groups = [str(at // 3) for at in range(60)]
    out = held_out(groups)
    assert out.sum() == 12 and {group for group, chosen in zip(groups, out) if chosen} == {"0", "5", "10", "15"}
    random = np.random.default_rng(0)
    x, noise = random.normal(size=(60, 40)), random.normal(size=60)
    errors = {}
    for strength in STRENGTHS:
        a, b = x[~out] - x[~out].mean(0), noise[~out] - noise[~out].mean()
        w = np.linalg.solve(a.T @ a + strength * np.eye(40), a.T @ b)
        errors[strength] = np.abs((x[out] - x[~out].mean(0)) @ w + noise[~out].mean() - noise[out]).mean()
    _, strength = fit_ridge(x, noise, groups, lambda predicted, rows: np.abs(predicted - noise[rows]).mean())
    assert strength == min(errors, key=errors.get) == max(STRENGTHS)  # of noise, nothing is best


@pytest.mark.parametrize("options", (False, True))
def test_ridge_on_questions_needs_the_clip_and_what_is_asked(options, tmp_path):
    splits = {"train": pairs(400, 0, options), "validation": pairs(100, 1, options), "test": pairs(100, 2, options)}
    build_answers([question.answer for _, question in splits["train"]], tmp_path / "answers.txt")
    answers = None if options else Answers(tmp_path / "answers.txt")
    found = {name: row["accuracy"] for name, row in questions.baselines(splits, answers)["test"].items()}
    assert found["chance"] == pytest.approx(37.5 if options else 100 / 6)  # 2 and 4 options; 6 answers
    truths = [question.answer for _, question in splits["test"]]
    first = max(("small", "large"), key=[question.answer for _, question in splits["train"]].count)
    if not options:
        assert found["constant"] == pytest.approx(truths.count(first))
    assert found["ridge, words"] < 50 and found["ridge"] == 100


def test_equal_scores_count_as_chance():
    asked = pairs(50, 0, True)
    assert questions.accuracy(asked, [dict.fromkeys(question.options, 0.0) for _, question in asked]) == pytest.approx(37.5)


def test_the_constant_caption_and_its_scores_are_those_of_the_reference():
    random = np.random.default_rng(0)
    words = "a man is dancing with two big dogs".split()
    clips = [Clip(str(at), [" ".join(random.choice(words, 5)) for _ in range(4)]) for at in range(30)]
    for clip in clips[::3]:
        clip.captions += ["a man is dancing"] * 2
    said = [clip.captions[0] for clip in clips]
    names = [clip.id for clip in clips]
    reference = evaluate(dict(zip(names, said)), {clip.id: clip.captions for clip in clips}, java=False)
    expected = {name: 100 * value for name, value in reference.corpus.items() if name != "meteor"}
    assert captions.score(said, clips) == pytest.approx(expected | {"distinct_captions": reference.num_distinct})
    assert captions.best_constant(clips) == "a man is dancing"
    assert captions.most_central(["a cat", "a man is dancing", "a man is singing"]) in ("a man is dancing", "a man is singing")


def test_sentiment_of_words_is_found_by_words_and_by_nothing_else():
    random, splits = np.random.default_rng(0), {}
    for split in ("train", "validation", "test"):
        splits[split] = []
        for at in range(150):
            good = int(random.integers(2))
            said = f"this film is {('bad', 'good')[good]} {random.choice(['indeed', 'today', 'again'])}"
            splits[split].append(Clip(f"{split}{at}", transcript=said, audio=random.normal(size=(2, 3)), score=4.0 * good - 2))
    found = sentiment.baselines(splits)["test"]
    assert set(found) == {"constant", "ridge, words", "ridge, audio", "ridge"}
    assert found["ridge, words"]["mae"] < 0.1 and found["ridge"]["mae"] < 0.2 and found["ridge, audio"]["mae"] > 1.8
    scores = {split: np.array([clip.score for clip in clips]) for split, clips in splits.items()}
    assert found["constant"]["mae"] == np.abs(scores["test"] - np.median(scores["train"])).mean()


def test_every_task_of_the_digits_has_its_baselines(digits_folder):
    lines: list[str] = []
    found = baselines(Path(digits_folder), lines.append)
    assert list(found) == ["retrieval", "multiple_choice", "open_ended", "captioning", "sentiment"]
    assert all(set(rows) == {"validation", "test"} for rows in found.values())
    figures = [values for rows in found.values() for named in rows.values() for values in named.values()]
    assert all(np.isfinite(value) for values in figures for value in values.values())
    assert {name: set(rows["test"]) for name, rows in found.items()} == {
        "retrieval": {"chance", "ridge"}, "captioning": {"constant", "nearest"},
        "multiple_choice": {"chance", "constant", "ridge, words", "ridge", "ridge on captions"},
        "open_ended": {"chance", "constant", "ridge, words", "ridge"},
        "sentiment": {"constant", "ridge, words", "ridge, video", "ridge"},
    }  # fmt: skip
    assert len(lines) == 10
