"""What all importers leave out of a clip's texts, and which questions of which names."""

from __future__ import annotations

from itertools import count

from meltr_ray.video.clips.clip import Clip, Question

NOT_WHOLE, EQUAL_OPTIONS = "question without text or answer", "question with equal options"


def clean(clips: list[Clip], published: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Counts of what went from the clips, and (id, reason) of the questions among it.

    Captions without a letter or digit go, as no metric can judge them, and questions that have no text, no answer, or a right
    option that isn't there. Of data that isn't `published`, repeats of a clip's captions go too, and questions with equal options.
    """
    empty = repeated = 0
    unusable: list[tuple[str, str]] = []
    for clip in clips:
        captions = [caption.strip() for caption in clip.captions if any(map(str.isalnum, caption))]
        empty += len(clip.captions) - len(captions)
        clip.captions = captions if published else list(dict.fromkeys(captions))
        repeated += len(captions) - len(clip.captions)
        problems = [(question, _problem(question, published)) for question in clip.questions]
        unusable += [(question.id, problem) for question, problem in problems if problem]
        clip.questions = [question for question, problem in problems if not problem]
    reasons = [reason for _, reason in unusable]
    counts = {"empty captions, dropped": empty, "questions without text or answer, dropped": reasons.count(NOT_WHOLE)}
    if not published:
        counts |= {"repeated captions, dropped": repeated, "questions with equal options, dropped": reasons.count(EQUAL_OPTIONS)}
    return counts | {"questions with the id of another, renamed": _rename_questions(clips)}, unusable


def _problem(question: Question, published: bool) -> str:
    """Why a question can't be used; empty where it can."""
    right = question.right is None or 0 <= question.right < len(question.options)
    if not (right and question.question.strip() and question.answer.strip()):
        return NOT_WHOLE
    return "" if published or len(set(question.options)) == len(question.options) else EQUAL_OPTIONS


def _rename_questions(clips: list[Clip]) -> int:
    """The second question of an id becomes `<id>#2`; how many."""
    questions = [question for clip in clips for question in clip.questions]
    taken, seen, renamed = {question.id for question in questions}, set(), 0
    for question in questions:
        if question.id in seen:
            question.id = next(name for n in count(2) if (name := f"{question.id}#{n}") not in taken)
            renamed += 1
        taken.add(question.id)
        seen.add(question.id)
    return renamed
