"""Questions about clips, with options (multiple choice) or without (open-ended): examples, predictions and metrics.

The metric is top-1 accuracy over all questions. An open question whose answer isn't among the answers counts as wrong;
All-in-one's code leaves it out of its accuracy, so that is reported beside (`accuracy_known`). A right answer that others share
the highest score with counts as wrong: a model that scores all alike scores 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from meltr_ray.errors import check
from meltr_ray.results.bootstrap import interval, ratio, with_ones
from meltr_ray.video.backbones.batch import Batch
from meltr_ray.video.clips.answers import Answers
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.store import ClipStore
from meltr_ray.video.metrics import answers
from meltr_ray.video.tasks.examples import Examples, in_parts
from meltr_ray.video.tasks.settings import TaskConfig
from meltr_ray.workload import Metric

if TYPE_CHECKING:
    from meltr_ray.video.workload import Video

METRICS = {
    "accuracy": Metric("%", meaning="questions answered right"),
    "accuracy_known": Metric(
        "%", meaning="the same without questions whose answer isn't among those that can be given, which count as wrong"
    ),
}
AT_ONCE = 32
"""Questions that evaluation reads and answers at once."""


class Inputs(Protocol):
    """Clips with their question as a backbone reads them (backbones/<name>/inputs.py)."""

    answers: Answers | None

    def evaluation(self, clips: list[Clip]) -> Batch: ...


class Answerer(Protocol):
    """What a backbone's module offers besides its losses."""

    def scores(self, batch: Batch) -> Tensor:
        """(B, A) of all answers, or (B, O) of options, those that a question lacks -inf."""
        ...


class Asked(NamedTuple):
    """The questions of a split that a task asks, N of them: those with options, or those without."""

    with_options: bool
    clips: np.ndarray
    """(N,) row of each one's clip."""
    numbers: np.ndarray
    """(N,) which of its clip's questions it is."""
    num_options: np.ndarray
    """(N,)"""
    answers: list[str]
    """N right ones."""

    @classmethod
    def of(cls, store: ClipStore, task: str) -> Self:
        """Read from the column of questions alone."""
        questions = store.column("questions")
        per_clip, every = pc.list_value_length(questions).to_numpy(), pc.list_flatten(questions)
        clips, first = np.repeat(np.arange(len(per_clip)), per_clip), np.repeat(per_clip.cumsum() - per_clip, per_clip)
        num_options = pc.list_value_length(pc.struct_field(every, "options")).to_numpy()
        with_options = task == "multiple_choice"
        asked = np.flatnonzero((num_options > 0) == with_options)
        answers = pc.struct_field(every, "answer").take(asked).to_pylist()
        return cls(with_options, clips[asked], (np.arange(len(clips)) - first)[asked], num_options[asked], answers)

    def known(self, store: ClipStore) -> np.ndarray:
        """(N,) bool: which of them are examples. See `examples`."""
        if store.split not in ("train", "meta") or self.with_options:
            return np.ones(len(self.clips), bool)
        answers = Answers(store.folder / "answers.txt")
        return np.array([answers.number(answer) is not None for answer in self.answers], bool)


def pick(clip: Clip, number: int) -> Clip:
    return replace(clip, question=clip.questions[number])


def examples(store: ClipStore, config: Video) -> Examples:
    """One example a question, a clip with `question` set: those with options, or those without.

    Open questions of the splits that train (train, meta) are left out where their answer isn't among the answers; evaluation
    keeps them. Differs from the published code, whose training keeps them for the auxiliary losses, without a term in `answer`.
    """
    asked = Asked.of(store, config.task.name)
    kept = asked.known(store)
    found = Examples(store, config.task.name, asked.clips[kept], asked.numbers[kept], pick)
    if asked.with_options and getattr(config.backbone, "published_options", False):
        counts = set(asked.num_options.tolist())
        check(
            len(counts) == 1,
            "backbone.published_options",
            True,
            f"needs as many options for every question, {store.split} has {min(counts)} to {max(counts)}; set it to false",
        )
    return found


def left_out(store: ClipStore, config: Video) -> int:
    """How many questions `examples` leaves out of this split, since their answer isn't among the answers."""
    return int((~Asked.of(store, config.task.name).known(store)).sum())


def predict(model: Answerer, examples: Examples, inputs: Inputs, device: torch.device | str, task: TaskConfig) -> list[dict[str, Any]]:
    """One row a question. `confidence`: probability of the predicted answer; `quality`: that of the right one, 0 if unknown."""
    rows = []
    for clips in in_parts(examples, AT_ONCE):
        scores = model.scores(inputs.evaluation(clips).to(device)).double().cpu().numpy()
        rows += [answer_row(clip, row, inputs.answers) for clip, row in zip(clips, scores)]
    return rows


def answer_row(clip: Clip, scores: np.ndarray, vocabulary: Answers | None) -> dict[str, Any]:
    """The prediction for clip.question from the scores (A,) of all answers, or (O,) of options and what is padded to them."""
    question = clip.question
    if question.options:
        candidates, right = question.options, question.right
    else:
        candidates, right = vocabulary.words, vocabulary.number(question.answer)
    scores = scores[: len(candidates)]
    best = choose(scores, right)
    weights = np.exp(scores - scores.max())
    probabilities = weights / weights.sum()
    return dict(
        id=clip.id, source=clip.source, correct=best == right, quality=0.0 if right is None else float(probabilities[right]),
        question_id=question.id, question=question.question, type=question.kind or "other", answer=question.answer,
        options=list(question.options) or None, predicted=candidates[best], confidence=float(probabilities[best]),
        known=right is not None,
    )  # fmt: skip


def choose(scores: np.ndarray, right: int | None) -> int:
    """Number of the highest of scores (K,); where `right` shares it with others, one of these."""
    others = scores.copy()
    if right is not None:
        others[right] = -np.inf
    rival = int(others.argmax())
    return right if right is not None and scores[right] > others[rival] else rival


def metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Accuracy (%) of all questions, of those whose answer is known, and by type; numbers of questions."""
    return answers.accuracy(*([row[name] for row in rows] for name in ("correct", "known", "type")))


def report(rows: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, tuple[float, float]], list[str]]:
    """All metrics, their intervals over sources, and notes."""
    found = metrics(rows)
    groups = {"accuracy": rows}
    for row in rows:
        groups.setdefault(f"accuracy_{answers.type_name(row['type'])}", []).append(row)
    intervals = {name: _interval(group) for name, group in groups.items()}
    notes = [f"{len(rows)} questions about {len({row['id'] for row in rows})} clips.",
             "A right answer that shares the highest score with another counts as wrong."]  # fmt: skip
    if found["num_unknown"]:
        notes.append(f"{found['num_unknown']} questions have an answer outside the vocabulary and count as wrong; accuracy_known "
                     "is without them, as All-in-one's code counts.")  # fmt: skip
    return found, intervals, notes


def _interval(rows: list[dict[str, Any]]) -> tuple[float, float]:
    correct = np.array([100.0 * row["correct"] for row in rows])
    return interval(with_ones(correct), [row["source"] for row in rows], ratio)
