"""Which blocks of patches and which words VIOLET masks: pure functions of arrays and a generator.

B: clips, T: frames, h, w: rows and columns of patches, L: word pieces, O: options of a question. No loop over examples,
where the published code has one; from equal random draws these give equal masks.
"""

from __future__ import annotations

import numpy as np

from meltr_ray.video.clips import masking


def draw_blocks(num_clips: int, grid: tuple[int, int, int], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Starts and sizes (B, T, 3) of T random blocks a clip on a `grid` (T, h, w), as published.

    A block is at most T - 1 frames (one of a single frame), and below two thirds of the rows and of the columns. Differs
    from the published code in that a grid with less than three rows or columns has blocks of one, instead of an error.
    """
    frames, rows, columns = grid
    highs = np.maximum((frames, rows * 2 // 3, columns * 2 // 3), 2)  # exclusive
    sizes = generator.integers(1, highs, size=(num_clips, frames, 3))
    return generator.integers(0, np.array(grid) - sizes + 1), sizes


def cover(starts: np.ndarray, sizes: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Patches in at least one of the K blocks of their clip: (B, K, 3) each -> (B, T, h, w) bool."""
    inside = [
        (starts[..., axis, None] <= np.arange(length)) & (np.arange(length) < (starts + sizes)[..., axis, None])
        for axis, length in enumerate(grid)
    ]
    return np.einsum("bkt,bkh,bkw->bthw", *inside)  # of bools: products are `and`, sums are `or`


def hide_pixels(frames: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Frames (B, T, 3, rows, columns) with masked patches (B, T, h, w) black; rows and columns are multiples of h and w."""
    height, width = frames.shape[3] // masked.shape[2], frames.shape[4] // masked.shape[3]
    pixels = masked.repeat(height, axis=2).repeat(width, axis=3)
    return np.where(pixels[:, :, None], frames.dtype.type(0), frames)


def label_patches(tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Visual tokens and masked patches (B, T, h, w) -> labels (B, T (1 + h w)) int64: the token where masked, else -1.

    Each frame begins with a position of its own, which has no token.
    """
    labels = np.where(masked, tokens.astype(np.int64), -1).reshape(*tokens.shape[:2], -1)
    return np.pad(labels, ((0, 0), (0, 0), (1, 0)), constant_values=-1).reshape(len(tokens), -1)


def hide_words(
    ids: np.ndarray, special: np.ndarray, probability: float, mask_id: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each chosen word becomes [MASK], as VIOLET has it (without BERT's random and kept words).

    ids (B, L) int64; special (B, L) bool: [CLS], [SEP] and padding, never chosen. Returns masked ids and labels (B, L): the
    true id of a chosen word, else -1. Differs from the published code in that a text without words stays as it is; there,
    the search for one never ends.
    """
    chosen = masking.choose(~special, probability, generator)
    return np.where(chosen, mask_id, ids), np.where(chosen, ids, -1)


def hide_options(
    ids: np.ndarray, special: np.ndarray, probability: float, mask_id: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Masking of multiple choice as published, a fault kept for its numbers: (B, O, L) -> masked ids and labels (B, O, L).

    Positions are drawn once for all options of a question, then read as numbers of options: each option in which a word was
    drawn is [MASK] from end to end, special pieces and padding too, and so are its labels where more than one was drawn.
    For masking as meant, give `hide_words` the options as rows.
    """
    drawn = np.zeros_like(special)
    empty = (~special).any((1, 2))
    while empty.any():
        draw = generator.random((empty.sum(), 1, ids.shape[2])) < probability
        drawn[empty] = draw & ~special[empty]
        empty &= ~drawn.any((1, 2))
    return read_as_options(ids, drawn, mask_id)


def read_as_options(ids: np.ndarray, drawn: np.ndarray, mask_id: int) -> tuple[np.ndarray, np.ndarray]:
    """What the published multiple choice makes of `drawn` words (B, O, L): masked ids and labels, see `hide_options`."""
    counts = drawn.sum(2, keepdims=True)
    labels = np.where(counts == 1, ids, np.where(counts > 1, mask_id, -1))
    return np.where(counts > 0, mask_id, ids), labels
