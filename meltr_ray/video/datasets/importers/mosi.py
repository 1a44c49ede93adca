"""CMU-MOSI (Zadeh et al., arXiv 1606.06259): utterances with a sentiment score in [-3, 3].

The source folder holds, by variant:

    table       `mosi_meta.csv` or MMSA's `label.csv`: `video_id`, `clip_id`, `score` (or `label`), `split` (or `mode`), perhaps
                `text`, `start`, `end`; without `text`, the corpus' own `Transcript/Segmented/<video>.annotprocessed`, lines of
                `<clip>_DELIM_<text>`. Perhaps `mosi_audio.npz`: `id` (N,), `audio` (N, A) or (N, rows, A). Videos are named
                `<video>_<clip>`, or `<video>/<clip>`, or are whole ones, `<video>`, from which `start` and `end` cut
    unaligned   `unaligned_50.pkl` (MMSA), `mosi_data_noalign.pkl` or `mosi_raw.pkl` (MulT), read by `sentiment_pickles.py`
    aligned     `aligned_50.pkl` (MMSA) or `mosi_data.pkl` (MulT)

Without test utterances, the official validation split is the test. Features are kept as they are, not standardised.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from meltr_ray.errors import check
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.datasets.feature_files import VIDEO_ENDINGS
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.files import find, list_files, need, read_csv, read_text
from meltr_ray.video.datasets.importers.sentiment_pickles import SPLIT_NAMES, described, read_pickled

VARIANTS = ("table", "unaligned", "aligned")
TABLES = ("mosi_meta.csv", "label.csv")
AUDIO = "mosi_audio.npz"
PICKLES = {"unaligned": ("unaligned_50.pkl", "mosi_data_noalign.pkl", "mosi_raw.pkl"),
           "aligned": ("aligned_50.pkl", "mosi_data.pkl")}  # fmt: skip


def read(folder: Path, variant: str) -> Annotations:
    """Clips `<video>_<clip>` with transcript, score and audio. Raises ConfigError for files that are missing or damaged."""
    if variant == "table":
        return read_table("CMU-MOSI", folder, need(folder, *TABLES), find(folder, AUDIO))
    return read_pickled("CMU-MOSI", need(folder, *PICKLES[variant]))


def read_table(title: str, folder: Path, table: Path, audio_file: Path | None) -> Annotations:
    """Utterances of a table, with the rows of `audio_file` that have their ids."""
    rows = read_csv(table, ("video_id", "clip_id"))
    check(bool(rows), "source", table, "has no row; fetch the file again")
    score, split = (_column(table, rows[0], *names) for names in (("score", "label"), ("split", "mode")))
    spoken = None if "text" in rows[0] else _transcripts(folder)
    audio = _audio(audio_file) if audio_file else {}
    splits: dict[str, list[Clip]] = defaultdict(list)
    for number, row in enumerate(rows, 1):
        name = f"{row['video_id']}_{row['clip_id']}"
        text = row["text"] if spoken is None else spoken.get(name, "")
        check(row[split] in SPLIT_NAMES, "source", table,
              f"row {number} ({name}) has {split} {row[split]!r}; use one of {', '.join(SPLIT_NAMES)}")  # fmt: skip
        start, end = (_number(table, number, row, column) if row.get(column) else None for column in ("start", "end"))
        clip = Clip(name, source=row["video_id"], start=start, end=end, transcript=text.strip() or None, audio=audio.get(name),
                    score=_number(table, number, row, score))  # fmt: skip
        splits[SPLIT_NAMES[row[split]]].append(clip)
    clips = [clip for clips in splits.values() for clip in clips]
    counts, warnings = described(clips)
    counts["rows of audio that no utterance has"] = len(audio.keys() - {clip.id for clip in clips})
    files = [table, *([audio_file] if audio_file else [])]
    return Annotations(f"{title}; official splits", dict(splits), files, _media(folder, clips), counts=counts, warnings=warnings)


def _column(path: Path, row: dict[str, str], *names: str) -> str:
    """The first of `names` that the table has."""
    found = [name for name in names if name in row]
    check(bool(found), "source", path, f"has no column {' or '.join(names)}, it has {', '.join(row)}; add it")
    return found[0]


def _number(path: Path, number: int, row: dict[str, str], column: str) -> float:
    try:
        return float(row[column])
    except ValueError:
        check(False, "source", path, f"row {number} has {column} {row[column]!r}, which is no number; mend it")
        raise


def _transcripts(folder: Path) -> dict[str, str]:
    """`<video>_<clip>` -> what is said in it, of the corpus' own transcripts."""
    spoken = {}
    for path in list_files(folder):
        for number, line in enumerate(read_text(path).split("\n") if path.suffix == ".annotprocessed" else (), 1):
            clip, mark, text = line.partition("_DELIM_")
            check(bool(mark) or not line.strip(), "source", path, f"line {number} isn't <clip>_DELIM_<text>; mend the line")
            spoken[f"{path.stem}_{clip.strip()}"] = text.strip()
    return spoken


def _audio(path: Path) -> dict[str, np.ndarray]:
    """Utterance -> (rows, A) float32; one row is of the whole utterance."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            names, values = stored["id"].tolist(), stored["audio"]
            whole = values.ndim in (2, 3) and len(values) == len(names) == len(set(names)) and values.dtype.kind == "f"
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        whole = False
    check(whole, "source", path, "is no whole .npz file with N different id and audio (N, A) or (N, rows, A); fetch the file again")
    return {name: np.atleast_2d(value).astype(np.float32) for name, value in zip(names, values)}


def _media(folder: Path, clips: list[Clip]) -> dict[str, str]:
    """Names of the video files that aren't the clips'; `start` and `end` stay where they cut a whole video, or there is none."""
    names = [path.relative_to(folder).with_suffix("") for path in list_files(folder) if path.suffix.lower() in VIDEO_ENDINGS]
    stems = {name.name for name in names}
    nested = {f"{name.parent.name}_{name.name}": name.as_posix() for name in names}
    media = {}
    for clip in clips:
        if clip.id in stems or clip.id in nested:
            media |= {} if clip.id in stems else {clip.id: nested[clip.id]}
            clip.start = clip.end = None
        elif clip.source in stems:
            media[clip.id] = clip.source
    return media
