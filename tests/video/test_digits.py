"""Bouncing digits: what splits share, that bytes repeat, and that videos, captions, questions and utterances fit each other."""

import re
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from meltr_ray.config import ConfigError
from meltr_ray.video.clips import store
from meltr_ray.video.clips.answers import Answers
from meltr_ray.video.clips.features import FrameFeatures
from meltr_ray.video.clips.video import decode_video, encode_video, evenly_spaced
from meltr_ray.video.clips.vocabulary import Vocabulary
from meltr_ray.video.datasets import digits
from meltr_ray.video.datasets.digits import captions, questions, scene
from meltr_ray.video.datasets.digits.utterances import utter
from meltr_ray.video.datasets.prepare import ensure_prepared

CLIPS = {"train": 30, "meta": 4, "validation": 4, "test": 5}


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("digits") / "clips"
    digits.make_digits(made, quiet, CLIPS)
    return made


def test_splits_share_no_handwriting():
    shares = digits._share_handwriting(digits.CLIPS, seed=0)
    samples = [{image.tobytes() for image in images} for images, _ in shares.values()]
    assert len(set.union(*samples)) == sum(map(len, samples))
    assert all(set(values) == set(range(10)) for _, values in shares.values())


def test_two_generations_are_equal_byte_by_byte(folder, tmp_path):
    digits.make_digits(tmp_path / "again", quiet, CLIPS)
    names = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert names == ["answers.txt", "features.npz", "manifest.json", "meta-00000.parquet", "test-00000.parquet",
                     "train-00000.parquet", "validation-00000.parquet", "vocabulary.txt"]  # fmt: skip
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_features_come_from_the_decoded_video(folder):
    extractor = FrameFeatures.load(folder / "features.npz")
    row = pq.read_table(folder / "test-00000.parquet").to_pylist()[2]
    frames = decode_video(row["video"])
    assert frames.shape == (scene.FRAMES, 64, 64, 3)
    expected = extractor(frames[evenly_spaced(len(frames), digits.SAMPLED_FRAMES)])
    assert np.array_equal(store.ClipStore(folder, "test")[2].features, expected.astype(np.float16).astype(np.float32))


def test_train_features_are_standardised(folder):
    features = np.concatenate([clip.features for clip in store.ClipStore(folder, "train")])
    assert np.allclose(features.mean(0), 0, atol=1e-2) and np.allclose(features.std(0), 1, atol=1e-2)


@pytest.mark.parametrize("event", scene.EVENTS)
@pytest.mark.parametrize("direction", scene.DIRECTIONS)
def test_a_digit_stays_on_the_canvas_and_moves_as_it_says(event, direction):
    turn = "up" if direction in ("left", "right") else "left"
    digit = scene.Digit(np.ones((8, 8)), 1, "white", "large", direction, "fast", event, turn, np.zeros(2), 14)
    digit.centre = scene._place(digit, np.random.default_rng(0))
    path, slack = digit.centre + digit.offsets(), 3  # pixels that may stick out of the canvas at most
    assert (path >= 13 - slack).all() and (path <= scene.SIDE - 13 + slack).all()
    way = (path[13] - path[0]) @ scene.DIRECTIONS[direction]
    assert way == 0 if event == "wait" else way > 10
    shown = scene.paint([digit], np.random.default_rng(0)).astype(int).sum((1, 2, 3))
    assert not (event == "vanish" and shown[-1] > 0.5 * shown[0]) and not (event == "appear" and shown[0] > 0.5 * shown[-1])


def test_texts_use_only_words_of_the_train_vocabulary(folder):
    vocabulary = Vocabulary(folder / "vocabulary.txt")
    for clip in store.ClipStore(folder, "test"):
        assert 1 <= len(clip.captions) <= captions.CAPTIONS == 5 and clip.source == clip.id
        texts = [*clip.captions, clip.transcript, *(text for q in clip.questions for text in (q.question, q.answer, *q.options))]
        assert all(vocabulary.unk_id not in vocabulary.encode(text, 60) for text in texts)


def test_answers_are_those_of_open_train_questions(folder):
    asked = {split: [q for clip in store.ClipStore(folder, split) for q in clip.questions] for split in ("train", "test")}
    assert set(Answers(folder / "answers.txt").words) == {q.answer for q in asked["train"] if not q.options}
    everything = asked["train"] + asked["test"]
    assert len({q.id for q in everything}) == len(everything)


def scenes(count: int) -> list[list[scene.Digit]]:
    images, values = digits._share_handwriting(digits.CLIPS, seed=0)["train"]
    random = np.random.default_rng(1)
    return [scene.draw_clip(images, values, random) for _ in range(count)]


EVENT_WORDS = {"pass": "passes", "bounce": "bounces", "turn": "turns", "stop": "stops", "vanish": "vanishes", "appear": "appears",
               "grow": "grows", "shrink": "shrinks", "wait": "waits", "meet": "collides"}  # fmt: skip


def says(digit: scene.Digit, words: str) -> bool:
    """Whether a phrase such as "the red digit" or "a seven that waits" means the digit: each of its words must."""
    if found := re.search("goes (.*) first", words):
        return digit.event != "wait" and digit.direction == found[1]
    if found := re.search("turns (left|right|up|down)", words):
        return digit.event == "turn" and digit.turn == found[1]
    true = {digit.colour, digit.size, scene.NAMES[digit.value], EVENT_WORDS[digit.event]}
    return set(words.split()) <= true | {"a", "an", "the", "digit", "that"}


def answers_to(question: questions.Question, clip: list[scene.Digit]) -> list[str]:
    """All true answers, read from the question's text alone, one for each digit that it may mean."""
    if question.question == questions.COUNT:
        return [("one", "two", "three")[len(clip) - 1]]
    if question.question == questions.PAIR:
        return [option for option in question.options if any(says(digit, option) for digit in clip)]
    asked, words = re.fullmatch(r"(what colour is|which number is|which way does|what does) (the .*?)(?: do| go first| turn)?\?",
                                question.question).groups()  # fmt: skip
    meant = [digit for digit in clip if says(digit, words)]
    turns = question.question.endswith(" turn?")
    return [{"what colour is": digit.colour, "which number is": scene.NAMES[digit.value],
             "what does": EVENT_WORDS[digit.event],
             "which way does": digit.turn if turns else digit.direction}[asked] for digit in meant]  # fmt: skip


def test_every_question_has_one_right_answer_and_it_is_the_one_given():
    random = np.random.default_rng(0)
    for number, clip in enumerate(scenes(400)):
        asked = questions.ask(f"clip{number}", clip, random)
        assert [bool(q.options) for q in asked] == [False] * 3 + [True] * 2
        for question in asked:
            assert answers_to(question, clip) == [question.answer], (question, clip)
            if question.options:
                assert question.options[question.right] == question.answer and 4 <= len(set(question.options)) <= 5


def test_neither_a_constant_nor_the_words_of_a_question_go_far():
    random = np.random.default_rng(0)
    asked = [question for number, clip in enumerate(scenes(2500)) for question in questions.ask(str(number), clip, random)]
    open_ended, choices = ([q for q in asked if bool(q.options) == options] for options in (False, True))
    answers, by_words = Counter(q.answer for q in open_ended), Counter((q.question, q.answer) for q in open_ended)
    assert max(answers.values()) < 0.08 * len(open_ended)
    best = {question: max(n for (q, _), n in by_words.items() if q == question) for question, _ in by_words}
    assert sum(best.values()) < 0.25 * len(open_ended)  # with hindsight; on other clips it is less
    places = Counter(q.right for q in choices if len(q.options) == 4)
    assert max(places.values()) < 0.28 * sum(places.values())
    assert 0.2 < np.mean([1 / len(q.options) for q in choices]) < 0.25


LIKING = {"really love": 3, "utterly enjoy": 3, "do not love": -2, "do not enjoy": -2, "do not mind": 0, "really hate": -3,
          "utterly bore": -3, "love": 2, "enjoy": 2, "hate": -2, "bore": -2}  # fmt: skip


def liking(clause: str) -> int:
    score = next(score for words, score in LIKING.items() if words in clause)
    return score // 2 if clause.endswith("a bit") else score


def test_a_score_is_what_words_and_picture_say_together_and_neither_says_alone():
    random = np.random.default_rng(0)
    scores, by_words, by_picture = [], [], []
    for clip in scenes(1500):
        transcript, score = utter(clip, random)
        clauses = re.split(" and | but ", transcript)
        of = {word: liking(clause) for clause in clauses for word in ("warm", "cold") if word in clause}
        warm = [digit.colour in ("red", "orange", "yellow", "purple") for digit in clip]
        assert score == pytest.approx(np.mean([of["warm" if each else "cold"] for each in warm])) and -3 <= score <= 3
        scores.append(score)
        by_words.append((of["warm"] + of["cold"]) / 2)
        by_picture.append(np.mean(warm))
    scores, shares = np.array(scores), np.array(by_picture)
    from_picture = sum(np.abs(scores[shares == s] - np.median(scores[shares == s])).sum() for s in set(by_picture)) / len(scores)
    constant, from_words = np.abs(scores - np.median(scores)).mean(), np.abs(scores - by_words).mean()
    assert constant > 1.4 and from_picture > 1.15 and from_words > 0.95  # both together: 0


def test_captions_and_videos_do_not_depend_on_what_is_asked_and_said(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "utter", lambda clip, random: ("nothing", float(random.integers(3, size=7).mean())))
    digits.make_digits(tmp_path / "other", quiet, CLIPS)
    for ours, other in zip(*(store.ClipStore(path, "test", videos=True) for path in (folder, tmp_path / "other"))):
        assert ours.captions == other.captions and ours.video == other.video and np.array_equal(ours.features, other.features)
        assert ours.transcript != other.transcript


def test_a_finished_folder_is_left_alone_and_another_one_never_overwritten(folder):
    before = (folder / "manifest.json").stat().st_mtime_ns
    digits.make_digits(folder, quiet, CLIPS)
    with pytest.raises(ConfigError, match="^data.folder=.*: holds digits from another source; "):
        digits.make_digits(folder, quiet, CLIPS, seed=1)
    assert (folder / "manifest.json").stat().st_mtime_ns == before


def test_an_interrupted_generation_leaves_no_folder(tmp_path):
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        digits.make_digits(tmp_path / "clips", interrupt, CLIPS)
    assert list(tmp_path.iterdir()) == []


def test_baselines_are_added_for_training_where_they_are_missing(tmp_path):
    digits.make_digits(tmp_path / "clips", quiet, CLIPS)
    baselines = ensure_prepared("digits", tmp_path / "clips", quiet)["baselines"]
    assert baselines["retrieval"]["validation"]["chance"]["recall_at_1"] == 25
    assert set(baselines["retrieval"]["test"]) == {"chance", "ridge"} and "sentiment" in baselines
    assert store.check_folder(tmp_path / "clips")["baselines"] == baselines


def test_encoding_keeps_colours_and_frame_count():
    frames = np.zeros((7, 64, 64, 3), np.uint8)
    frames[:, 16:48, 16:48] = (230, 40, 40)
    decoded = decode_video(encode_video(frames))
    assert decoded.shape == frames.shape and np.abs(decoded[:, 20:44, 20:44].astype(int) - (230, 40, 40)).mean() < 8
