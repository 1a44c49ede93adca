"""MSR-VTT (Xu et al., CVPR 2016): the original annotation, videos or features, and the splits that the field uses.

The source folder holds `MSRVTT_data.json`, or the authors' `train_val_videodatainfo.json` and `test_videodatainfo.json` (`videos`,
`sentences`); and media: `<video id>.mp4`, or features by video id.

    full    train, validate and test of the annotation, or of `split.json` (lists `train`, `val`, perhaps `test`) where that is there
    9k      1k-A: `MSRVTT_train.9k.csv` and `MSRVTT_JSFUSION_test.csv` (Yu et al., ECCV 2018), whose sentence is the one caption of
            a test clip
    7k      `MSRVTT_train.7k.csv`, the same test

Clips get questions: the category of each (open, 20 answers), and which of five captions is its own (multiple choice).
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from meltr_ray.errors import check
from meltr_ray.video.clips.clip import Clip, Question
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.caption_choice import add_caption_choice
from meltr_ray.video.datasets.importers.files import check_rows, find, need, read_csv, read_json

VARIANTS = ("full", "9k", "7k")
FILES = ("MSRVTT_data.json", "train_val_videodatainfo.json")
SECOND_FILE = "test_videodatainfo.json"
TEST_FILE = "MSRVTT_JSFUSION_test.csv"
CATEGORIES = (
    "music", "people", "gaming", "sports and actions", "news, events and politics", "education", "tv shows", "movie and comedy",
    "animation", "vehicles and autos", "howto", "travel", "science and technology", "animals and pets", "kids and family",
    "documentary", "food and drink", "cooking", "beauty and fashion", "advertisement",
)  # fmt: skip
"""Number of a category in the annotation -> its name."""
CATEGORY_QUESTION = "what category is this video?"


def read(folder: Path, variant: str | None) -> Annotations:
    """Raises ConfigError for a missing or damaged file."""
    clips, files = read_clips(folder)
    if variant in ("9k", "7k"):
        train, test = need(folder, f"MSRVTT_train.{variant}.csv"), need(folder, TEST_FILE)
        rows: dict[str, list[str]] = defaultdict(list)
        for row in read_csv(test, ("video_id", "sentence")):
            rows[row["video_id"]].append(row["sentence"])
        splits = {"train": _chosen(clips, [row["video_id"] for row in read_csv(train, ("video_id",))])}
        splits["test"] = _chosen(clips, list(rows))
        for clip in splits["test"]:
            clip.captions = rows[clip.id]
        return Annotations(
            f"MSR-VTT, {variant} split; test: the 1,000 pairs of 1k-A", splits, [*files, train, test], counts=_outside(clips, splits)
        )
    split_file = find(folder, "split.json")
    given = read_json(split_file, ("train", "val")) if split_file else _official(files)
    names = {"train": "train", "validation": "val" if given.get("test") else "", "test": "test" if given.get("test") else "val"}
    whole = all(isinstance(name, str) for key in ("train", "val", "test") for name in given.get(key) or ())
    check(whole, "source", split_file or folder, "has a split that is no list of video ids; mend it")
    splits = {split: _chosen(clips, given.get(name) or []) for split, name in names.items() if name}
    about = "MSR-VTT; test: official test (or validation) videos, scored once; meta: train videos, apart by URL"
    return Annotations(about, splits, [*files, *([split_file] if split_file else [])], counts=_outside(clips, splits))


def derive(splits: dict[str, list[Clip]]) -> None:
    """Add the questions with captions to choose from."""
    for clips in splits.values():
        add_caption_choice(clips)


def read_clips(folder: Path) -> tuple[dict[str, Clip], list[Path]]:
    """Video id -> clip with captions (in the order of `sen_id`), URL and category; the files that say so.

    Raises ConfigError for a missing or damaged file.
    """
    files = [need(folder, *FILES, SECOND_FILE)]
    second = find(folder, SECOND_FILE)
    files += [second] if second and files[0].name.startswith(FILES[1]) else []
    captions: dict[str, list[tuple[int, str]]] = defaultdict(list)
    videos: dict[str, dict[str, Any]] = {}
    for path in files:
        annotation = read_json(path, ("videos", "sentences"))
        check_rows(path, annotation["videos"], ("video_id",), "video")
        check_rows(path, annotation["sentences"], ("video_id", "caption"), "sentence")
        videos |= {str(video["video_id"]): video for video in annotation["videos"]}
        for sentence in annotation["sentences"]:
            place = sentence.get("sen_id")
            captions[str(sentence["video_id"])].append((place if isinstance(place, int) else 0, str(sentence["caption"])))
    clips = {}
    for name in [*videos, *(name for name in captions if name not in videos)]:
        video = videos.get(name, {})
        sentences = [caption for _, caption in sorted(captions[name], key=lambda sentence: sentence[0])]
        clips[name] = Clip(name, sentences, source=str(video.get("url") or ""), questions=category_question(name, video.get("category")))
    return clips, files


def category_question(name: str, number: int | None) -> list[Question]:
    """The open question for the category of video `name`; none where that isn't known. Raises ConfigError where there is no such one."""
    if number is None:
        return []
    check(str(number) in map(str, range(len(CATEGORIES))), "source", f"category {number} of {name}", "isn't 0 to 19; mend the annotation")
    return [Question(f"{name}-category", CATEGORY_QUESTION, CATEGORIES[int(number)], kind="category")]


def _official(files: list[Path]) -> dict[str, list[str]]:
    """The annotation's own split, by split.json's names."""
    given: dict[str, list[str]] = defaultdict(list)
    for path in files:
        rows = read_json(path)["videos"]
        check_rows(path, rows, ("split",), "video")
        for video in rows:
            given["val" if video["split"] == "validate" else str(video["split"])].append(str(video["video_id"]))
    return given


def _outside(clips: dict[str, Clip], splits: dict[str, list[Clip]]) -> dict[str, int]:
    return {"annotated videos in no split, dropped": len(clips.keys() - {clip.id for chosen in splits.values() for clip in chosen})}


def _chosen(clips: dict[str, Clip], names: list[str]) -> list[Clip]:
    """The clips of these names; one that the annotation doesn't know is empty, and will be left out."""
    return [clips.get(name) or Clip(name) for name in names]
