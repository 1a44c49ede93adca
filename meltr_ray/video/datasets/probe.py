"""What an encoded video holds, seen without decoding more than its first frame."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from meltr_ray.video.clips.containers import open_video
from meltr_ray.video.clips.video import make_timeline, packet_times
from meltr_ray.video.datasets.confined import Confined, NotRead

SECONDS, BYTES_A_SECOND = 60.0, 2 * 2**20
"""That a probe may take: from a network folder, on a busy machine."""
MEMORY_BYTES = 6 * 2**30
"""Address space of a process that probes, libraries included."""
SLACK = 0.05
"""Share of a video's stated length that may be missing at its end; below half a second never counts."""


@dataclass(frozen=True)
class Probe:
    """Size of a video, or why it can't be read."""

    frames: int = 0
    """Packets of the first video stream, which is the frames that can be decoded but for hidden or damaged ones."""
    seconds: float = 0.0
    """From the first frame to the end of the last: segments that begin later have no frame, whatever the sound's length."""
    width: int = 0
    height: int = 0
    unreadable: str = ""
    """Why the video can't be used; empty where it can."""


def probe(source: bytes | Path) -> Probe:
    """The first video stream of a file or of its bytes: packets counted, one frame decoded.

    Unreadable are files of no bytes, without a video stream (audio alone), of an unknown codec, of which no frame can be
    decoded, and those that end before the length that they state (truncated; GIF, MPEG and WMV state none, and are taken as far
    as they go). A single frame, any size, rotation and variable frame rate are fine.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if not size:
        return Probe(unreadable="has no bytes")
    try:
        with open_video(source) as container:
            return _probe(container)
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Probe(unreadable=f"can't be decoded ({reason.splitlines()[0]})")


def probed(source: str | bytes) -> dict[str, Any]:
    """The same as plain data, for a process of its own."""
    return dataclasses.asdict(probe(source if isinstance(source, bytes) else Path(source)))


def probe_confined(reader: Confined, source: bytes | Path) -> Probe:
    """The same in `reader`: decoders believe what files say, and some of them end the process that they run in."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    seconds = SECONDS + size / BYTES_A_SECOND
    function = f"{__name__}:probed"
    try:
        if isinstance(source, bytes):
            return Probe(**reader.call(function, seconds=seconds, content=source))
        return Probe(**reader.call(function, os.fspath(source.absolute()), seconds=seconds))
    except NotRead as error:
        return Probe(unreadable=f"can't be decoded ({error})")


def _probe(container: InputContainer) -> Probe:
    if not container.streams.video:
        return Probe(unreadable="holds no video")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        return Probe(unreadable="has an unknown codec")
    stream.codec_context.thread_count = 1
    if next(container.decode(stream), None) is None:
        return Probe(unreadable="holds no video frame")
    container.seek(0)
    packets, ends = [], [0.0]
    for packet in container.demux():
        if packet.size and packet.pts is not None:
            ends.append(float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.size and packet.stream is stream:
            packets.append(packet_times(packet))
    stated = float(container.duration or 0) / av.time_base
    begin = float(container.start_time or 0) / av.time_base
    end = max(ends) - begin
    times = sorted(float(packet.shown * stream.time_base) for packet in packets if packet.shown is not None)
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    # the last frame of a variable rate may last as long as any other, and not say so
    if gaps and end + max(gaps) < stated - max(0.5, SLACK * stated):
        return Probe(unreadable=f"is truncated ({end:.1f} of {stated:.1f} s)")
    return Probe(len(packets), make_timeline(packets, stream).duration, stream.width, stream.height)
