"""Encoded video to arrays and back, with PyAV."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
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
    """All frames of an encoded video, given as its bytes or its file: (T, H, W, 3) uint8 RGB, upright.

    Raises ConfigError, one line that starts with `name`, where nothing can be decoded.
    """
    with _opened(source, name) as container:
        convert = Converter()
        frames = [convert(frame) for frame in container.decode(video=0)]
        if not frames:
            raise ValueError("it holds no video frame")
        return np.stack(frames)


def decode_frames(
    source: bytes | str | Path, choose: Callable[[int], np.ndarray], side: int | None = None, name: str = "video"
) -> np.ndarray:
    """Frames number `choose(N)` of a video of N frames: (n, H, W, 3) uint8 RGB, upright.

    N counts frames, not time, and is the number that can be decoded, whatever the container says; `choose` returns (n,)
    indices below N in any order, repeats allowed. Only those frames are converted and kept. With `side`, they are scaled to
    (n, side, side, 3) on the way, their aspect ratio lost. Raises ConfigError as `decode_video` does.
    """
    with _opened(source, name) as container:
        num_frames = sum(packet.size > 0 for packet in container.demux(video=0))
    while True:
        wanted = choose(max(num_frames, 1)).tolist()
        with _opened(source, name) as container:
            convert, decoded, kept = Converter(side), 0, {}
            for frame in container.decode(video=0):
                if decoded in wanted:
                    kept[decoded] = convert(frame)
                decoded += 1
            if not decoded:
                raise ValueError("it holds no video frame")
        if decoded == num_frames:
            return np.stack([kept[index] for index in wanted])
        num_frames = decoded  # a packet gives one frame as a rule; hidden or damaged ones give none


class Converter:
    """Decoded frames to (H, W, 3) uint8 RGB, turned as the file says, all of the first one's size or of `side` squared."""

    def __init__(self, side: int | None = None):
        self.size = (side, side) if side else None
        self.reformatter = VideoReformatter()  # one for all frames: making its tables costs more than a small frame

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        self.size = self.size or (frame.width, frame.height)
        width, height = self.size
        image = self.reformatter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR").to_ndarray()
        return np.rot90(image, frame.rotation // 90)


@contextmanager
def _opened(source: bytes | str | Path, name: str) -> Iterator[InputContainer]:
    """The container of a video, to be decoded on one thread; what PyAV raises inside ends as a ConfigError of one line."""
    is_file = not isinstance(source, bytes)
    label = source if is_file else f"<{len(source)} bytes>"
    if is_file:
        check(Path(source).is_file(), name, label, "no such file; correct the path")
    try:
        with av.open(str(source) if is_file else io.BytesIO(source)) as container:
            if not container.streams.video:
                raise ValueError("it holds no video")
            container.streams.video[0].codec_context.thread_count = 1
            yield container
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        check(False, name, label, f"can't be decoded ({reason}); replace the file")


def evenly_spaced(num_frames: int, wanted: int) -> np.ndarray:
    """Indices (min(wanted, num_frames),) of frames in the middle of equal stretches."""
    wanted = min(wanted, num_frames)
    return ((np.arange(wanted) + 0.5) * num_frames / wanted).astype(int)
