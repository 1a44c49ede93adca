"""The fixed extractor of the embedded data: principal components of image patches, fitted on train frames alone.

A frame is averaged down to 32 x 32 and cut into 4 x 4 patches of 8 x 8 x 3; each patch becomes its first 8 principal
components (one basis for all places) and the 16 patches follow each other: D = 128, each standardised over train
frames. It has seen no text and no label, and does no more than describe what is where: recognising and following
digits is left to the backbone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIDE, PATCH, COMPONENTS = 32, 8, 8
DESCRIPTION = (
    f"12 frames a clip, each averaged to {SIDE}x{SIDE} RGB, {PATCH}x{PATCH} patches, first {COMPONENTS} principal "
    f"components of a patch (one basis for all places, fitted on train frames), standardised; no text, no labels"
)


@dataclass
class FrameFeatures:
    """The fitted extractor."""

    patch_mean: np.ndarray
    """(192,)"""
    basis: np.ndarray
    """(192, components), orthonormal columns."""
    mean: np.ndarray
    """(D,) over train frames, before standardising."""
    scale: np.ndarray
    """(D,) standard deviation over train frames."""

    @staticmethod
    def fit(frames: np.ndarray) -> FrameFeatures:
        """From train frames (N, H, W, 3) uint8."""
        patches = _patches(frames).reshape(-1, PATCH * PATCH * 3)
        mean = patches.mean(0)
        centred = patches - mean
        _, vectors = np.linalg.eigh((centred.T @ centred) / len(centred))
        basis = vectors[:, ::-1][:, :COMPONENTS]
        basis = basis * np.sign(basis[np.abs(basis).argmax(0), np.arange(COMPONENTS)])  # eigh leaves the sign open
        raw = FrameFeatures(mean, basis, np.zeros(1, np.float32), np.ones(1, np.float32))(frames)
        return FrameFeatures(mean, basis, raw.mean(0), raw.std(0) + 1e-6)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 to features (T, D) float32."""
        projected = (_patches(frames) - self.patch_mean) @ self.basis
        return (projected.reshape(len(frames), -1) - self.mean) / self.scale

    def save(self, path: Path) -> None:
        np.savez(path, description=np.array(DESCRIPTION), **vars(self))

    @staticmethod
    def load(path: Path) -> FrameFeatures:
        with np.load(path, allow_pickle=False) as stored:
            return FrameFeatures(*(stored[name] for name in ("patch_mean", "basis", "mean", "scale")))


def shrink(frames: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8 to (T, 32, 32, 3) uint8 by averaging blocks; H and W are multiples of 32."""
    num_frames, height, width, _ = frames.shape
    assert height % SIDE == 0 and width % SIDE == 0, frames.shape
    blocks = frames.reshape(num_frames, SIDE, height // SIDE, SIDE, width // SIDE, 3)
    return np.rint(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)


def _patches(frames: np.ndarray) -> np.ndarray:
    """(T, 16, 192) float32 in 0 to 1, places row by row."""
    small = frames if frames.shape[1:3] == (SIDE, SIDE) else shrink(frames)
    grid = SIDE // PATCH
    cut = small.reshape(len(small), grid, PATCH, grid, PATCH, 3).swapaxes(2, 3)
    return cut.reshape(len(small), grid * grid, -1).astype(np.float32) / 255
