"""Small pictures of clips for pages that people look at."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from meltr_ray.errors import ConfigError
from meltr_ray.video.clips.clip import WHOLE, Segment
from meltr_ray.video.clips.store import ClipStore
from meltr_ray.video.clips.video import decode_frames, evenly_spaced

FRAMES, HEIGHT, QUALITY = 3, 72, 60
WIDEST = 8
"""Width of a picture over its height: JPEG has an end, and pages have, too."""


def strip(source: bytes | Path, frames: int = FRAMES, height: int = HEIGHT, segment: Segment = WHOLE) -> bytes:
    """JPEG of frames from a segment of a video, evenly spaced, side by side. Raises ConfigError where it can't be decoded."""
    chosen = decode_frames(source, lambda available: evenly_spaced(available, frames), segment=segment)
    pictures = [Image.fromarray(frame) for frame in chosen]
    width = min(max(1, round(pictures[0].width * height / pictures[0].height)), WIDEST * height)
    joined = np.concatenate([np.asarray(picture.resize((width, height))) for picture in pictures], axis=1)
    memory = io.BytesIO()
    Image.fromarray(joined).save(memory, "JPEG", quality=QUALITY)
    return memory.getvalue()


def thumbnails(folder: str | Path, split: str) -> dict[str, bytes]:
    """Clip -> strip, for each clip of a split whose video is there and can be decoded; none where the data set has no videos."""
    found: dict[str, bytes] = {}
    try:
        store = ClipStore(folder, split, videos=True)
    except ConfigError:
        return found
    for clip in store:
        try:
            found[clip.id] = strip(clip.video, segment=clip.segment)
        except (ConfigError, OSError, ValueError, MemoryError):
            continue  # the page shows a grey box; the import has said why
    return found
