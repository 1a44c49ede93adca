"""Images of a clip as one video, without encoding them anew."""

from __future__ import annotations

import base64
import io

import av

from meltr_ray.video.clips.containers import check_size

FRAMES_PER_SECOND = 1
"""Of the video; files of images don't say which moments they show."""


def joined(images: list[str]) -> bytes:
    """JPEG images in base64 as one Matroska video of these very bytes (MJPEG); no bytes where one of them is no image."""
    try:
        jpegs = [base64.b64decode(image, validate=True) for image in images]
        sizes = [_size(jpeg) for jpeg in jpegs]
    except (TypeError, ValueError, av.FFmpegError, StopIteration, MemoryError):
        return b""
    if not sizes:
        return b""
    memory = io.BytesIO()
    bare = {"fflags": "+bitexact"}  # without a random number, so that equal images give equal bytes
    with av.open(memory, "w", format="matroska", options=bare) as container:
        stream = container.add_mux_stream("mjpeg", rate=FRAMES_PER_SECOND, width=sizes[0][0], height=sizes[0][1])
        container.start_encoding()  # it fixes the stream's time base
        step = round(1 / (FRAMES_PER_SECOND * stream.time_base))
        for at, jpeg in enumerate(jpegs):
            packet = av.Packet(jpeg)
            packet.stream, packet.time_base, packet.is_keyframe = stream, stream.time_base, True
            packet.pts, packet.dts, packet.duration = at * step, at * step, step
            container.mux(packet)
    return memory.getvalue()


def _size(jpeg: bytes) -> tuple[int, int]:
    with av.open(io.BytesIO(jpeg), format="mjpeg") as container:
        check_size(container.streams.video[0])
        frame = next(container.decode(video=0))
    return frame.width, frame.height
