"""Which words and frames are masked, and the decoder's inputs and targets: pure functions of arrays and a generator.

B: captions or clips, L: word pieces, F: frames, D: video feature size. Masks are bool, true at real positions.
"""

from __future__ import annotations

import numpy as np


def choose(eligible: np.ndarray, probability: float, generator: np.random.Generator) -> np.ndarray:
    """Each eligible position with `probability`, at least one in each row that has any: (B, N) bool -> (B, N) bool.

    A row without a choice is drawn again, as in the published data loaders: the distribution is that of independent
    draws given that one hits.
    """
    chosen = np.zeros_like(eligible)
    empty = eligible.any(1)
    while empty.any():
        chosen[empty] = (generator.random((empty.sum(), eligible.shape[1])) < probability) & eligible[empty]
        empty &= ~chosen.any(1)
    return chosen


def mask_words(
    ids: np.ndarray,
    special: np.ndarray,
    probability: float,
    mask_id: int,
    random_words: range,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's masking (arXiv 1810.04805, appendix A.1): of the chosen words 80 % become [MASK], 10 % a random word, 10 % stay.

    ids (B, L) int64; special (B, L) bool: [CLS], [SEP] and padding, never chosen; random_words: ids that may stand in (the
    published code takes any, special ones too). Returns masked ids (B, L) and labels (B, L): the true id of a chosen
    word, else -1.
    """
    chosen = choose(~special, probability, generator)
    labels = np.where(chosen, ids, -1)
    kind = generator.random(ids.shape)
    # without any word in the vocabulary, as of data without text, no position is eligible either
    stand_ins = generator.integers(random_words.start, random_words.stop, size=ids.shape) if random_words else ids
    masked = np.where(chosen & (kind < 0.8), mask_id, ids)
    return np.where(chosen & (kind >= 0.8) & (kind < 0.9), stand_ins, masked), labels


def mask_frames(video: np.ndarray, mask: np.ndarray, probability: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Chosen frames set to 0, as published: video (B, F, D), mask (B, F) -> masked video (B, F, D), chosen (B, F) bool."""
    chosen = choose(mask, probability, generator)
    return np.where(chosen[..., None], np.float32(0), video), chosen


def shift_captions(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decoder's inputs [CLS] w1 .. wn, their mask, and targets w1 .. wn [SEP] (-1: padding), each (B, C).

    ids, mask (B, L); C: length of the longest caption less 1.
    Differs from the published data loader where a caption is cut: its decoder sees one word more than its text encoder.
    """
    longest = int(mask.sum(1).max())
    ids, mask = ids[:, :longest], mask[:, :longest]
    return ids[:, :-1], mask[:, 1:], np.where(mask[:, 1:], ids[:, 1:], -1)


def derange(size: int, generator: np.random.Generator) -> np.ndarray:
    """A random permutation (size,) without fixed points: one random cycle; for size 1 there is none, so [0]."""
    order = generator.permutation(size)
    permutation = np.empty_like(order)
    permutation[order] = np.roll(order, 1)
    return permutation
