"""What costs nothing: chance, constant answers and closed-form ridge regressions, for every task that the clips allow."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from meltr_ray.video.baselines import captions, questions, retrieval, sentiment
from meltr_ray.video.clips.answers import Answers
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.store import ClipStore

Found = dict[str, dict[str, dict[str, float]]]
"""Split (validation, test) -> name of a baseline -> metric -> value."""
SHOWN = {
    "retrieval": "recall_at_10", "multiple_choice": "accuracy", "open_ended": "accuracy", "captioning": "cider",
    "sentiment": "mae",
}  # fmt: skip
"""The metric that a report of an import names."""


def baselines(folder: Path, report: Callable[[str], None] = print) -> dict[str, Found]:
    """Task -> its baselines, fitted on train, strengths chosen on held-out train videos; scored on validation and test.

    Tasks that the data set doesn't allow are left out; so are, with a line for `report`, those for which it is too small.
    """
    splits = {split: list(ClipStore(folder, split)) for split in ("train", "validation", "test")}
    found: dict[str, Found] = {}
    for task in SHOWN:
        try:
            found |= {task: finite(rows)} if (rows := of_task(task, splits, Path(folder))) else {}
        except ValueError as error:  # no word is frequent enough, or no video is left to fit on
            report(f"{task}: no baselines ({error})")
    for task, rows in found.items():
        for split, named in rows.items():
            figures = ", ".join(f"{name} {values[SHOWN[task]]:.3g}" for name, values in named.items())
            report(f"{task}, {split}, {SHOWN[task]}: {figures}")
    return found


def of_task(task: str, splits: dict[str, list[Clip]], folder: Path) -> Found | None:
    """None where a split has nothing for the task. Raises ValueError where the data are too few."""
    if task in ("multiple_choice", "open_ended"):
        asked = {split: questions.asked(clips, task == "multiple_choice") for split, clips in splits.items()}
        answers = Answers(folder / "answers.txt") if task == "open_ended" and all(asked.values()) else None
        return questions.baselines(asked, answers) if all(asked.values()) else None
    if not all(any(useful(task, clip) for clip in clips) for clips in splits.values()):
        return None
    return {"retrieval": retrieval, "captioning": captions, "sentiment": sentiment}[task].baselines(splits)


def finite(rows: Found) -> Found:
    """Without what isn't defined, such as the correlation of a constant."""

    def defined(values: dict[str, float]) -> dict[str, float]:
        return {metric: value for metric, value in values.items() if math.isfinite(value)}

    return {split: {name: defined(values) for name, values in named.items()} for split, named in rows.items()}


def useful(task: str, clip: Clip) -> bool:
    """Whether the task can use a clip."""
    return clip.score is not None if task == "sentiment" else bool(clip.captions)
