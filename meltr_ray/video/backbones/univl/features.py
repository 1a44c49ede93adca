"""Rows of frame and audio features as UniVL reads them. B: clips, F: rows of a clip, D: their size, A: that of audio."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from meltr_ray.video.clips.clip import Clip

AUDIO_REACH = 5.0
"""Standardised audio is cut to this many standard deviations."""


@dataclass(frozen=True)
class AudioScale:
    """Mean and standard deviation (A,) of each audio feature over train."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, clips: Iterable[Clip]) -> Self | None:
        """Over the rows of all clips, one held at a time, which should be those of train; None where there is no audio."""
        scaler = None
        for clip in clips:
            if clip.audio is not None and len(clip.audio):
                scaler = scaler or _scaler()
                scaler.partial_fit(clip.audio.astype(np.float64))
        return None if scaler is None else cls(scaler.mean_, scaler.scale_)

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """(rows, A) -> the same, standardised and cut to `AUDIO_REACH`, float32."""
        return ((audio - self.mean) / self.deviation).clip(-AUDIO_REACH, AUDIO_REACH).astype(np.float32)


def _scaler() -> Any:
    from sklearn.preprocessing import StandardScaler  # takes seconds, and few data sets have audio

    return StandardScaler()


def pad_rows(clips: list[np.ndarray | None], max_rows: int, size: int = 0, length: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (B, F, D) and their mask (B, F); of a longer clip, the rows in the middle of `max_rows` equal parts.

    `size`: D where no clip has any; `length`: F at least. Without any features at all F and D are 0.
    Differs from the published data loader, which takes the first `max_rows`.
    """
    size = next((clip.shape[1] for clip in clips if clip is not None), size)
    lengths = np.array([0 if clip is None else min(len(clip), max_rows) for clip in clips])
    mask = np.arange(max(lengths.max(), length if size else 0)) < lengths[:, None]
    padded = np.zeros((*mask.shape, size), dtype=np.float32)
    for row, (clip, length) in enumerate(zip(clips, lengths)):
        if length:
            padded[row, :length] = clip[(2 * np.arange(length) + 1) * len(clip) // (2 * length)]
    return padded, mask
