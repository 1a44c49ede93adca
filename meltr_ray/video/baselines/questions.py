"""Questions: chance, the constant answer, and ridge regression from the question's words and the clip's features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from meltr_ray.video.baselines import retrieval
from meltr_ray.video.baselines.ridge import Scale, fit_ridge
from meltr_ray.video.clips.answers import Answers
from meltr_ray.video.clips.clip import Clip, Question

Asked = tuple[Clip, Question]
Found = dict[str, dict[str, dict[str, float]]]
MOST_QUESTIONS, MOST_WORDS, MOST_KINDS = 8000, 500, 6
"""What a ridge is fitted on at most: train questions, evenly spaced; their most frequent words and kinds."""
LEAST_SEEN, MOST_ANSWERS = 3, 1000
"""An answer is predicted when so many train questions have it; so many answers, the most frequent, at most."""


def asked(clips: Sequence[Clip], with_options: bool) -> list[Asked]:
    return [(clip, question) for clip in clips for question in clip.questions if bool(question.options) == with_options]


def baselines(splits: dict[str, Sequence[Asked]], answers: Answers | None) -> Found:
    """Split (other than train) -> accuracy (%) of chance, the constant answer, and ridges; fitted on train.

    "ridge, words": on the question's words alone; "ridge": and the clip's features; "ridge on captions": retrieval's, of options.
    `answers`: those of open questions; None: multiple choice.
    """
    splits = dict(splits)
    train = splits.pop("train")
    found: Found = {}
    models = fit_models(train, answers is None, sees=all_have_features([train, *splits.values()]))
    frequent = [answer for answer, _ in Counter(question.answer for _, question in train).most_common()]
    constant = {answer: -float(number) for number, answer in enumerate(frequent)}
    for split, pairs in splits.items():
        candidates = [question.options or answers.words for _, question in pairs]
        fixed = [{answer: constant.get(answer, -float(len(constant))) for answer in row} for row in candidates]
        found[split] = {"chance": {"accuracy": accuracy(pairs, [dict.fromkeys(row, 0.0) for row in candidates])}}
        found[split] |= {"constant": {"accuracy": accuracy(pairs, fixed)}}
        found[split] |= {name: {"accuracy": accuracy(pairs, model.scores(pairs))} for name, model in models.items()}
    return found


def fit_models(train: Sequence[Asked], with_options: bool, sees: bool) -> dict[str, AnswerRidge | CaptionRidge]:
    """Those that the data allow: options that are all different, such as captions, leave only the last."""
    train = train[:: -(-len(train) // MOST_QUESTIONS)]
    counts = Counter(question.answer for _, question in train)
    known = [answer for answer, count in counts.most_common(MOST_ANSWERS) if count >= LEAST_SEEN]
    models: dict[str, AnswerRidge | CaptionRidge] = {}
    if known:
        models["ridge, words"] = AnswerRidge(train, known, sees=False)
    if known and sees:
        models["ridge"] = AnswerRidge(train, known, sees=True)
    if with_options and sees and all(clip.captions for clip, _ in train):
        models["ridge on captions"] = CaptionRidge(train)
    return models


def all_have_features(parts: Sequence[Sequence[Asked]]) -> bool:
    return all(clip.features is not None for pairs in parts for clip, _ in pairs)


def accuracy(pairs: Sequence[Asked], scores: Sequence[dict[str, float]]) -> float:
    """Percent of questions whose right answer has the highest of its scores (answer -> score); where n share it, 1 / n of one."""
    total = 0.0
    for (_, question), row in zip(pairs, scores, strict=True):
        best = max(row.values())
        first = [answer for answer, score in row.items() if score == best]
        total += (question.answer in first) / len(first)
    return 100 * total / len(pairs)


class AnswerRidge:
    """One-hot `known` answers from tf-idf words of the question and, if `sees`, the clip's features.

    These are mean and deviation over the frames, once for every question and once for those of its kind alone.
    """

    def __init__(self, pairs: Sequence[Asked], known: list[str], sees: bool):
        self.number = {answer: at for at, answer in enumerate(known)}
        self.sees = sees
        pairs = [pair for pair in pairs if pair[1].answer in self.number]
        texts = [question.question for _, question in pairs]
        self.words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+", max_features=MOST_WORDS)
        self.words = self.words.fit(texts) if any(map(retrieval.split_words, texts)) else None
        self.kinds = [kind for kind, _ in Counter(question.kind for _, question in pairs).most_common(MOST_KINDS)]
        if sees:
            self.scale = Scale.fit(retrieval.summaries([clip for clip, _ in pairs]))
        truth = np.eye(len(known))[[self.number[question.answer] for _, question in pairs]]

        def error(predicted: np.ndarray, rows: np.ndarray) -> float:
            judged = [pairs[row] for row in rows]
            return -accuracy(judged, self.named(judged, predicted))

        self.model, self.strength = fit_ridge(self.inputs(pairs), truth, [clip.source for clip, _ in pairs], error)

    def inputs(self, pairs: Sequence[Asked]) -> np.ndarray:
        """(N, D)"""
        kinds = np.array([[question.kind == kind for kind in self.kinds] for _, question in pairs], float)
        parts = [kinds]
        if self.words is not None:
            parts.append(self.words.transform([question.question for _, question in pairs]).toarray())
        if self.sees:
            seen = self.scale(retrieval.summaries([clip for clip, _ in pairs]))
            parts += [seen, (kinds[:, :, None] * seen[:, None]).reshape(len(pairs), -1)] if len(self.kinds) > 1 else [seen]
        return np.concatenate(parts, axis=1)

    def scores(self, pairs: Sequence[Asked]) -> list[dict[str, float]]:
        return self.named(pairs, self.model.predict(self.inputs(pairs)))

    def named(self, pairs: Sequence[Asked], predicted: np.ndarray) -> list[dict[str, float]]:
        """Answer -> score, of options or of all that are known; an option that isn't known scores 0."""
        rows = predicted.reshape(len(pairs), -1).tolist()
        if not pairs[0][1].options:
            return [dict(zip(self.number, row)) for row in rows]
        return [{option: row[self.number[option]] if option in self.number else 0.0 for option in question.options}
                for (_, question), row in zip(pairs, rows)]  # fmt: skip


class CaptionRidge:
    """Options as captions: the retrieval ridge, fitted on captions and right options of train clips."""

    def __init__(self, pairs: Sequence[Asked]):
        texts: dict[str, Clip] = {}
        for clip, question in pairs:
            mine = texts.setdefault(clip.id, Clip(clip.id, list(clip.captions), clip.features, clip.source))
            mine.captions.append(question.answer)
        clips = list(texts.values())
        self.ridge = retrieval.Ridge.fit(clips, retrieval.choose_strength(clips))

    def scores(self, pairs: Sequence[Asked]) -> list[dict[str, float]]:
        return [dict(zip(question.options, self.ridge.scores(question.options, [clip])[:, 0].tolist()))
                for clip, question in pairs]  # fmt: skip
