"""Questions about a clip, each with one right answer: three open ones and two with options.

A digit is known by a property that it alone has in the clip, and asked for another one. As digits' properties are drawn
independently of each other, the words of a question tell little of its answer.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from meltr_ray.video.clips.clip import Question
from meltr_ray.video.datasets.digits.properties import VALUES, sizes_are_clear, value_of, values
from meltr_ray.video.datasets.digits.scene import NAMES, Digit

OPEN_QUESTIONS = 3
OPTIONS = 5
"""Options of a question, as far as there are so many values."""
KINDS = ("colour", "digit", "direction", "event")
TEXTS = {
    "colour": "what colour is {}?", "digit": "which number is {}?", "event": "what does {} do?",
    "direction": "which way does {} go first?", "turn": "which way does {} turn?",
}  # fmt: skip
COUNT, PAIR = "how many digits are there?", "which of these is in the clip?"
REFERENCES = {
    "colour": "the {} digit", "digit": "the {}", "size": "the {} digit", "direction": "the digit that goes {} first",
    "turn": "the digit that turns {}", "event": "the digit that {}",
}  # fmt: skip
KNOWN_BY = dict.fromkeys(("direction", "turn", "event"), ("colour", "digit", "size")) | {
    "colour": ("digit", "size", "direction", "turn", "event"),
    "digit": ("colour", "size", "direction", "turn", "event"),
}
"""Kind that is asked for -> kinds that a digit may be known by. Movements tell of each other: a turn is never straight on."""
COUNTED = {1: 0.25, 2: 0.25, 3: 0.5}
"""Digits in a clip -> probability that it is asked how many; 40, 40 and 20 % have so many: a third of answers each."""
PAIRS = {("colour", "digit"): "{} {}", ("colour", "event"): "{} digit that {}", ("digit", "event"): "{} that {}"}


def ask(clip: str, digits: list[Digit], random: np.random.Generator) -> list[Question]:
    """All questions about what moves in the clip of id `clip`."""
    kinds = [str(kind) for kind in random.permutation(KINDS)]
    questions = [count(digits)] if random.random() < COUNTED[len(digits)] else []
    found = [question for kind in kinds if (question := ask_for(kind, digits, random))]
    questions = (questions + found)[:OPEN_QUESTIONS]
    rest = [question for question in found[::-1] if question not in questions] or found[::-1]
    chosen = [with_options(rest[0], digits, random), *pair(digits, random)]
    for number, question in enumerate(questions + chosen):
        question.id = f"{clip}-{number}"
    return questions + chosen


def count(digits: list[Digit]) -> Question:
    return Question("", COUNT, NAMES[len(digits)], kind="count")


def ask_for(kind: str, digits: list[Digit], random: np.random.Generator) -> Question | None:
    """An open question for a property of some digit; None where no digit has it or can be told apart."""
    for at in random.permutation(len(digits)):
        turns = kind == "direction" and digits[at].event == "turn" and random.random() < 0.5
        asked = "turn" if turns else kind
        answer, known = value_of(digits[at], asked), references(digits[at], digits, KNOWN_BY[asked])
        if answer is not None and known:
            return Question("", TEXTS[asked].format(random.choice(known)), answer, kind=kind)
    return None


def references(digit: Digit, digits: list[Digit], kinds: tuple[str, ...]) -> list[str]:
    """Phrases that mean this digit and no other of the clip, one for each of the kinds of property that can be used."""
    found = ["the digit"] if len(digits) == 1 else []
    for kind in kinds:
        value, others = value_of(digit, kind), values(digits, kind)
        vague = kind == "size" and not sizes_are_clear(digits) or value == "passes"  # all pass, some do more
        if value is not None and others.count(value) == 1 and not vague:
            found.append(REFERENCES[kind].format(value))
    return found


def with_options(question: Question, digits: list[Digit], random: np.random.Generator) -> Question:
    """The same question with options: the right one, those that are true of other digits, and others at random."""
    present = set(values(digits, question.kind)) - {question.answer}
    others = sorted(set(VALUES[question.kind]) - {question.answer} - present)
    wrong = [*sorted(present), *map(str, random.permutation(others))][: OPTIONS - 1]
    return choice(question.question, question.answer, wrong, question.kind, random)


def pair(digits: list[Digit], random: np.random.Generator) -> list[Question]:
    """One question, or none where twenty draws find none: which of four pairs of properties some digit has.

    The options are all pairs of two values of one kind and two of another, so that no option differs from the rest by its words.
    """
    for _ in range(20):
        digit = digits[random.integers(len(digits))]
        kinds = list(PAIRS)[random.integers(len(PAIRS))]
        options = list(product(*([value_of(digit, kind), other_value(digit, digits, kind, random)] for kind in kinds)))
        there = {tuple(value_of(one, kind) for kind in kinds) for one in digits}
        right = [option for option in options if option in there]
        if len(right) == 1:
            texts = {option: with_article(PAIRS[kinds].format(*option)) for option in options}
            return [choice(PAIR, texts.pop(right[0]), list(texts.values()), "pair", random)]
    return []


def other_value(digit: Digit, digits: list[Digit], kind: str, random: np.random.Generator) -> str:
    """Another value than the digit's: by half one of another digit, where there is such a one."""
    own = value_of(digit, kind)
    near = [value for value in values(digits, kind) if value != own]
    far = [value for value in VALUES[kind] if value != own]
    return str(random.choice(near if near and random.random() < 0.5 else far))


def with_article(words: str) -> str:
    return f"{'an' if words.startswith(('orange', 'eight')) else 'a'} {words}"


def choice(text: str, answer: str, wrong: list[str], kind: str, random: np.random.Generator) -> Question:
    """Options in any order."""
    options = [str(option) for option in random.permutation([answer, *wrong])]
    return Question("", text, answer, options, options.index(answer), kind)
