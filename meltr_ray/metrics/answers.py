"""Accuracy of question answering, multiple choice and open-ended, overall and by type of question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TYPES = ("what", "who", "how", "when", "where")
"""First words that MSVD-QA and MSRVTT-QA are split by (Xu et al., ACM MM 2017); a question with another one is "other"."""
UNKNOWN = -1
"""Id of an answer that isn't in the vocabulary of answers."""


def accuracy(
    predicted: np.ndarray, truth: np.ndarray, questions: Sequence[str] | None = None, types: Sequence[str] | None = None
) -> dict[str, float]:
    """Top-1 accuracy (%) of predicted answers (N,) and true ones (N,), ids of options or of a vocabulary of answers.

    With `questions` also `accuracy_what` and so on, by the first word, or by `types` where given, and `num_what`.
    A truth of UNKNOWN counts as wrong and stays in the denominator, as the published figures have it; `num_unknown` says how
    many there are. NaN where there is no question.
    """
    right = correct(predicted, truth)
    out = {"accuracy": percent(right), "num_questions": len(right), "num_unknown": int((np.asarray(truth) == UNKNOWN).sum())}
    if types is None and questions is not None:
        types = [question_type(question) for question in questions]
    if types is None:
        return out
    if len(types) != len(right):
        raise ValueError(f"{len(right)} answers, {len(types)} questions: one question an answer")
    types = np.asarray(types, dtype=object)
    for kind in sorted(set(types)):
        out |= {f"accuracy_{kind}": percent(right[types == kind]), f"num_{kind}": int((types == kind).sum())}
    return out


def correct(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether each answer is right, (N,) bool. Raises ValueError where the lengths differ."""
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape:
        raise ValueError(f"{len(predicted)} predictions, {len(truth)} answers: lengths must be equal")
    return (predicted == truth) & (truth != UNKNOWN)


def choices(scores: np.ndarray) -> np.ndarray:
    """The option chosen of each row of `scores` (N, options); UNKNOWN where the best isn't the only one or a score is NaN.

    An arg max would take the first of equals, and a constant score would be right wherever the first option is.
    """
    scores = np.asarray(scores, dtype=float)
    best = scores.max(1)  # NaN where any is
    return np.where((scores == best[:, None]).sum(1) == 1, scores.argmax(1), UNKNOWN)


def question_type(question: str) -> str:
    first = question.lower().replace("'", " ").split()[:1]
    return first[0] if first and first[0] in TYPES else "other"


def percent(right: np.ndarray) -> float:
    return 100 * float(right.mean()) if len(right) else float("nan")
