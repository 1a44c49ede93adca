"""Captions to padded ids: one a clip for a batch, or a list of them for evaluation."""

from __future__ import annotations

import numpy as np

from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.vocabulary import Vocabulary


def draw_captions(clips: list[Clip], generator: np.random.Generator) -> list[str]:
    """One caption of each clip."""
    return [clip.captions[generator.integers(len(clip.captions))] for clip in clips]


def pad_captions(captions: list[str], vocabulary: Vocabulary, max_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Word-piece ids and their mask, (B, max_words) each, padded at the end."""
    encoded = [vocabulary.encode(caption, max_words) for caption in captions]
    # not cut to the longest caption: UniVL's frames take the cross encoder's positions from `max_words` on, as published
    mask = np.arange(max_words) < np.array([len(ids) for ids in encoded])[:, None]
    ids = np.full(mask.shape, vocabulary.pad_id, dtype=np.int64)
    ids[mask] = np.concatenate(encoded)
    return ids, mask


def is_special(ids: np.ndarray, mask: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Positions that are never masked: [CLS], [SEP] and padding, the shape of `ids` and `mask`."""
    return ~mask | np.isin(ids, (vocabulary.cls_id, vocabulary.sep_id))
