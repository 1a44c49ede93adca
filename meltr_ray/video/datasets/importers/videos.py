"""A folder of videos (or features) with a table of what is in them: `captions.csv`, `captions.json`, or the one CSV or JSON there.

Columns: `video` (name of the file, with or without its ending or folder, or its absolute path) and at least one of `caption`,
`question`, `transcript`; and as wanted `split` (train, validation, test; default: held out by source), `source` (the video that it was
cut from), `start`, `end` (s), `answer`, `options` (separated by |, the answer among them), `score` (-3 to 3). Rows of one video are gathered.
The video may be called `file`, `video_id` or `id`, too, and a lone `label` is a caption. JSON: a list of objects with the same names, several
`captions` in a list, and `questions` (or `qa`): objects with `question`, `answer` and perhaps `options`, a list. Or an object video -> such an
object, or -> its captions; or captions in COCO's form, `images` and `annotations`.

    held_out   by `split`, or by source
    overfit    every clip in every split: an overfitting check
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meltr_ray.errors import check, check_choice
from meltr_ray.video.clips.clip import Clip, Question
from meltr_ray.video.clips.schema import SPLITS
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.files import check_rows, find, read_csv, read_json
from meltr_ray.video.datasets.importers.grouping import everywhere, text_of
from meltr_ray.video.datasets.importers.media import without_ending

VARIANTS = ("held_out", "overfit")
TEXTS = ("caption", "question", "transcript")
VIDEO_NAMES = ("video", "file", "video_id", "id")
PLAIN = (*VIDEO_NAMES, "split", "source", "start", "end", "answer", "question", "transcript", "score", "label")
"""Of an object, what is one text or number."""
SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("val", "valid", "validate", "dev"), "validation") | {"": "train"}


def read(folder: Path, variant: str | None) -> Annotations:
    """Raises ConfigError for a missing table or column, and for a value that can't be used, with its row."""
    path = _table(folder)
    return gather(_json_rows(path) if ".json" in path.suffixes else _csv_rows(path), path, variant)


def gather(rows: list[dict[str, Any]], path: Path, variant: str | None) -> Annotations:
    """Clips of rows with `video` and lists `captions` and `questions`, as the docstring above has the rest."""
    clips: dict[str, Clip] = {}
    split_of: dict[str, str] = {}
    media: dict[str, str] = {}
    files: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        start, end = (_number(row.get(name), name, path, number) for name in ("start", "end"))
        check((start or 0) >= 0 and (end is None or end > (start or 0)), "source", path,
              f"row {number} lies between {start} and {end} s, which is no stretch of time; mend it")  # fmt: skip
        video = str(row["video"])
        bare = without_ending(video)
        first = files.setdefault(stem := Path(bare).name, video)
        stem = stem if first in (video, bare) or without_ending(first) == video else video  # of this name in another folder or format
        name = stem if start is None and end is None else f"{stem}_{start or 0:.10g}_{'end' if end is None else f'{end:.10g}'}"
        clip = clips.setdefault(name, Clip(name, source=str(row.get("source") or stem), start=start, end=end))
        media[name] = video
        split = str(row.get("split") or "").strip().lower()
        check_choice(f"source={path}: row {number}: split", split, tuple(SPLIT_NAMES))
        check(split_of.setdefault(name, SPLIT_NAMES[split]) == SPLIT_NAMES[split], "source", path,
              f"row {number} puts {video} into {SPLIT_NAMES[split]}, an earlier one into {split_of[name]}; choose one")  # fmt: skip
        clip.captions += row["captions"]
        clip.questions += [
            _question(f"{name}-{len(clip.questions) + at}", asked, path, number) for at, asked in enumerate(row["questions"])
        ]
        said, score = text_of(row.get("transcript")).strip() or None, _number(row.get("score"), "score", path, number)
        agree = clip.transcript in (None, said or clip.transcript) and clip.score in (None, clip.score if score is None else score)
        check(agree, "source", path, f"row {number} gives {video} another transcript or score than an earlier one; choose one")
        clip.transcript, clip.score = clip.transcript or said, clip.score if score is None else score
    splits = {split: [clip for name, clip in clips.items() if split_of[name] == split] for split in SPLITS}
    if variant == "overfit":
        splits, media = everywhere(list(clips.values()), media)
    about = (
        f"videos of {path.parent.name}; splits: {'every clip in each' if variant == 'overfit' else 'by its table, or held out by source'}"
    )
    return Annotations(about, splits, [path], media, published=False)


def _table(folder: Path) -> Path:
    path = find(folder, "captions.csv", "captions.json")
    choices = [path] if path else sorted(file for ending in ("csv", "json") for file in folder.glob(f"*.{ending}") if file.is_file())
    check(
        len(choices) == 1, "source", folder, f"no captions.csv or captions.json there, and {len(choices)} other CSV or JSON files; add one"
    )
    return choices[0]


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    rows = read_csv(path) or read_csv(path, ("video",))
    header = list(rows[0]) if rows else []
    check(not rows or _video_of(rows[0]) is not None, "source", path, f"has no column video, it has {', '.join(header)}; add it")
    check(
        not rows or any(name in rows[0] for name in (*TEXTS, "label")),
        "source",
        path,
        f"has no column {', '.join(TEXTS)}; add at least one",
    )
    for row in rows:
        asked = {name: row.get(name) for name in ("question", "answer", "options")}
        caption = row.get("caption", row.get("label"))
        row |= {
            "video": _video_of(row),
            "captions": [] if caption is None else [caption],
            "questions": [asked] if asked["question"] else [],
        }
    return rows


def _json_rows(path: Path) -> list[dict[str, Any]]:
    content = as_list(read_json(path))
    check_rows(path, content, (), "object")
    rows = []
    for number, row in enumerate(content, 1):
        _check_plain(row, PLAIN, path, f"object {number}")
        video = _video_of(row)
        check(video not in (None, ""), "source", path, f"object {number} has no video; add it as one of {', '.join(VIDEO_NAMES)}")
        captions = row.get("captions") or [row[name] for name in ("caption", "label") if row.get(name) is not None][:1]
        captions = captions if isinstance(captions, list) else [captions]
        captions = captions[0] if len(captions) == 1 and isinstance(captions[0], list) else captions
        check(
            not any(isinstance(caption, (list, dict)) for caption in captions),
            "source",
            path,
            f"object {number} has captions that are no text; mend it",
        )
        questions = row.get("questions") or row.get("qa") or ([row] if row.get("question") else [])
        check_rows(path, questions, ("question",), f"object {number}'s question")
        for asked in questions:
            _check_plain(asked, ("question", "answer", "kind"), path, f"object {number}")
        rows.append(row | {"video": video, "captions": [text_of(caption) for caption in captions], "questions": questions})
    return rows


def as_list(content: Any) -> Any:
    """COCO's captions, and objects by video, as a list of objects with `video`; all else as it is."""
    if not isinstance(content, dict):
        return content
    annotations, images = content.get("annotations"), content.get("images", content.get("videos"))
    if isinstance(annotations, list) and isinstance(images, list):
        files = {
            image.get("id"): image.get("file_name")
            for image in images
            if isinstance(image, dict) and isinstance(image.get("id"), (str, int))
        }
        return [_of_coco(row, files) if isinstance(row, dict) else row for row in annotations]
    if (
        not content
        or set(content) & {"captions", "caption", *VIDEO_NAMES}
        or not all(isinstance(value, (dict, list, str)) for value in content.values())
    ):
        return content
    return [{"video": video} | (value if isinstance(value, dict) else {"captions": value if isinstance(value, list) else [value]})
            for video, value in content.items()]  # fmt: skip


def _of_coco(row: dict[str, Any], files: dict[Any, Any]) -> dict[str, Any]:
    """An annotation whose own `id` is that of the caption; its video is the image's file, or id."""
    named = row.get("image_id", row.get("video_id"))
    known = files.get(named) if isinstance(named, (str, int)) else None
    return {key: value for key, value in row.items() if key != "id"} | {"video": named if known is None else known}


def _video_of(row: dict[str, Any]) -> Any:
    return next((row[name] for name in VIDEO_NAMES if row.get(name) is not None), None)


def _check_plain(row: dict[str, Any], names: tuple[str, ...], path: Path, title: str) -> None:
    """Raises ConfigError where a list or an object stands for a text or a number."""
    for name in names:
        check(not isinstance(row.get(name), (list, dict)), "source", path, f"{title} has {name} that is no text; mend it")


def _question(name: str, asked: dict[str, Any], path: Path, number: int) -> Question:
    given, answer = asked.get("options") or [], text_of(asked.get("answer")).strip()
    check(isinstance(given, (str, list)), "source", path, f"row {number} has options that are no list; mend it")
    check(
        isinstance(given, str) or not any(isinstance(option, (list, dict)) for option in given),
        "source",
        path,
        f"row {number} has options that are no text; mend it",
    )
    options = [text_of(option).strip() for option in (given.split("|") if isinstance(given, str) else given)]
    check(not options or answer in options, "source", path, f"row {number} has an answer ({answer}) that isn't among its options; mend it")
    return Question(str(asked.get("id") or name), str(asked["question"]), answer, options, options.index(answer) if options else None,
                    str(asked.get("kind") or ""))  # fmt: skip


def _number(value: Any, name: str, path: Path, row: int) -> float | None:
    if value in (None, ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        check(False, "source", path, f"row {row} has {name} {value}, which is no number; mend it")
        raise
