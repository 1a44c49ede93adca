"""The media of a data set: video and feature files below the source folder, found by the clips' names and looked into."""

from __future__ import annotations

import hashlib
import os
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from meltr_ray.errors import check
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.datasets.confined import Confined
from meltr_ray.video.datasets.feature_files import VIDEO_ENDINGS, FeatureFiles, find_features, is_features, problem
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.files import list_files
from meltr_ray.video.datasets.probe import MEMORY_BYTES, Probe, probe_confined

KINDS = ("features", "video", "audio")
PROBES_AT_ONCE = 4
ROWS_PER_SECOND = 1.0
"""Of features of a whole video, from which segments are cut: UniVL's extractor gives one row a second."""


@dataclass
class Media:
    """What there is below a source folder, and what of it each clip has."""

    source: Path
    features: FeatureFiles
    videos: dict[str, Path]
    """Name and path from the source folder, each with and without its ending, and absolute paths -> file; of several the first."""
    all_videos: list[Path]
    twice: int
    """Video files whose name another one has already."""
    names: dict[str, str]
    """Clip id -> name of its media, where that isn't the id."""
    probes: dict[Path | str, Probe] = field(default_factory=dict)
    """By file, or by the id of a clip that came with its video."""
    lacking: dict[str, dict[str, str]] = field(default_factory=dict)
    """Clip id -> kind of media -> why the clip has none of it; a kind that isn't there is fine."""
    frames: list[int] = field(default_factory=list)
    """Rows of features of each clip that has them."""
    sizes: dict[str, int] = field(default_factory=dict)
    """`features` and `audio` -> columns; 0: there are none."""

    def file(self, clip: Clip) -> Path | None:
        """The clip's video file; None where it has none, or came with its video."""
        if clip.video is not None:
            return clip.video if isinstance(clip.video, Path) else None
        name = _comparable(self.names.get(clip.id, clip.id))
        return self.videos.get(name) or self.videos.get(without_ending(name))

    def feature_key(self, clip_id: str) -> str | None:
        """The id that a clip's features have in their file: that of its video, or the clip's own; None where there are none."""
        keys = (without_ending(self.names.get(clip_id, clip_id)), clip_id)
        return next((key for key in keys if key in self.features), None)

    def array(self, clip: Clip) -> np.ndarray | None:
        """The clip's features (frames, D) as float32; None where there are none. Those of a segment are cut from its video's."""
        if clip.features is not None:
            return clip.features
        key = self.feature_key(clip.id)
        if key is None:
            return None
        values = self.features[key]
        if clip.start is not None and clip.end is not None and key != clip.id:
            values = values[int(clip.start * ROWS_PER_SECOND) : int(clip.end * ROWS_PER_SECOND) + 1]
        return values.astype(np.float32)

    def nameless(self, clips: list[Clip]) -> list[str]:
        """Ids in feature files that are none of the `clips`."""
        used = {self.feature_key(clip.id) for clip in clips}
        return sorted(key for key in self.features.found if key not in used)

    def has(self, clip: Clip, kind: str) -> bool:
        return kind not in self.lacking[clip.id]

    def filled(self, clip: Clip) -> Clip:
        """A copy of the clip with its media: features, and its video's bytes, or its path where the clip is a segment of the file."""
        path, video = self.file(clip), clip.video
        if path is not None:
            video = path.absolute() if is_linked(clip) else path.read_bytes()
        return replace(
            clip,
            features=self.array(clip) if self.has(clip, "features") else None,
            audio=clip.audio if self.has(clip, "audio") else None,
            video=video if self.has(clip, "video") else None,
        )

    def linked(self, clips: list[Clip]) -> dict[str, int]:
        """Video file that stays where it is -> its bytes, of clips that are segments of files."""
        paths = {path.absolute() for clip in clips if is_linked(clip) and self.has(clip, "video") and (path := self.file(clip)) is not None}
        return {str(path): path.stat().st_size for path in sorted(paths)}

    def place(self, path: Path) -> str:
        """A file's path from the source folder, or its own if it lies elsewhere."""
        return (path.relative_to(self.source) if path.is_relative_to(self.source) else path).as_posix()

    def described(self) -> dict[str, str | int]:
        """Number, bytes and one checksum of names and sizes of all files of a single clip each, videos and .npy."""
        files = sorted([*self.all_videos, *self.features.single])
        sizes = [path.stat().st_size for path in files]
        lines = "".join(f"{self.place(path)} {size}\n" for path, size in zip(files, sizes))
        return {"number": len(files), "bytes": sum(sizes), "sha256_of_names_and_sizes": hashlib.sha256(lines.encode()).hexdigest()}


def is_linked(clip: Clip) -> bool:
    """Whether its video isn't embedded: it is a segment of a file."""
    return clip.start is not None or clip.end is not None


def find_media(source: Path, annotations: Annotations, features: str | None = None) -> Media:
    """Files below `source` that the annotations didn't read, and videos elsewhere whose absolute paths clips name.

    `features`: folder below `source` whose feature files alone are taken. Raises ConfigError for a damaged feature file.
    """
    read = {path.resolve() for path in annotations.files}
    files = [path for path in list_files(source) if path.resolve() not in read]
    chosen = source / (features or "")
    check(
        chosen.is_dir() and chosen.resolve().is_relative_to(source.resolve()),
        "data.features",
        features,
        f"no such folder below {source}; give one that is there",
    )
    all_videos = [path for path in files if path.suffix.lower() in VIDEO_ENDINGS]
    videos: dict[str, Path] = {}
    twice = len(all_videos) - len({path.stem for path in all_videos})
    inside = {path: path.relative_to(source) for path in all_videos}
    for names in (inside, {path: Path(path.name) for path in all_videos}):  # a whole path before a mere name
        for path, name in names.items():
            videos.setdefault(_comparable(name.with_suffix("").as_posix()), path)
            videos.setdefault(_comparable(name.as_posix()), path)
    elsewhere = _absolute(annotations, all_videos)
    videos |= elsewhere
    all_videos += dict.fromkeys(path for path in elsewhere.values() if path not in inside)
    return Media(
        source, find_features([path for path in files if path.is_relative_to(chosen)], source), videos, all_videos, twice, annotations.media
    )


def _absolute(annotations: Annotations, below: list[Path]) -> dict[str, Path]:
    """Absolute path of a video file, as a clip names it -> the file; of `below` where it is one of these."""
    named = {annotations.media.get(clip.id, clip.id) for clips in annotations.splits.values() for clip in clips}
    paths = {name: Path(name) for name in named if os.path.isabs(name) and Path(name).suffix.lower() in VIDEO_ENDINGS}
    known = {path.resolve(): path for path in below} if paths else {}
    return {_comparable(name): known.get(path.resolve(), path) for name, path in sorted(paths.items()) if path.is_file()}


def look_into(media: Media, clips: list[Clip], report: Callable[[str], None]) -> None:
    """Probe the clips' videos and check their features: fills `probes`, `lacking`, `frames` and `sizes`.

    Raises ConfigError where features (or audio) of two clips have different sizes.
    """
    _probe_all(media, clips, report)
    first: dict[str, tuple[str, int]] = {}
    for clip in clips:
        lacking = {}
        values = {"features": media.array(clip), "audio": clip.audio}
        for kind, array in values.items():
            lacking[kind] = f"no {kind}" if array is None else "" if is_features(array) else f"{kind} of shape {array.shape}"
            lacking[kind] = lacking[kind] or problem(array).replace("features", kind)
            if lacking[kind]:
                continue
            name, size = first.setdefault(kind, (clip.id, array.shape[1]))
            check(size == array.shape[1], "source", media.source,
                  f"{kind} of {clip.id} have {array.shape[1]} columns and those of {name} {size}; give features of one extractor")  # fmt: skip
            media.frames += [len(array)] if kind == "features" else []
        lacking["video"] = _video_problem(media, clip)
        media.lacking[clip.id] = {kind: reason for kind, reason in lacking.items() if reason}
    media.sizes = {kind: first[kind][1] if kind in first else 0 for kind in ("features", "audio")}


def required(media: Media, clips: list[Clip]) -> list[str]:
    """Kinds of media without which a clip is left out: those that at least half of the clips have, else the most frequent."""
    counts = {kind: sum(media.has(clip, kind) for clip in clips) for kind in KINDS}
    most = max(counts.values())
    common = [kind for kind, count in counts.items() if 2 * count >= len(clips)]
    return [] if not most else common or [kind for kind in KINDS if counts[kind] == most][:1]


def _video_problem(media: Media, clip: Clip) -> str:
    path = media.file(clip)
    seen = media.probes.get(clip.id if isinstance(clip.video, bytes) else path)
    if seen is None:
        return "no video" if path is None else f"no video file {path.name}"
    if seen.unreadable:
        return f"video {seen.unreadable}"
    late = clip.start is not None and seen.seconds > 0 and clip.start >= seen.seconds
    return f"video ends at {seen.seconds:.1f} s, before the clip begins ({clip.start:.1f} s)" if late else ""


def _probe_all(media: Media, clips: Iterable[Clip], report: Callable[[str], None]) -> None:
    """Each file once, several at a time; a line on progress every ten seconds."""
    wanted: dict[Path | str, bytes | Path] = {clip.id: clip.video for clip in clips if isinstance(clip.video, bytes)}
    wanted |= {path: path for clip in clips if (path := media.file(clip)) is not None and path.is_file()}
    began = last = time.monotonic()
    readers: SimpleQueue[Confined] = SimpleQueue()
    with ExitStack() as stack, ThreadPoolExecutor(PROBES_AT_ONCE) as threads:
        for _ in range(min(PROBES_AT_ONCE, len(wanted))):
            readers.put(stack.enter_context(Confined(MEMORY_BYTES)))

        def look(source: bytes | Path) -> Probe:
            reader = readers.get()
            try:
                return probe_confined(reader, source)
            finally:
                readers.put(reader)

        for done, (key, seen) in enumerate(zip(wanted, threads.map(look, wanted.values())), 1):
            media.probes[key] = seen
            now = time.monotonic()
            if now - last > 10:
                last = now
                report(f"looked into {done} of {len(wanted)} videos, {(now - began) / done * (len(wanted) - done):.0f} s left")


def group_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Reason without its numbers -> how often, by name."""
    counts: dict[str, int] = defaultdict(int)
    for reason in reasons:
        counts[reason.split(" (")[0]] += 1
    return dict(sorted(counts.items()))


def _comparable(name: str) -> str:
    """A path as annotations and file systems may write it, in one way: composed letters, slashes, no ./ before it."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def without_ending(name: str) -> str:
    """The name of a video file less its ending, if it has one; what else follows a dot stays."""
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in VIDEO_ENDINGS else name
