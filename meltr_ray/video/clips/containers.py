"""Video files that may come from strangers: only real containers are opened, and of them nothing else than the file itself.

FFmpeg tells formats by content, and some are lists of other files or addresses (ffconcat, HLS, DASH, SDP): a file called .mp4
would show what lies elsewhere on this machine.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import av
from av.container import InputContainer

T = TypeVar("T")

FORMATS = ("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "gif", "mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc", "flv", "asf", "ogg",
           "mjpeg")  # fmt: skip
"""FFmpeg's names of demuxers that read one file."""
MOST_PIXELS = 2**26
"""Of a frame: 8192 x 8192; a header may claim any number, and a frame takes 3 bytes of each."""
MOST_BYTES = 8 * 2**30
"""Of frames that are kept of one video."""
MOST_FRAMES = 2**23
"""Of one video: 39 hours at 60 frames a second. An index may claim any number."""
MOST_SECONDS = 300.0
"""Of a core, for one reading of one video: small files can hold frames that take days to decode."""


def open_video(source: bytes | str | Path, **options: Any) -> InputContainer:
    """The container of a video, given as its bytes or its file.

    Raises:
        ValueError: it is no container of video, or claims frames that no video has.
        av.FFmpegError, OSError: it can't be read.
    """
    own = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    place = io.BytesIO(source) if isinstance(source, bytes) else f"file:{Path(source).absolute()}"
    try:
        container = av.open(place, options=own, **options)
    except av.ArgumentError:
        raise ValueError("it is no container of video, perhaps a list of other files") from None
    try:
        for stream in container.streams.video:
            check_size(stream)
    except ValueError:
        container.close()
        raise
    return container


def check_size(stream: Any) -> None:
    """Raises ValueError: a stream claims frames that are too large to decode."""
    context = stream.codec_context
    if context is None:
        return
    if context.width * context.height > MOST_PIXELS:
        raise ValueError(f"its frames are {context.width} x {context.height}")
    if not context.is_open:
        context.options = {**context.options, "max_pixels": str(MOST_PIXELS)}


def within_limits(frames: Iterable[T]) -> Iterator[T]:
    """The same frames or packets, one after the other.

    Raises:
        ValueError: there are more than any video has, or this thread takes longer than any video takes.
    """
    began = time.thread_time()  # not the clock's: the machine may be busy, or the file far away
    for number, frame in enumerate(frames):
        if number >= MOST_FRAMES:
            raise ValueError(f"it has more than {MOST_FRAMES} frames")
        yield frame
        if time.thread_time() - began > MOST_SECONDS:
            raise ValueError(f"to decode {number + 1} frames of it takes more than {MOST_SECONDS:.0f} s")


def check_kept(frames: int, width: int, height: int) -> None:
    """Raises ValueError: so many frames don't fit into memory."""
    if 3 * frames * width * height > MOST_BYTES:
        raise ValueError(f"{frames} frames of {width} x {height} take {3 * frames * width * height / 2**30:.0f} GiB")
