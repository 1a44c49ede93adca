"""Encoded video to arrays and back, with PyAV."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from meltr_ray.errors import ConfigError, check
from meltr_ray.video.clips.clip import WHOLE, Segment
from meltr_ray.video.clips.containers import check_kept, open_video, within_limits

DEFAULT_RATE = 25
"""Frames a second of a stream that says nothing of them."""


class PacketTimes(NamedTuple):
    """Of a packet: when its frame is shown, when it is decoded and how long it lasts, in the stream's units."""

    shown: int | None
    decoded: int | None
    duration: int
    is_key: bool
    is_shown: bool
    """False: it is there for later frames alone, which mp4 files that were cut without encoding them anew have."""


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown, as its packets have it; N frames in order."""

    marks: np.ndarray
    """(N,) int64, time stamps in units of `unit` seconds."""
    keys: np.ndarray
    """Ascending time stamps of key frames, which are decoded without any before them."""
    first: int
    """Time stamp of the first frame that is shown: those of a cut file may begin earlier, with some that are only decoded."""
    unit: Fraction
    last: int
    """How long the last frame is shown, in units."""
    stamped: bool
    """Whether the marks are those that decoded frames bear."""

    @property
    def seconds(self) -> np.ndarray:
        """(N,) float64 from the first frame."""
        return (self.marks - self.first) * self.unit.numerator / self.unit.denominator

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float((int(self.marks[-1]) - self.first + self.last) * self.unit)

    def within(self, segment: Segment) -> np.ndarray:
        """Numbers (n,) of frames that begin from the segment's start to before its end; else of that which it shows.

        Slides and screen recordings may keep a frame for minutes. Empty: the segment begins after the video's end.
        """
        if not segment.is_part:
            return np.arange(len(self.marks))
        start, end = segment.start or 0.0, np.inf if segment.end is None else segment.end
        begun = np.flatnonzero((self.seconds >= start) & (self.seconds < end))
        shown = np.flatnonzero(self.seconds <= start)[-1:] if start < min(end, self.duration) else begun
        return begun if len(begun) else shown

    def of_decoded(self, marks: list[int | None]) -> Timeline:
        """That of the frames that were decoded, by their time stamps; evenly spaced where some have none."""
        if None in marks:
            return replace(self, marks=np.linspace(self.marks[0], self.marks[-1], len(marks)).astype(int))
        return replace(self, marks=np.sort(np.array(marks)), first=min(marks))


def read_timeline(container: InputContainer) -> Timeline:
    """The timeline of the first video stream, without decoding it."""
    stream = container.streams.video[0]
    return make_timeline([packet_times(packet) for packet in within_limits(container.demux(stream)) if packet.size], stream)


def packet_times(packet: av.Packet) -> PacketTimes:
    return PacketTimes(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, not packet.is_discard)


def make_timeline(packets: list[PacketTimes], stream: VideoStream) -> Timeline:
    """Of the packets of a stream, in any order. AVI may say when frames are decoded, not shown; raw streams neither."""
    unit = stream.time_base or Fraction(1, DEFAULT_RATE)
    rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
    one_frame = max(1, round(1 / (rate * unit)))
    stamped = bool(packets) and all(packet.shown is not None for packet in packets)
    if stamped:
        marks = np.array([packet.shown for packet in packets])
    elif packets and all(packet.decoded is not None for packet in packets):
        marks = np.array([packet.decoded for packet in packets])
    else:
        marks = np.arange(max(len(packets), 1)) * one_frame
    keys = np.array([packet.shown for packet in packets if packet.is_key and packet.shown is not None], np.int64)
    first = min((int(mark) for mark, packet in zip(marks, packets) if packet.is_shown), default=int(marks[0]))
    latest, marks = int(marks.argmax()), np.sort(marks)
    # the last frame of a variable rate may last as long as any other, and not say so
    last = (packets[latest].duration if packets else 0) or int(np.diff(marks).max(initial=0)) or one_frame
    return Timeline(marks, np.sort(keys), first, unit, last, stamped)


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
        convert, frames = Converter(), []
        for frame in within_limits(container.decode(video=0)):
            check_kept(len(frames) + 1, frame.width, frame.height)
            frames.append(convert(frame))
        if not frames:
            raise ValueError("it holds no video frame")
        return np.stack(frames)


def decode_frames(
    source: bytes | str | Path, choose: Callable[[int], np.ndarray], side: int | None = None, name: str = "video",
    segment: Segment = WHOLE,
) -> np.ndarray:  # fmt: skip
    """Frames number `choose(N)` of the N frames of a video or of its segment: (n, H, W, 3) uint8 RGB, upright.

    N counts frames, not time, and is the number that can be decoded, whatever the container says; `choose` returns (n,)
    indices below N in any order, repeats allowed. Only those frames are converted and kept. With `side`, they are scaled to
    (n, side, side, 3) on the way, their aspect ratio lost. Raises ConfigError as `decode_video` does, and where the segment
    has no frame.
    """
    return decode_timed_frames(source, lambda times: choose(len(times)), side, name, segment)


def decode_timed_frames(
    source: bytes | str | Path, choose: Callable[[np.ndarray], np.ndarray], side: int | None = None, name: str = "video",
    segment: Segment = WHOLE,
) -> np.ndarray:  # fmt: skip
    """As `decode_frames`, where `choose` takes the times (N,) at which the frames are shown: seconds from the video's first."""
    with _opened(source, name) as container:
        timeline = read_timeline(container)
    wanted = _chosen(timeline, choose, segment, source)
    if segment.is_part and (kept := _decode_part(source, timeline, wanted, side, name)) is not None:
        return np.stack([kept[index] for index in wanted])
    while True:
        kept, marks = _decode_whole(source, wanted, side, name)
        if len(marks) == len(timeline.marks):
            return np.stack([kept[index] for index in wanted])
        # a packet gives one frame as a rule; hidden or damaged ones give none
        timeline = timeline.of_decoded(marks)
        wanted = _chosen(timeline, choose, segment, source)


def _chosen(timeline: Timeline, choose: Callable[[np.ndarray], np.ndarray], segment: Segment, source: bytes | str | Path) -> list[int]:
    """Numbers of the chosen frames in the whole video."""
    within = timeline.within(segment)
    file = f"its video of {len(source)} bytes" if isinstance(source, bytes) else source
    check(len(within) > 0, "clip", segment.clip or file, f"no frame lies between {segment.start} and {segment.end} s of {file}, "
          f"which lasts {timeline.duration:.3f} s; correct start and end or leave the clip out")  # fmt: skip
    return within[choose(timeline.seconds[within])].tolist()


def _decode_whole(
    source: bytes | str | Path, wanted: list[int], side: int | None, name: str
) -> tuple[dict[int, np.ndarray], list[int | None]]:
    """The wanted frames that there are, by number, and the time stamps of all frames."""
    with _opened(source, name) as container:
        convert, numbers, kept, marks = Converter(side), set(wanted), {}, []
        for frame in within_limits(container.decode(video=0)):
            if len(marks) in numbers:
                check_kept(len(numbers), *(convert.size or (frame.width, frame.height)))
                kept[len(marks)] = convert(frame)
            marks.append(frame.pts)
        if not marks:
            raise ValueError("it holds no video frame")
    return kept, marks


def _decode_part(
    source: bytes | str | Path, timeline: Timeline, wanted: list[int], side: int | None, name: str
) -> dict[int, np.ndarray] | None:
    """The wanted frames by number, from the last key frame before them on; None where they aren't found that way.

    Frames are told by their time stamps, so a seek that lands elsewhere finds nothing, rather than other frames.
    """
    marks = {int(timeline.marks[index]): index for index in wanted}
    before = timeline.keys[timeline.keys <= min(marks)]
    if not timeline.stamped or not len(before) or len(marks) < len(set(wanted)):
        return None
    key, reached, latest, kept = int(before[-1]), False, -np.inf, {}
    with _opened(source, name) as container:
        convert, stream = Converter(side), container.streams.video[0]
        try:
            container.seek(key, stream=stream)
        except av.FFmpegError:
            return None  # a file that has no index
        for frame in within_limits(container.decode(stream)):
            if frame.pts is None or not latest < frame.pts <= max(marks):
                break  # AVI's time stamps are those of decoding, which isn't in the order of display
            reached, latest = reached or frame.pts == key, frame.pts
            if reached and frame.pts in marks and not frame.is_corrupt:
                check_kept(len(marks), *(convert.size or (frame.width, frame.height)))
                kept[marks[frame.pts]] = convert(frame)
            if len(kept) == len(marks):
                return kept
    return None


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
        with open_video(source) as container:
            if not container.streams.video:
                raise ValueError("it holds no video")
            container.streams.video[0].codec_context.thread_count = 1
            yield container
    except ConfigError:
        raise
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        check(False, name, label, f"can't be decoded ({reason}); replace the file")


def evenly_spaced(num_frames: int, wanted: int) -> np.ndarray:
    """Indices (min(wanted, num_frames),) of frames in the middle of equal stretches."""
    wanted = min(wanted, num_frames)
    return ((np.arange(wanted) + 0.5) * num_frames / wanted).astype(int)
