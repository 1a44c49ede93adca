"""Pixels for VIOLET and All-in-one: which frames of a video, and how they become squares, as their authors have it.

T: frames. Functions are pure: what is random comes from a generator. Pixels stay uint8 until they enter a model, which takes
`unit_range` of them (VIOLET, which normalises by itself) or `normalised` (All-in-one).

Differs from the published code in: VIOLET's frames aren't stored as JPEG in between (0.6 to 4 of 255, mean absolute
difference); a video shorter than All-in-one's number of frames repeats some, where the published code fails; All-in-one reads
GIFs (TGIF) like any other video, that is as squares.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from meltr_ray.video.clips.clip import WHOLE, Segment
from meltr_ray.video.clips.video import decode_frames

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
"""Red, green and blue, of pixels in [0, 1]."""
MARGIN = 1.2
"""All-in-one scales frames to this times the size that it cuts out."""
DECODED_SIDE, PUBLISHED_SIZE = 512, 224
"""All-in-one decodes to squares of 512 pixels for models of 224; other sizes keep the ratio."""


def violet_clip(source: bytes | str | Path, num_frames: int, size: int, segment: Segment = WHOLE) -> np.ndarray:
    """A segment of an encoded video or its file to (num_frames, 3, size, size) uint8, the same in training and evaluation."""
    frames = decode_frames(source, lambda available: violet_frames(available, num_frames), segment=segment)
    return violet_pixels(frames, size)


def violet_frames(available: int, num_frames: int) -> np.ndarray:
    """Indices (num_frames,) of frames between equal stretches of a video of `available`; they repeat where it is shorter.

    The frames that VIOLET's own files hold, 5 a video.
    """
    return available * np.arange(1, num_frames + 1) // (num_frames + 1)


def violet_pixels(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames (T, H, W, 3) uint8, the shorter side padded with black, scaled to (T, 3, size, size) uint8.

    An odd difference of the sides leaves one pixel unpadded, as published.
    """
    height, width = frames.shape[1:3]
    rows, columns = max(width - height, 0) // 2, max(height - width, 0) // 2
    return _scale(np.pad(frames, ((0, 0), (rows, rows), (columns, columns), (0, 0))), size).transpose(0, 3, 1, 2)


def allinone_clip(
    source: bytes | str | Path,
    num_frames: int,
    size: int,
    frame_generator: np.random.Generator | None = None,
    crop_generator: np.random.Generator | None = None,
    segment: Segment = WHOLE,
) -> np.ndarray:
    """A segment of an encoded video or its file to (num_frames, 3, size, size) uint8.

    Published: training takes random frames and crops; the retrieval metrics random frames and the central crop, and average
    the similarities of three such views; `test` splits neither.
    """
    side = size * DECODED_SIDE // PUBLISHED_SIZE
    chosen = partial(allinone_frames, num_frames=num_frames, generator=frame_generator)
    frames = decode_frames(source, chosen, side, segment=segment)
    return allinone_pixels(frames, size, crop_generator)


def allinone_frames(available: int, num_frames: int, generator: np.random.Generator | None = None) -> np.ndarray:
    """Indices (num_frames,), one from each of equal stretches of a video of `available`: its middle, or at random.

    As published, a random one is never the last of its stretch, unless the stretch has no other.
    """
    edges = np.linspace(0, available, num_frames + 1).astype(int)
    first, last = edges[:-1], np.maximum(edges[1:] - 1, edges[:-1])
    return (first + last) // 2 if generator is None else generator.integers(first, np.maximum(last, first + 1))


def allinone_pixels(frames: np.ndarray, size: int, generator: np.random.Generator | None = None) -> np.ndarray:
    """Frames (T, H, W, 3) uint8, scaled to squares a fifth larger and cut to (T, 3, size, size) uint8.

    One place for all frames of the clip: the middle, or drawn from the generator. The aspect ratio is lost, as published.
    """
    side = int(size * MARGIN)
    spare = side - size
    left, top = (round(spare / 2),) * 2 if generator is None else generator.integers(0, spare + 1, size=2)
    return _scale(frames, side)[:, top : top + size, left : left + size].transpose(0, 3, 1, 2)


def unit_range(pixels: np.ndarray) -> np.ndarray:
    """(..., 3, rows, columns) uint8 to float32 in [0, 1]."""
    return pixels.astype(np.float32) / 255


def normalised(pixels: np.ndarray) -> np.ndarray:
    """(..., 3, rows, columns) uint8 to float32 of ImageNet's mean 0 and standard deviation 1, by colour."""
    return (unit_range(pixels) - IMAGENET_MEAN[:, None, None]) / IMAGENET_DEVIATION[:, None, None]


def _scale(frames: np.ndarray, side: int) -> np.ndarray:
    """(T, H, W, 3) to (T, side, side, 3) uint8, bilinear over all pixels that a new one covers."""
    images = [Image.fromarray(frame).resize((side, side), Image.Resampling.BILINEAR) for frame in frames]
    return np.stack([np.asarray(image) for image in images])
