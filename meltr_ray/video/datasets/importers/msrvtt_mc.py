"""MSR-VTT multiple choice (Yu et al., ECCV 2018): which of five sentences describes the video. The task has test questions alone.

The source folder holds `MSR_MC_test.csv` (tab-separated: `vid_key`, `a1` to `a5`, `answer` from 0) or `msrvtt_mc_test.jsonl`
(`clip_name`, `options`, `answer`: ClipBERT, All-in-one); MSR-VTT's own annotation (see `msrvtt`), of whose train and validation videos
questions of the same kind are made; and media by video id. Without that annotation the test clips are divided anew.
"""

from __future__ import annotations

from pathlib import Path

from meltr_ray.errors import check
from meltr_ray.video.clips.clip import Clip, Question
from meltr_ray.video.datasets.importers import msrvtt
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.caption_choice import KIND, OPTIONS, QUESTION, add_caption_choice
from meltr_ray.video.datasets.importers.files import find, need, read_csv, read_json_lines

NAMES = tuple(f"a{number}" for number in range(1, OPTIONS + 1))


def read(folder: Path, variant: str | None) -> Annotations:
    """Raises ConfigError for a missing or damaged file, and for an answer that is no option's number."""
    path = need(folder, "MSR_MC_test.csv", "msrvtt_mc_test.jsonl")
    known = {}
    splits, files = {}, [path]
    if find(folder, *msrvtt.FILES):
        annotations = msrvtt.read(folder, "full")
        known = {clip.id: clip for clips in annotations.splits.values() for clip in clips}
        splits, files = annotations.splits, [path, *annotations.files]
    test: dict[str, Clip] = {}
    for number, (video, options, right) in enumerate(_rows(path)):
        whole = right in map(str, range(len(options)))
        check(whole, "source", path, f"question {number + 1} has answer {right} of {len(options)} options; the first is 0, mend the line")
        clip = test.setdefault(video, Clip(video, source=known[video].source if video in known else ""))
        clip.questions.append(Question(f"test-{number}", QUESTION, options[int(right)], options, int(right), KIND))
    rest = {split: [clip for clip in clips if clip.id not in test] for split, clips in splits.items() if split != "test"}
    for clip in (clip for clips in rest.values() for clip in clips):
        clip.questions = []
    about = "MSR-VTT multiple choice; train and validation: made of the captions of its other videos"
    unasked = {clip.id for clip in splits.get("test", [])} - test.keys()
    counts = {"test videos without a question, dropped": len(unasked)}
    return Annotations(about, rest | {"test": list(test.values())}, files, counts=counts)


def derive(splits: dict[str, list[Clip]]) -> None:
    """Questions of the same kind for clips that have captions, which are none of the test's."""
    for clips in splits.values():
        add_caption_choice([clip for clip in clips if not clip.questions])


def _rows(path: Path) -> list[tuple[str, list[str], str]]:
    """(video, options, number of the right one) of each question."""
    if path.name.removesuffix(".gz").endswith(".csv"):
        rows = read_csv(path, ("vid_key", *NAMES, "answer"))
        return [(row["vid_key"].replace("msr", "video"), [row[name] for name in NAMES], row["answer"]) for row in rows]
    rows = read_json_lines(path, ("clip_name", "options", "answer"))
    for number, row in enumerate(rows, 1):
        check(isinstance(row["options"], list), "source", path, f"question {number} has no list of options; mend it")
    return [(str(row["clip_name"]), [str(option) for option in row["options"]], str(row["answer"])) for row in rows]
