"""YouCook2 (Zhou et al., AAAI 2018): segments of cooking videos with a sentence each.

The source folder holds the annotation of its authors, or that of UniVL's `youcookii.zip`, or both:

    youcookii_annotations_trainval.json (plain or .gz): `database`: video -> `subset`, `annotations` with `segment` [start, end]
        in seconds, `id`, `sentence`
    youcookii_data.transcript.pickle, youcookii_data.pickle or youcookii_data.no_transcript.pickle: video -> `start`, `end`,
        `text`, `transcript`, lists or arrays of one length; transcripts `NONE` are none
    youcookii_train.csv, youcookii_val.csv: `video_id`; the videos that UniVL trains and is scored on (9,586 and 3,350 segments)
    youcookii_videos_features.pickle: video -> (seconds, D), one row a second; read as any other file of features

The validation videos are what published figures are of, so they are the test split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from meltr_ray.errors import check
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.files import find, read_csv, read_json
from meltr_ray.video.datasets.importers.grouping import text_of
from meltr_ray.video.datasets.pickles import read_pickle

PICKLES = ("youcookii_data.transcript.pickle", "youcookii_data.pickle", "youcookii_data.no_transcript.pickle")
SUBSETS = {"train": "training", "test": "validation"}
LISTS = {"train": "youcookii_train.csv", "test": "youcookii_val.csv"}
WORRYING = ("segments without a sentence", "listed videos without annotation")


class Segment(NamedTuple):
    """A part of a video: its number there, its ends (s), and what is seen and said in it."""

    number: int
    start: float
    end: float
    sentence: str
    transcript: str | None = None


def read(folder: Path, variant: str | None) -> Annotations:
    """Clips `<video>_<segment>`. Raises ConfigError for files that are missing or damaged, and segments that last no time."""
    annotation, pickled = find(folder, "youcookii_annotations_trainval.json"), find(folder, *PICKLES)
    lists = {split: path for split, name in LISTS.items() if (path := find(folder, name))}
    check(bool(annotation or (pickled and lists)), "source", folder,
          f"no youcookii_annotations_trainval.json there, nor one of {', '.join(PICKLES)} with {' and '.join(LISTS.values())}; "
          "give the folder that holds them")  # fmt: skip
    database = read_json(annotation, ("database",))["database"] if annotation else {}
    check(isinstance(database, dict), "source", annotation, "has no database by video; fetch the file again")
    segments = {video: _annotated(annotation, video, entry) for video, entry in database.items()}
    if pickled:
        content = read_pickle(pickled)
        check(isinstance(content, dict), "source", pickled, "is no dictionary by video; fetch the file again")
        segments |= {video: _pickled(pickled, video, entry) for video, entry in content.items()}
    videos = {split: [row["video_id"] for row in read_csv(path, ("video_id",))] for split, path in lists.items()}
    for split, subset in SUBSETS.items():
        videos.setdefault(split, [video for video, entry in database.items() if entry.get("subset") == subset])
    splits = {split: [_clip(video, segment) for video in named for segment in segments.get(video, ())]
              for split, named in videos.items()}  # fmt: skip
    clips = [clip for clips in splits.values() for clip in clips]
    named = {video for listed in videos.values() for video in listed}
    counts = {"videos": len({clip.source for clip in clips}),
              "segments without a sentence": sum(not clip.captions for clip in clips),
              "listed videos without annotation": sum(not segments.get(video) for video in named),
              "annotated videos outside the lists": len(segments.keys() - named),
              "segments with a transcript": sum(clip.transcript is not None for clip in clips)}  # fmt: skip
    warnings = [f"{counts[name]} {name}" for name in WORRYING if counts[name]]
    if not lists:
        warnings.append("no youcookii_train.csv and youcookii_val.csv, so all videos are in, of which UniVL takes a part")
    files = [path for path in (annotation, pickled, *lists.values()) if path]
    media = {clip.id: clip.source for clip in clips}
    splits = {split: listed for split, listed in splits.items() if listed}
    about = "YouCook2; test: official validation videos, scored once"
    return Annotations(about, splits, files, media, counts=counts, warnings=warnings)


def _annotated(path: Path, video: str, entry: Any) -> list[Segment]:
    try:
        rows = entry.get("annotations", [])
        segments = []
        for row in rows:
            start, end = map(float, row["segment"])
            segments.append(Segment(int(row["id"]), start, end, text_of(row["sentence"]).strip()))
    except (AttributeError, KeyError, TypeError, ValueError):
        segments = None
    check(segments is not None, "source", path, f"video {video} has an annotation without id, segment or sentence; mend it")
    return [_checked(path, video, segment) for segment in segments]


def _pickled(path: Path, video: str, entry: Any) -> list[Segment]:
    """UniVL's: four columns of one length."""
    try:
        columns = [list(entry[name]) for name in ("start", "end", "text", "transcript")]
        whole = len({len(column) for column in columns}) == 1
        rows = [(float(start), float(end), text_of(text).strip(), text_of(said).strip()) for start, end, text, said in zip(*columns)]
    except (KeyError, IndexError, TypeError, ValueError):
        whole = False
    check(whole, "source", path, f"video {video} lacks start, end, text and transcript of one length; fetch the file again")
    return [_checked(path, video, Segment(n, *row[:3], None if row[3] in ("", "NONE") else row[3])) for n, row in enumerate(rows)]


def _checked(path: Path, video: str, segment: Segment) -> Segment:
    check(0 <= segment.start < segment.end, "source", path,
          f"segment {segment.number} of video {video} lasts from {segment.start:g} to {segment.end:g} s; mend it")  # fmt: skip
    return segment


def _clip(video: str, segment: Segment) -> Clip:
    captions = [segment.sentence] if segment.sentence else []
    return Clip(f"{video}_{segment.number}", captions, source=video,
                start=segment.start, end=segment.end, transcript=segment.transcript)  # fmt: skip
