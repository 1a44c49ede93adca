"""TGIF-QA (Jang et al., CVPR 2017): questions about animated GIFs.

The source folder holds, for the variant that is asked for, `Train_<kind>_question.csv` and `Test_<kind>_question.csv` (plain or
.gz), separated by tabs:

    variant      <kind>       columns                                          task
    action       action       gif_name question a1 .. a5 answer vid_id key     multiple choice; `answer` counts from 0
    transition   transition   the same                                         multiple choice
    frame        frameqa      gif_name question answer type vid_id key ...     open-ended; `type` is a number of `TYPES`

One of the two files may be missing.
"""

from __future__ import annotations

from pathlib import Path

from meltr_ray.errors import check
from meltr_ray.video.clips.clip import Question
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.files import find, read_csv
from meltr_ray.video.datasets.importers.grouping import gather, plain

KINDS = {"action": "action", "transition": "transition", "frame": "frameqa"}
VARIANTS = tuple(KINDS)
OPTIONS = ("a1", "a2", "a3", "a4", "a5")
TYPES = {"0": "object", "1": "number", "2": "color", "3": "location"}
NUM_ANSWERS = 1540
"""Answers of `frame` that VIOLET and All-in-one choose from."""


def read(folder: Path, variant: str) -> Annotations:
    """Clips named by their GIF, with their questions. Raises ConfigError for files that are missing or damaged."""
    names = {split: f"{prefix}_{KINDS[variant]}_question.csv" for split, prefix in (("train", "Train"), ("test", "Test"))}
    files = {split: path for split, name in names.items() if (path := find(folder, name))}
    check(bool(files), "source", folder, f"no {' or '.join(names.values())} there; give the folder that holds them")
    gathered = gather({split: _questions(path, variant) for split, path in files.items()})
    missing = {split: name for split, name in names.items() if split not in files}
    gathered["warnings"] += [f"no {name}, so there is no official {split} split" for split, name in missing.items()]
    return Annotations(f"TGIF-QA, {variant}; test as published", files=list(files.values()),
                       num_answers=NUM_ANSWERS if variant == "frame" else None, **gathered)  # fmt: skip


def _questions(path: Path, variant: str) -> list[tuple[str, Question]]:
    columns = ("gif_name", "question", "answer", "vid_id", *(("type",) if variant == "frame" else OPTIONS))
    rows = read_csv(path, columns)
    return [(row["gif_name"].strip(), _question(path, number, row, variant)) for number, row in enumerate(rows, 1)]


def _question(path: Path, number: int, row: dict[str, str], variant: str) -> Question:
    question, answer = row["question"].strip(), row["answer"].strip()
    if variant == "frame":
        return Question(row["vid_id"], question, plain(answer), kind=TYPES.get(row["type"].strip(), row["type"].strip()))
    options = [plain(row[name]) for name in OPTIONS]
    check(answer in ("0", "1", "2", "3", "4"), "source", path,
          f"question {number} ({row['vid_id']}) has answer {answer!r}, not 0 to 4; mend it")  # fmt: skip
    return Question(row["vid_id"], question, options[int(answer)], options, int(answer), kind=variant)
