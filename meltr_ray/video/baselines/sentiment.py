"""Sentiment: the constant answer, and ridge regression from each modality alone and from all together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from meltr_ray.video.baselines.retrieval import summaries
from meltr_ray.video.baselines.ridge import Scale, fit_ridge
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.metrics.sentiment import metrics

MOST_WORDS = 2000
"""The most frequent words, that ridge is fitted on."""


def baselines(splits: dict[str, Sequence[Clip]]) -> dict[str, dict[str, dict[str, float]]]:
    """Split (other than train) -> metrics of the train median, and of ridge on words, audio, frame features, and all of them."""
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
    """Name of a ridge -> split -> inputs (N, D): tf-idf of words, mean audio, mean and deviation of frames; `ridge` has all."""
    everything = [clip for clips in splits.values() for clip in clips]
    parts = {}
    if all(clip.transcript is not None for clip in everything):
        words = TfidfVectorizer(sublinear_tf=True, min_df=2, token_pattern=r"\w+", max_features=MOST_WORDS)
        words = words.fit([clip.transcript for clip in splits["train"]])
        said = {split: [clip.transcript for clip in clips] for split, clips in splits.items()}
        parts["ridge, words"] = {split: words.transform(texts).toarray() for split, texts in said.items()}
    if all(clip.audio is not None for clip in everything):
        parts["ridge, audio"] = scaled({split: np.stack([c.audio.mean(0) for c in clips]) for split, clips in splits.items()})
    if all(clip.features is not None for clip in everything):
        parts["ridge, video"] = scaled({split: summaries(clips) for split, clips in splits.items()})
    if parts:
        parts["ridge"] = {split: np.concatenate([part[split] for part in parts.values()], axis=1) for split in splits}
    return parts


def scaled(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    scale = Scale.fit(part["train"].astype(float))
    return {split: scale(x.astype(float)) for split, x in part.items()}
