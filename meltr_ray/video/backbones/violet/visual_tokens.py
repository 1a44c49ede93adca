"""Visual tokens, the targets of VIOLET's masked visual tokens: patches of a frame, each as the number of its nearest centroid.

The authors take the codes of DALL-E's discrete VAE (Ramesh et al., arXiv 2102.12092), whose weights aren't to be had here.
k-means over patches of train frames stands in for it; clips that come with DALL-E's codes keep those (`token_grid`).

B: clips, T: frames, h, w: rows and columns of patches, k: centroids, D = 3 side^2: values of a shrunk patch.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from meltr_ray.errors import check
from meltr_ray.storage import put
from meltr_ray.storage.sealed import sha256
from meltr_ray.video.clips.pixels import violet_clip
from meltr_ray.video.clips.store import ClipStore
from meltr_ray.video.datasets.pickles import read_pickle

SIDE = 8
"""Pixels a side that a patch is shrunk to, as for DALL-E's codes: frames of 224 become 56, of which a code covers 8 x 8."""
MAX_PATCHES = 200_000
"""Patches that k-means sees at most; with D = 192, 150 MB."""
BLOCK = 1 << 22
"""Distances held at once (float32)."""


@dataclass
class VisualTokens:
    """The fitted tokens.

    Centroids are whole numbers of 0 to 255, so that distances to them are exact in float32 (below 2^24 for D = 192): every
    machine and number of threads gives the same tokens.
    """

    centroids: np.ndarray
    """(k, D) uint8."""
    patch_pixels: int
    """Side of a patch in the frame: a multiple of 8, or less than 8."""

    @staticmethod
    def fit(frames: Iterable[np.ndarray], patch_pixels: int, num_tokens: int, seed: int = 0) -> VisualTokens:
        """k-means (mini-batches, one thread) over the patches of train frames, arrays (..., 3, size, size) uint8."""
        from sklearn.cluster import MiniBatchKMeans  # takes seconds, and a data set is fitted once

        patches = np.concatenate([shrunk_patches(part, patch_pixels).reshape(-1, _length(patch_pixels)) for part in frames])
        if len(patches) > MAX_PATCHES:
            patches = np.random.default_rng(seed).choice(patches, MAX_PATCHES, replace=False)
        check(num_tokens <= len(patches), "num_tokens", num_tokens, f"needs as many patches and there are {len(patches)}; "
              "lower it or give more clips")  # fmt: skip
        with threadpool_limits(1):  # sums in another order give other centroids
            means = MiniBatchKMeans(num_tokens, batch_size=4096, n_init=1, random_state=seed, compute_labels=False)
            centroids = means.fit(patches.astype(np.float32)).cluster_centers_
        return VisualTokens(np.rint(centroids).clip(0, 255).astype(np.uint8), patch_pixels)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Frames (..., 3, size, size) uint8 to tokens (..., h, w) int64."""
        patches = shrunk_patches(frames, self.patch_pixels)
        rows = patches.reshape(-1, patches.shape[-1]).astype(np.float32) - 128
        centroids = self.centroids.astype(np.float32) - 128
        lengths, tokens = (centroids**2).sum(1), np.empty(len(rows), np.int64)
        step = max(1, BLOCK // len(centroids))
        for start in range(0, len(rows), step):  # |x - c|^2 without |x|^2, which is the same for all c
            tokens[start : start + step] = (lengths - 2 * rows[start : start + step] @ centroids.T).argmin(1)
        return tokens.reshape(patches.shape[:-1])

    def save(self, path: Path, made_from: str = "") -> None:
        """Write an .npz file, whole or not at all."""
        put(path, lambda file: np.savez(file, centroids=self.centroids, patch_pixels=self.patch_pixels, made_from=made_from))
        put(path.with_suffix(".sha256"), sha256(path))

    @staticmethod
    def load(path: Path, made_from: str = "") -> VisualTokens | None:
        """Tokens that `save` wrote; None where there is no whole file, or one made from something else."""
        try:
            if path.with_suffix(".sha256").read_text(encoding="utf-8") != sha256(path):
                return None
            with np.load(path, allow_pickle=False) as stored:
                found = VisualTokens(stored["centroids"], int(stored["patch_pixels"]))
                return found if str(stored["made_from"]) == made_from else None
        except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            return None


def ensure_visual_tokens(
    folder: str | Path,
    size: int,
    patch_pixels: int,
    num_tokens: int,
    num_frames: int = 5,
    clips: int = 300,
    report: Callable[[str], None] = print,
) -> VisualTokens:
    """The tokens of a prepared data folder for frames of `size` pixels, fitted to `clips` train clips where it has none yet.

    They belong to the data, not to a run, so their seed is fixed. Two processes may do this at once: both write the same.
    Raises ConfigError where the folder has no videos or too few patches.
    """
    path = Path(folder) / f"visual_tokens-{num_frames}x{size}-{patch_pixels}-{num_tokens}.npz"
    store = ClipStore(folder, "train", videos=True)
    made_from = f"{store.checksum} {num_frames} frames of {clips} clips, of their segments"
    if (tokens := VisualTokens.load(path, made_from)) is None:
        chosen = np.sort(np.random.default_rng(0).permutation(len(store))[:clips])
        report(f"visual tokens: k-means with {num_tokens} centroids on {len(chosen)} train clips, once, to {path}")
        train_clips = (store[int(index)] for index in chosen)
        videos = (violet_clip(clip.video, num_frames, size, clip.segment) for clip in train_clips)
        tokens = VisualTokens.fit(videos, patch_pixels, num_tokens)
        tokens.save(path, made_from)
    return tokens


def shrunk_patches(frames: np.ndarray, patch_pixels: int) -> np.ndarray:
    """Frames (..., 3, size, size) uint8 to their patches (..., h, w, D) uint8, block means of at most 8 x 8 pixels each."""
    side = min(patch_pixels, SIDE)
    cell, grid = patch_pixels // side, frames.shape[-1] // patch_pixels
    assert frames.dtype == np.uint8 and side * cell * grid == frames.shape[-1], (frames.dtype, frames.shape, patch_pixels)
    blocks = frames.reshape(*frames.shape[:-2], grid, side, cell, grid, side, cell)
    means = (blocks.sum((-4, -1), dtype=np.uint32) + cell * cell // 2) // cell**2
    return np.moveaxis(means.astype(np.uint8), (-4, -2), (-5, -4)).reshape(*frames.shape[:-3], grid, grid, -1)


def token_grid(tokens: np.ndarray, num_frames: int, rows: int, columns: int) -> np.ndarray:
    """Stored tokens of a clip, row-major (`schema`'s `vq_tokens`), to (T, h, w) int64; ConfigError where they don't fit."""
    tokens = np.asarray(tokens, np.int64)
    check(tokens.size == num_frames * rows * columns, "vq_tokens", f"<{tokens.size}>", f"the model takes {num_frames} frames of "
          f"{rows} x {columns} patches; use the number of frames and the size that they were made for")  # fmt: skip
    return tokens.reshape(num_frames, rows, columns)


def read_dalle_tokens(path: str | Path) -> dict[str, np.ndarray]:
    """VIOLET's own file of DALL-E's codes: name of a clip -> (T, h, w) int16 (published: 5 frames of 7 x 7).

    Raises ConfigError where the file is damaged, holds something else or may run code.
    """
    content = read_pickle(path)
    whole = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(codes, np.ndarray) and codes.ndim == 3 and codes.dtype == np.int16
        for name, codes in content.items()
    )
    check(whole, "pickle", path, "holds no int16 codes (T, h, w) by clip; give the file of VIOLET's extract_vq.py")
    return content


def _length(patch_pixels: int) -> int:
    return 3 * min(patch_pixels, SIDE) ** 2
