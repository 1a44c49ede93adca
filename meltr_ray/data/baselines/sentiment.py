"""Sentiment: the constant answer, and ridge regression from each modality alone and from all together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from meltr_ray.data.baselines.retrieval import summaries
from meltr_ray.data.baselines.ridge import fit_ridge
from meltr_ray.data.clip import Clip
from meltr_ray.metrics.sentiment import metrics

MOST_WORDS = 2000
"""The most frequent words and pairs of words that ridge is fitted on."""


def baselines(splits: dict[str, Sequence[Clip]]) -> dict[str, dict[str, dict[str, float]]]:
    """Split (other than train) -> the train median, and ridge on the words, on audio and on video features, and on all that there is."""
    splits = {split: [clip for clip in clips if clip.score is not None] for split, clips in splits.items()}
    truth = {split: np.array([clip.score for clip in clips]) for split, clips in splits.items()}
    judged = [split for split in splits if split != "train"]
    groups = [clip.source for clip in splits["train"]]

    def error(predicted: np.ndarray, rows: np.ndarray) -> float:
        return float(np.abs(predicted - truth["train"][rows]).mean())

    constant = float(np.median(truth["train"]))
    found = {split: {"constant": metrics(np.full(len(truth[split]), constant), truth[split])} for split in judged}
    for name, x in modalities(splits).items():
        model, strength = fit_ridge(x["train"], truth["train"], groups, error)
        for split in judged:
            found[split][name] = metrics(model.predict(x[split]).clip(-3, 3), truth[split]) | {"strength": strength}
    return found


def modalities(splits: dict[str, Sequence[Clip]]) -> dict[str, dict[str, np.ndarray]]:
    """Name of a ridge -> split -> inputs (N, D), with words and pairs of words by tf-idf; `ridge` has all modalities."""
    everything = [clip for clips in splits.values() for clip in clips]
    parts = {}
    if all(clip.transcript is not None for clip in everything):
        words = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), token_pattern=r"\w+", max_features=MOST_WORDS).fit([clip.transcript for clip in splits["train"]])
        parts["ridge, words"] = {split: words.transform([c.transcript for c in clips]).toarray() for split, clips in splits.items()}
    if all(clip.audio is not None for clip in everything):
        parts["ridge, audio"] = {split: np.stack([c.audio.mean(0) for c in clips]).astype(float) for split, clips in splits.items()}
    if all(clip.features is not None for clip in everything):
        parts["ridge, video"] = {split: summaries(clips) for split, clips in splits.items()}
    if parts:
        parts["ridge"] = {split: np.concatenate([part[split] for part in parts.values()], axis=1) for split in splits}
    return parts
