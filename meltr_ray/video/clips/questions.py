"""Questions to padded ids and numbers of right answers. B: questions, O: options of a question, L: word pieces."""

from __future__ import annotations

import sys

import numpy as np

from meltr_ray.video.clips.answers import Answers
from meltr_ray.video.clips.clip import Question
from meltr_ray.video.clips.vocabulary import Vocabulary


def encode_option(question: Question, option: str, style: str, vocabulary: Vocabulary, max_words: int) -> list[int]:
    """Ids of a question with one of its options, [CLS] and [SEP] included, at most `max_words`; without a question, the option.

    `pair`: question, [SEP], option. `listed`: question, `Options:`, all options, `Answer:` and the option, with spaces where the
    published code of VIOLET and All-in-one has them (that is, before neither of the two words). Differs from the published code
    in that a long text loses what stands before the option, not its end: there, options of a long question become all alike.
    """
    if not question.question:
        return vocabulary.encode(option, max_words)
    if style == "pair":
        before, last = _pieces(vocabulary, question.question), [vocabulary.sep_id, *_pieces(vocabulary, option)]
    else:
        listed = f"{question.question}Options: {' '.join(question.options)}Answer: {option}"
        pieces, length = _pieces(vocabulary, listed), len(_pieces(vocabulary, f"Answer: {option}"))
        before, last = pieces[:-length], pieces[-length:]
    last = last[: max_words - 2]
    return [vocabulary.cls_id, *before[: max_words - 2 - len(last)], *last, vocabulary.sep_id]


def pad_options(questions: list[Question], style: str, vocabulary: Vocabulary, max_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (B, O, max_words) of every question with each of its options, O the most of any; absent ones are padding."""
    ids = np.full((len(questions), max(len(question.options) for question in questions), max_words), vocabulary.pad_id, np.int64)
    mask = np.zeros(ids.shape, bool)
    for row, question in enumerate(questions):
        for column, option in enumerate(question.options):
            encoded = encode_option(question, option, style, vocabulary, max_words)
            ids[row, column, : len(encoded)], mask[row, column, : len(encoded)] = encoded, True
    return ids, mask


def right_answers(questions: list[Question], answers: Answers | None) -> np.ndarray:
    """(B,) int64: which option is right, or the number of the answer of an open question; -1: not among `answers`."""
    numbers = [question.right if question.options else answers.number(question.answer) for question in questions]
    return np.array([-1 if number is None else number for number in numbers], np.int64)


def _pieces(vocabulary: Vocabulary, text: str) -> list[int]:
    return vocabulary.encode(text, sys.maxsize)[1:-1]
