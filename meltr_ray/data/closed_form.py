"""What costs nothing: chance, and a closed-form ridge regression for text-to-video retrieval.

Every caption of a video is a query on its own: for caption index j one query a video, ranked among all videos of the
split; the metrics of the j's are averaged, each by its number of queries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meltr_ray.data.store import Clip, ClipStore

STRENGTHS = (30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Ridge strengths to choose from, on held-out train videos."""
LEAST_VIDEOS, LARGEST_SHARE = 5, 0.5
"""A word counts when it occurs in at least so many train videos, and at most in this share (350 of MSR-VTT's 700)."""
COMPONENTS = 60
"""Principal components of the text."""


@dataclass
class Ridge:
    """Ridge regression from a video's features to the principal components of its text."""

    words: dict[str, int]
    """Word -> column."""
    inverse_frequency: np.ndarray
    """(words,)"""
    text_mean: np.ndarray
    text_basis: np.ndarray
    """(words, components)"""
    video_mean: np.ndarray
    video_scale: np.ndarray
    weights: np.ndarray
    """(2 D, components)"""

    @staticmethod
    def fit(clips: Sequence[Clip], strength: float) -> Ridge:
        """tf-idf of a video's captions together, its first principal components; ridge from mean and std of features."""
        counts: dict[str, int] = {}
        for clip in clips:
            for word in {word for caption in clip.captions for word in split_words(caption)}:
                counts[word] = counts.get(word, 0) + 1
        most = LARGEST_SHARE * len(clips)
        telling = sorted(word for word, count in counts.items() if LEAST_VIDEOS <= count <= most)
        words = {word: column for column, word in enumerate(telling)}
        inverse_frequency = np.log(len(clips) / np.array([counts[word] for word in words]))
        ridge = Ridge(words, inverse_frequency, np.zeros(len(words)), np.eye(len(words)), np.zeros(1), np.ones(1), np.eye(1))
        text = ridge.texts([" ".join(clip.captions) for clip in clips])
        ridge.text_mean = text.mean(0)
        ridge.text_basis = np.linalg.svd(text - ridge.text_mean, full_matrices=False)[2][:COMPONENTS].T
        target = (text - ridge.text_mean) @ ridge.text_basis
        video = _summaries(clips)
        ridge.video_mean, ridge.video_scale = video.mean(0), video.std(0) + 1e-6
        video = (video - ridge.video_mean) / ridge.video_scale
        ridge.weights = np.linalg.solve(video.T @ video + strength * np.eye(video.shape[1]), video.T @ target)
        return ridge

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, components): tf-idf with log counts, length 1, then the principal components."""
        values = np.zeros((len(texts), len(self.words)))
        for at, text in enumerate(texts):
            for word in split_words(text):
                if word in self.words:
                    values[at, self.words[word]] += 1
        values = np.log1p(values) * self.inverse_frequency
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        return (values - self.text_mean) @ self.text_basis

    def videos(self, clips: Sequence[Clip]) -> np.ndarray:
        """(N, components)"""
        return ((_summaries(clips) - self.video_mean) / self.video_scale) @ self.weights

    def scores(self, captions: Sequence[str], clips: Sequence[Clip]) -> np.ndarray:
        """(captions, clips) cosine."""
        text, video = self.texts(captions), self.videos(clips)
        text, video = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (text, video))
        return text @ video.T


def split_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _summaries(clips: Sequence[Clip]) -> np.ndarray:
    """(N, 2 D) mean and standard deviation over the frames."""
    return np.stack([np.concatenate([clip.features.mean(0), clip.features.std(0)]) for clip in clips]).astype(float)


def ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank (queries,) from 1 of video right[i] in row i of scores (queries, videos).

    A tie counts as half won, so that a constant score has the middle rank and never a hit.
    """
    own = np.take_along_axis(scores, right[:, None], 1)
    return 1 + (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2


def metrics(rank: np.ndarray) -> dict[str, float]:
    """Recalls in percent, and ranks."""
    recalls = {f"recall_at_{k}": 100 * float((rank <= k).mean()) for k in (1, 5, 10)}
    return recalls | {"median_rank": float(np.median(rank)), "mean_rank": float(rank.mean())}


def score_ridge(ridge: Ridge, clips: Sequence[Clip]) -> dict[str, float]:
    """Metrics of `ridge` over all captions of `clips` as single queries."""
    by_index, sizes = [], []
    for j in range(max(len(clip.captions) for clip in clips)):
        asked = np.array([at for at, clip in enumerate(clips) if len(clip.captions) > j])
        by_index.append(metrics(ranks(ridge.scores([clips[at].captions[j] for at in asked], clips), asked)))
        sizes.append(len(asked))
    return {name: float(np.average([row[name] for row in by_index], weights=sizes)) for name in by_index[0]}


def chance(num_clips: int) -> dict[str, float]:
    """Metrics of a random order."""
    recalls = {f"recall_at_{k}": 100 * min(1.0, k / num_clips) for k in (1, 5, 10)}
    return recalls | {"median_rank": (num_clips + 1) / 2, "mean_rank": (num_clips + 1) / 2}


def choose_strength(train: Sequence[Clip]) -> float:
    """The strength with the lowest mean rank on every fifth train video, fitted on the others."""
    held_out, rest = train[::5], [clip for at, clip in enumerate(train) if at % 5]
    return min(STRENGTHS, key=lambda strength: score_ridge(Ridge.fit(rest, strength), held_out)["mean_rank"])


def closed_form_baselines(folder: str | Path) -> dict[str, dict[str, dict[str, float]]]:
    """{"validation" and "test": {"chance": metrics, "ridge": metrics and the strength}}; fitted on the train split."""
    clips = {split: list(ClipStore(folder, split)) for split in ("train", "validation", "test")}
    strength = choose_strength(clips["train"])
    ridge = Ridge.fit(clips["train"], strength)
    return {
        split: {"chance": chance(len(clips[split])), "ridge": score_ridge(ridge, clips[split]) | {"strength": strength}}
        for split in ("validation", "test")
    }
