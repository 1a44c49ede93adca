"""A few videos of MSR-VTT with captions and MSRVTT-QA questions: `clips.json` beside the video files.

Its objects have `video_id`, `captions`, `category` and `qa` (objects with `question`, `answer`, `qid`). The official split would leave no
question to train on, so clips are divided anew (`held_out`), or stand in every split (`overfit`).
"""

from __future__ import annotations

from pathlib import Path

from meltr_ray.errors import check
from meltr_ray.video.clips.clip import Clip, Question
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.caption_choice import add_caption_choice
from meltr_ray.video.datasets.importers.files import check_rows, need, read_json
from meltr_ray.video.datasets.importers.grouping import everywhere
from meltr_ray.video.datasets.importers.msrvtt import category_question
from meltr_ray.video.datasets.importers.videos import VARIANTS as VARIANTS


def read(folder: Path, variant: str | None) -> Annotations:
    """Raises ConfigError for a missing or damaged file."""
    path = need(folder, "clips.json")
    rows = read_json(path)
    check_rows(path, rows, ("video_id",), "video")
    clips = []
    for row in rows:
        name, captions, asked = str(row["video_id"]), row.get("captions"), row.get("qa")
        whole = isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)
        check(whole, "source", path, f"video {name} has no list of captions; mend it")
        check_rows(path, asked, ("question", "answer", "qid"), f"{name}'s question")
        clip = Clip(name, captions, questions=category_question(name, row.get("category")))
        clip.questions += [Question(str(one["qid"]), str(one["question"]), str(one["answer"])) for one in asked]
        clips.append(clip)
    splits: dict[str, list[Clip]] = {"train": clips}
    media: dict[str, str] = {}
    if variant == "overfit":
        add_caption_choice(clips)  # the same questions in every split
        splits, media = everywhere(clips, media)
    return Annotations(f"MSR-VTT clips with questions, {variant}", splits, [path], media)


def derive(splits: dict[str, list[Clip]]) -> None:
    """Add the questions with captions to choose from, where `overfit` hasn't yet."""
    for clips in splits.values():
        add_caption_choice([clip for clip in clips if not any(question.options for question in clip.questions)])
