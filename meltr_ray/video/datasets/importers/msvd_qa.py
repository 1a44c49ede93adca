"""MSVD-QA (Xu et al., ACM MM 2017): open-ended questions about the clips of MSVD.

The source folder holds `train_qa.json`, `val_qa.json` and `test_qa.json` (or `msvdqa_<split>_qa.json`; plain or .gz), lists of
`video_id` (a number), `id`, `question` and `answer`; or tables `msvdqa_<split>.csv` of `video`, `qid`, `question` and `answer` (HQGA); and `youtube_mapping.txt`, whose lines `<YouTube id>_<start>_<end> vid<N>`
name the video file of each number. Some of the three lists may be missing; those of MSRVTT-QA, which have the same names, are
refused.
"""

from __future__ import annotations

from pathlib import Path

from meltr_ray.errors import check
from meltr_ray.video.clips.clip import Question
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.files import check_rows, find, read_csv, read_json, read_text
from meltr_ray.video.datasets.importers.grouping import gather, plain

LISTS = {"train": "train_qa.json", "validation": "val_qa.json", "test": "test_qa.json"}
NUM_ANSWERS = 1000
"""Answers that VIOLET and All-in-one choose from, the most frequent ones of train."""
TABLE = ("video", "qid", "question", "answer")
KEYS = ("video_id", "id", "question", "answer")


def read(folder: Path, variant: str | None) -> Annotations:
    """Clips `vid<N>` with their questions. Raises ConfigError for files that are missing or damaged."""
    lists = {split: find(folder, name, f"msvdqa_{name}", f"msvdqa_{name.removesuffix('_qa.json')}.csv") for split, name in LISTS.items()}
    lists = {split: path for split, path in lists.items() if path}
    check(
        bool(lists), "source", folder, f"none of {', '.join(LISTS.values())} there, nor msvdqa_<split>.csv; give the folder that holds them"
    )
    names, files = read_mapping(folder)
    gathered = gather({split: _questions(path) for split, path in lists.items()}, names, youtube_id if names else str)
    gathered["warnings"] += lacking(lists, LISTS, names)
    return Annotations("MSVD-QA; validation and test as published", files=[*lists.values(), *files],
                       num_answers=NUM_ANSWERS, **gathered)  # fmt: skip


def read_mapping(folder: Path) -> tuple[dict[str, str], list[Path]]:
    """`vid<N>` -> name of the video file, from `youtube_mapping.txt`, and that file; both empty where it isn't there."""
    path = find(folder, "youtube_mapping.txt")
    names: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines() if path else (), 1):
        words = line.split()
        whole = len(words) == 2 and words[1] not in names
        check(whole or not words, "source", path, f"line {number} isn't a video name and a new vid<N>; mend the line")
        names |= {words[1]: words[0]} if words else {}
    return names, [path] if path else []


def youtube_id(name: str) -> str:
    """The video that `<YouTube id>_<start>_<end>` was cut from; a name without these is its own."""
    parts = name.rsplit("_", 2)
    return parts[0] if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit() else name


def lacking(found: dict[str, Path], lists: dict[str, str], names: dict[str, str]) -> list[str]:
    """What a distribution of MSVD lacks, as warnings."""
    warnings = [f"no {name}, so there is no official {split} split" for split, name in lists.items() if split not in found]
    if not names:
        warnings.append("no youtube_mapping.txt, so clips that were cut from one video count as videos of their own")
    return warnings


def _questions(path: Path) -> list[tuple[str, Question]]:
    if ".csv" in path.suffixes:
        rows = [
            {"video_id": row["video"], "id": row["qid"]} | {name: row[name] for name in ("question", "answer")}
            for row in read_csv(path, TABLE)
        ]
    else:
        rows = read_json(path)
    listed = []
    check_rows(path, rows, KEYS, "question")
    check(bool(rows), "source", path, "holds no question; give the whole file")
    for row in rows:
        check("category_id" not in row, "source", path, "is of MSRVTT-QA (it has category_id); use data=msrvtt_qa")
        question = Question(str(row["id"]), str(row["question"]).strip(), plain(str(row["answer"])))
        listed.append((f"vid{row['video_id']}", question))
    return listed
