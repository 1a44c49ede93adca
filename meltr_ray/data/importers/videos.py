"""A folder of videos (or features) with a table of what is in them: `captions.csv`, `captions.json`, or the one CSV or JSON there.

Columns: `video` (name of the file, with or without its ending or folder) and at least one of `caption`, `question`, `transcript`; and as
wanted `split` (train, validation, test; default: held out by source), `source` (the video that it was cut from), `start`, `end` (s),
`answer`, `options` (separated by |, the answer among them), `score` (-3 to 3). Rows of one video are gathered.
JSON: a list of objects with the same names; the video also as `file` or `video_id`, several `captions` in a list, a lone `label` as the
caption, and `questions` (or `qa`): objects with `question`, `answer` and perhaps `options`, a list.

    held_out   by `split`, or by source
    overfit    every clip in every split: to see whether a model learns the clips by heart
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from meltr_ray.config import check, check_choice
from meltr_ray.data.clip import Clip, Question
from meltr_ray.data.importers.annotations import Annotations
from meltr_ray.data.importers.files import find, read_csv, read_json
from meltr_ray.data.schema import SPLITS

VARIANTS = ("held_out", "overfit")
TEXTS = ("caption", "question", "transcript")
SPLIT_NAMES = {name: name for name in SPLITS} | {"val": "validation", "valid": "validation", "validate": "validation", "": "train"}


def read(folder: Path, variant: str | None) -> Annotations:
    """Raises ConfigError for a missing table or column, and for a value that can't be used, with its row."""
    path = _table(folder)
    rows = _json_rows(path) if path.suffix == ".json" else _csv_rows(path)
    return gather(rows, path, variant)


def gather(rows: list[dict[str, Any]], path: Path, variant: str | None) -> Annotations:
    """Clips of rows with `video` and lists `captions` and `questions`, as the docstring above has the rest."""
    clips: dict[str, Clip] = {}
    split_of: dict[str, str] = {}
    media: dict[str, str] = {}
    files: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        start, end = (_number(row.get(name), name, path, number) for name in ("start", "end"))
        ordered = (start or 0) >= 0 and (end is None or end > (start or 0))
        check(ordered, "source", path, f"row {number} lies between {start} and {end} s, which is no stretch of time; mend it")
        video = str(row["video"])
        stem = Path(video).stem
        stem = stem if files.setdefault(stem, video) == video else video  # a file of this name in another folder or format
        name = stem if start is None and end is None else f"{stem}_{start or 0:g}_{'end' if end is None else f'{end:g}'}"
        clip = clips.setdefault(name, Clip(name, source=str(row.get("source") or stem), start=start, end=end))
        media[name] = video
        split = str(row.get("split") or "").strip().lower()
        check_choice(f"source={path}: row {number}: split", split, tuple(SPLIT_NAMES))
        same = split_of.setdefault(name, SPLIT_NAMES[split]) == SPLIT_NAMES[split]
        check(same, "source", path, f"row {number} puts {video} into {SPLIT_NAMES[split]}, an earlier one into {split_of[name]}; choose one")
        clip.captions += row["captions"]
        clip.questions += [_question(f"{name}-{len(clip.questions) + at}", asked, path, number) for at, asked in enumerate(row["questions"])]
        clip.transcript = clip.transcript or row.get("transcript") or None
        score = _number(row.get("score"), "score", path, number)
        clip.score = clip.score if score is None else score
    splits = {split: [clip for name, clip in clips.items() if split_of[name] == split] for split in SPLITS}
    if variant == "overfit":
        splits, media = everywhere(list(clips.values()), media)
    about = "every clip in every split" if variant == "overfit" else "by its table, or held out by source"
    return Annotations(f"videos of {path.parent.name}; splits: {about}", splits, [path], media)


def everywhere(clips: list[Clip], media: dict[str, str]) -> tuple[dict[str, list[Clip]], dict[str, str]]:
    """All clips in each split, under other names in all but train."""
    splits, names = {"train": clips}, dict(media)
    for split in SPLITS[1:]:
        splits[split] = copy.deepcopy(clips)
        for clip in splits[split]:
            name = f"{clip.id}@{split}"
            names[name] = media.get(clip.id, clip.id)
            clip.id = name
            for question in clip.questions:
                question.id += f"@{split}"
    return splits, names


def _table(folder: Path) -> Path:
    path = find(folder, "captions.csv", "captions.json")
    choices = [path] if path else sorted([*folder.glob("*.csv"), *folder.glob("*.json")])
    check(len(choices) == 1, "source", folder, f"no captions.csv or captions.json there, and {len(choices)} other CSV or JSON files; add one")
    return choices[0]


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    rows = read_csv(path, ("video",))
    check(not rows or any(name in rows[0] for name in TEXTS), "source", path, f"has no column {', '.join(TEXTS)}; add at least one")
    for row in rows:
        options = [option.strip() for option in (row.get("options") or "").split("|")]
        asked = {"question": row.get("question"), "answer": row.get("answer"), "options": options if any(options) else []}
        row |= {"captions": [row["caption"]] if "caption" in row else [], "questions": [asked] if asked["question"] else []}
    return rows


def _json_rows(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    whole = isinstance(content, list) and all(isinstance(row, dict) for row in content)
    check(whole, "source", path, "is no list of objects; give one object a video")
    rows = []
    for number, row in enumerate(content, 1):
        video = row.get("video", row.get("file", row.get("video_id")))
        check(bool(video), "source", path, f"object {number} has no video; add it")
        captions = row.get("captions") or [row.get("caption") or row.get("label") or ""]
        questions = row.get("questions") or row.get("qa") or ([row] if row.get("question") else [])
        rows.append(row | {"video": video, "captions": [str(caption) for caption in captions], "questions": questions})
    return rows


def _question(name: str, asked: dict[str, Any], path: Path, number: int) -> Question:
    options, answer = [str(option) for option in asked.get("options") or []], str(asked.get("answer") or "")
    check(not options or answer in options, "source", path, f"row {number} has an answer ({answer}) that isn't among its options; mend it")
    right = options.index(answer) if options else None
    return Question(str(asked.get("id") or name), str(asked["question"]), answer, options, right, str(asked.get("kind") or ""))


def _number(value: Any, name: str, path: Path, row: int) -> float | None:
    if value in (None, ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        check(False, "source", path, f"row {row} has {name} {value}, which is no number; mend it")
        raise
