"""What costs nothing: chance, and a closed-form ridge regression for text-to-video retrieval.

Every caption of a video is a query on its own, ranked among all videos of the split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import svds

from meltr_ray.video.baselines.ridge import held_out
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.metrics.retrieval import rank_metrics, ranks

STRENGTHS = (30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Ridge strengths to choose from, on held-out train videos."""
LEAST_VIDEOS, LARGEST_SHARE = 5, 0.5
"""A word counts when it occurs in at least so many train videos, and at most in this share (350 of MSR-VTT's 700)."""
COMPONENTS = 60
"""Principal components of the text."""
EXACT = 2000
"""Videos or words up to which these components come from a full decomposition; an iterative one is quicker for more of both."""


@dataclass
class Text:
    """tf-idf of texts, as their first principal components."""

    words: dict[str, int]
    """Word -> column."""
    inverse_frequency: np.ndarray
    """(words,)"""
    mean: np.ndarray
    basis: np.ndarray
    """(words, components)"""

    @staticmethod
    def fit(clips: Sequence[Clip]) -> Text:
        """From a video's captions together. Raises ValueError where no word is in enough videos."""
        counts: dict[str, int] = {}
        for clip in clips:
            for word in {word for caption in clip.captions for word in split_words(caption)}:
                counts[word] = counts.get(word, 0) + 1
        telling = sorted(word for word, count in counts.items() if LEAST_VIDEOS <= count <= LARGEST_SHARE * len(clips))
        if not telling:
            raise ValueError(f"no word is in {LEAST_VIDEOS} train videos or more, and in half of them at most")
        inverse_frequency = np.log(len(clips) / np.array([counts[word] for word in telling]))
        text = Text({word: column for column, word in enumerate(telling)}, inverse_frequency, np.zeros(1), np.eye(len(telling)))
        values = text.frequencies(whole_texts(clips))
        text.mean = values.mean(0)
        text.basis = principal_components(values - text.mean)
        return text

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, components)"""
        return (self.frequencies(texts) - self.mean) @ self.basis

    def frequencies(self, texts: Sequence[str]) -> np.ndarray:
        """(N, words): tf-idf with log counts, length 1."""
        values = np.zeros((len(texts), len(self.words)))
        for at, text in enumerate(texts):
            for word in split_words(text):
                if word in self.words:
                    values[at, self.words[word]] += 1
        values = np.log1p(values) * self.inverse_frequency
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


@dataclass
class Ridge:
    """Ridge regression from a video's features to the principal components of its text."""

    text: Text
    video_mean: np.ndarray
    video_scale: np.ndarray
    weights: np.ndarray
    """(2 D, components)"""

    @staticmethod
    def fit(clips: Sequence[Clip], strength: float, text: Text | None = None) -> Ridge:
        """`text`: that of `clips`, where it is there already. Raises ValueError where no word is in enough videos."""
        text = text or Text.fit(clips)
        target, video = text(whole_texts(clips)), summaries(clips)
        ridge = Ridge(text, video.mean(0), video.std(0) + 1e-6, np.eye(1))
        video = (video - ridge.video_mean) / ridge.video_scale
        ridge.weights = np.linalg.solve(video.T @ video + strength * np.eye(video.shape[1]), video.T @ target)
        return ridge

    def videos(self, clips: Sequence[Clip]) -> np.ndarray:
        """(N, components)"""
        return ((summaries(clips) - self.video_mean) / self.video_scale) @ self.weights

    def scores(self, captions: Sequence[str], clips: Sequence[Clip]) -> np.ndarray:
        """(captions, clips) cosine."""
        return of_length_one(self.text(captions)) @ of_length_one(self.videos(clips)).T


def whole_texts(clips: Sequence[Clip]) -> list[str]:
    return [" ".join(clip.captions) for clip in clips]


def of_length_one(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def principal_components(centred: np.ndarray) -> np.ndarray:
    """The first right singular vectors (D, COMPONENTS at most) of `centred` (N, D), the first first; the same each time."""
    if min(centred.shape) <= EXACT:
        return np.linalg.svd(centred, full_matrices=False)[2][:COMPONENTS].T
    found = svds(centred, COMPONENTS, v0=np.ones(min(centred.shape)))[2]
    return found[::-1].T


def split_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def summaries(clips: Sequence[Clip]) -> np.ndarray:
    """(N, 2 D) mean and standard deviation over the frames."""
    return np.stack([np.concatenate([clip.features.mean(0), clip.features.std(0)]) for clip in clips]).astype(float)


def score_ridge(ridge: Ridge, clips: Sequence[Clip]) -> dict[str, float]:
    """Metrics of `ridge` over all captions of `clips` as single queries."""
    found = []
    for j in range(max(len(clip.captions) for clip in clips)):  # one of each at a time: all at once need much memory
        asked = np.array([at for at, clip in enumerate(clips) if len(clip.captions) > j])
        found.append(ranks(ridge.scores([clips[at].captions[j] for at in asked], clips), asked))
    return rank_metrics(np.concatenate(found))


def chance(num_clips: int) -> dict[str, float]:
    """Metrics of a random order."""
    recalls = {f"recall_at_{k}": 100 * min(1.0, k / num_clips) for k in (1, 5, 10)}
    return recalls | {"median_rank": (num_clips + 1) / 2, "mean_rank": (num_clips + 1) / 2}


def choose_strength(train: Sequence[Clip]) -> float:
    """The strength with the lowest mean rank on every fifth train video, fitted on the others."""
    out = held_out([clip.source for clip in train])
    judged, rest = ([clip for clip, chosen in zip(train, out) if chosen == wanted] for wanted in (True, False))
    text = Text.fit(rest)
    return min(STRENGTHS, key=lambda strength: score_ridge(Ridge.fit(rest, strength, text), judged)["mean_rank"])


def baselines(splits: dict[str, Sequence[Clip]]) -> dict[str, dict[str, dict[str, float]]]:
    """Split (other than train) -> "chance" and, where clips have features, "ridge" with its strength; fitted on train."""
    splits = {split: [clip for clip in clips if clip.captions] for split, clips in splits.items()}
    train = splits.pop("train")
    found = {split: {"chance": chance(len(clips))} for split, clips in splits.items()}
    if all(clip.features is not None for clips in [train, *splits.values()] for clip in clips):
        strength = choose_strength(train)
        ridge = Ridge.fit(train, strength)
        for split, clips in splits.items():
            found[split]["ridge"] = score_ridge(ridge, clips) | {"strength": strength}
    return found
