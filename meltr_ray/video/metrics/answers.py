"""Accuracy of question answering, multiple choice and open-ended, overall and by type of question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TOTALS = ("known", "unknown", "questions")
"""What names of the totals end in; a type of such a name has `type_` before it."""


def accuracy(correct: np.ndarray, known: np.ndarray, types: Sequence[str]) -> dict[str, float]:
    """Top-1 accuracy (%) and number of N questions, `accuracy_<type>` and `num_<type>` by type; NaN where there is no question.

    correct: (N,) bool, predictions that are right; known: (N,) bool, whether the right answer is in the vocabulary of answers.
    One that isn't counts as wrong and stays in the denominator, as the published figures have it; `accuracy_known` is without
    these, and `num_unknown` says how many there are.
    """
    correct, known, kinds = np.asarray(correct, bool), np.asarray(known, bool), np.asarray(types, dtype=object)
    found = {"accuracy": percent(correct & known), "accuracy_known": percent(correct[known]),
             "num_questions": len(correct), "num_unknown": int((~known).sum())}  # fmt: skip
    for kind in sorted(set(types)):
        name = type_name(kind)
        found |= {f"accuracy_{name}": percent((correct & known)[kinds == kind]), f"num_{name}": int((kinds == kind).sum())}
    return found


def type_name(kind: str) -> str:
    """A type of question as its metrics are named."""
    return f"type_{kind}" if kind in TOTALS else kind


def percent(right: np.ndarray) -> float:
    return 100 * float(right.mean()) if len(right) else float("nan")
