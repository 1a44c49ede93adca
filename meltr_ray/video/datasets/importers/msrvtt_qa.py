"""MSRVTT-QA (Xu et al., ACM MM 2017): open questions about MSR-VTT's videos; answers: the 1,500 most frequent of train (VIOLET).

The source folder holds, for each split, `train_qa.json`, `val_qa.json`, `test_qa.json` (lists of `video_id`, `question`, `answer`,
`id`), or `msrvtt_qa_<split>.jsonl` (ClipBERT, All-in-one), or `msrvttqa_<split>*.csv` (`video,question,answer,qid,type`), each perhaps
gzipped; and media, `video<number>.mp4` or features by video id. With MSR-VTT's own annotation there, clips are known to share a
source by URL, and have captions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meltr_ray.errors import check
from meltr_ray.video.clips.clip import Clip, Question
from meltr_ray.video.datasets.importers import msrvtt
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.files import check_rows, find, list_files, read_csv, read_json, read_json_lines
from meltr_ray.video.datasets.importers.grouping import plain

NUM_ANSWERS = 1500
SPLITS = {"train": "train", "validation": "val", "test": "test"}
COLUMNS = ("question", "answer")


def read(folder: Path, variant: str | None) -> Annotations:
    """Raises ConfigError where no split is there, or a file is damaged or lacks a column."""
    known, files = msrvtt.read_clips(folder) if find(folder, *msrvtt.FILES) else ({}, [])
    splits: dict[str, list[Clip]] = {}
    for split, name in SPLITS.items():
        path = _file(folder, name)
        if path is not None:
            splits[split] = gather(_rows(path), known, name)
            files = [*files, path]
    check(bool(splits), "source", folder, "no train_qa.json, val_qa.json or test_qa.json there; give the folder that holds them")
    return Annotations("MSRVTT-QA: open questions by its official splits", splits, files, num_answers=NUM_ANSWERS)


def gather(rows: list[dict[str, Any]], known: dict[str, Clip], split: str) -> list[Clip]:
    """A clip a video, with all its questions, in the order of the rows; captions and URL of `known`."""
    clips: dict[str, Clip] = {}
    for number, row in enumerate(rows):
        video = str(row.get("video_id", row.get("video")))
        video = f"video{video}" if video.isdigit() else video
        own = known.get(video, Clip(video))
        clip = clips.setdefault(video, Clip(video, own.captions, source=own.source))
        name = row.get("id", row.get("qid", number))
        clip.questions.append(Question(f"{split}-{name}", str(row["question"]), plain(str(row["answer"]))))
    return list(clips.values())


def _file(folder: Path, name: str) -> Path | None:
    found = find(folder, f"{name}_qa.json", f"msrvtt_qa_{name}.jsonl", f"msrvtt_qa_{name}.json")
    tables = [path for path in list_files(folder) if path.name.startswith(f"msrvttqa_{name}") and ".csv" in path.suffixes]
    return found or (tables[0] if tables else None)


def _rows(path: Path) -> list[dict[str, Any]]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".csv"):
        return read_csv(path, ("video", *COLUMNS))
    rows = read_json_lines(path) if name.endswith(".jsonl") else read_json(path)
    check_rows(path, rows, ("video_id", *COLUMNS), "question")
    return rows
