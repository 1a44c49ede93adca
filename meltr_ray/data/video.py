"""Encoded video to arrays and back, with PyAV."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from meltr_ray.config import check


def encode_video(frames: np.ndarray, frames_per_second: int = 12, quality: int = 3) -> bytes:
    """MP4 (MPEG-4 part 2) of frames (T, H, W, 3) uint8 RGB, even H and W; `quality` 1 (best) to 31.

    MPEG-4 part 2 because FFmpeg always has its own encoder for it; one thread, so that the same frames always give the
    same bytes.
    """
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=frames_per_second)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.qmin = stream.codec_context.qmax = quality
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return memory.getvalue()


def decode_video(source: bytes | str | Path, name: str = "video") -> np.ndarray:
    """All frames of an encoded video, given as its bytes or its file: (T, H, W, 3) uint8 RGB.

    Raises ConfigError, one line that starts with `name`, where nothing can be decoded.
    """
    is_file = not isinstance(source, bytes)
    label = source if is_file else f"<{len(source)} bytes>"
    if is_file:
        check(Path(source).is_file(), name, label, "no such file; correct the path")
    reformatter = VideoReformatter()  # one for all frames: making its tables costs more than a small frame
    frames, failure = [], "it holds no video frame"
    try:
        with av.open(str(source) if is_file else io.BytesIO(source)) as container:
            if container.streams.video:
                container.streams.video[0].codec_context.thread_count = 1
                for frame in container.decode(video=0):
                    frames.append(reformatter.reformat(frame, format="rgb24").to_ndarray())
    except (av.FFmpegError, OSError, ValueError) as error:
        frames, failure = [], (str(error).splitlines() or [type(error).__name__])[0]
    check(bool(frames), name, label, f"can't be decoded ({failure}); replace the file")
    return np.stack(frames)


def evenly_spaced(num_frames: int, wanted: int) -> np.ndarray:
    """Indices (min(wanted, num_frames),) of frames in the middle of equal stretches."""
    wanted = min(wanted, num_frames)
    return ((np.arange(wanted) + 0.5) * num_frames / wanted).astype(int)
