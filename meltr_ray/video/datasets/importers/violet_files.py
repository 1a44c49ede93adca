"""The files that VIOLET (Fu et al., arXiv 2111.12681) and MELTR's version of it read: frames, visual tokens, texts.

The source folder holds, for a variant `<data>-<task>` such as `msrvtt-retrieval`, `msvd-qa` or `tgif-action`:

    txt_<data>-<task>.json   `train`, `val`, `test`: lists of `video` and `caption`; or of `video`, `question`, `answer`, and for
                             multiple choice `option_0`, `option_1` ...; `answer` is the number of the option, or of the word in
                             `vocab` (without `vocab`, numbers stay the answers)
    img_<data>.pkl           video -> list of JPEG images in base64, and
    <data>_vq.pkl            video -> DALL-E's codes (frames, rows, columns) int16, where they are there
    train_7k.json, train_9k.json, test.json
                             for `msrvtt-retrieval_7k` and `_9k`: `sentences`, lists of `video_id` and `caption`

Names may begin with `violet_`, as in `violet_frames_<data>.pkl`, `violet_dalle_vq_<data>.pkl`, `violet_txt_<data>-<task>.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meltr_ray.errors import check
from meltr_ray.video.backbones.violet.visual_tokens import read_dalle_tokens
from meltr_ray.video.clips.clip import Question
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.files import check_rows, find, need, read_json
from meltr_ray.video.datasets.importers.grouping import gather, plain
from meltr_ray.video.datasets.importers.joined_images import joined
from meltr_ray.video.datasets.importers.msvd_qa import youtube_id
from meltr_ray.video.datasets.pickles import read_pickle

VARIANTS = ("msrvtt-retrieval", "msrvtt-retrieval_7k", "msrvtt-retrieval_9k", "didemo-retrieval", "lsmdc-retrieval",
            "youcook2-retrieval", "msrvtt-qa", "msvd-qa", "tgif-frame", "tgif-action", "tgif-transition")  # fmt: skip
SPLITS = {"train": "train", "val": "validation", "test": "test"}


def read(folder: Path, variant: str) -> Annotations:
    """Clips with their images as video, and visual tokens. Raises ConfigError for files that are missing or damaged."""
    data, _, task = variant.partition("-")
    texts, lists, vocabulary = _texts(folder, variant)
    gathered = gather({split: [_item(texts[0], variant, split, row, at, vocabulary) for at, row in enumerate(rows)]
                       for split, rows in lists.items()}, source=youtube_id if data == "msvd" else str)  # fmt: skip
    images = find(folder, f"img_{data}.pkl", f"violet_frames_{data}.pkl", f"{data}.pkl")
    tokens = find(folder, f"{data}_vq.pkl", f"vq_{data}.pkl", f"violet_dalle_vq_{data}.pkl")
    frames, codes = _frames(images) if images else {}, read_dalle_tokens(tokens) if tokens else {}
    named = set()
    for clip in (clip for clips in gathered["splits"].values() for clip in clips):
        name = gathered["media"].get(clip.id, clip.id)
        named.add(name)
        clip.video = joined(frames[name]) if name in frames else None
        clip.vq_tokens = codes.get(name)
    if images:
        gathered["counts"][f"videos of {images.name} that no clip names"] = len(frames.keys() - named)
    return Annotations(f"{variant} as VIOLET has it", files=[path for path in (*texts, images, tokens) if path],
                       num_answers=len(vocabulary) or None, **gathered)  # fmt: skip


def _texts(folder: Path, variant: str) -> tuple[list[Path], dict[str, list[dict[str, Any]]], list[str]]:
    """Files, rows by split, and answers by number (none where the file has none)."""
    if variant.endswith(("_7k", "_9k")):
        files = {"train": need(folder, f"train_{variant[-2:]}.json"), "test": need(folder, "test.json")}
        lists = {split: read_json(path, ("sentences",))["sentences"] for split, path in files.items()}
        for split, path in files.items():
            check_rows(path, lists[split], ("video_id", "caption"), "sentence")
        return list(files.values()), lists, []
    path = need(folder, f"txt_{variant}.json", f"violet_txt_{variant}.json")
    content = read_json(path, ("train",))
    vocabulary = content.get("vocab", [])
    whole = all(isinstance(given, list) for given in (vocabulary, *(content[name] for name in SPLITS if name in content)))
    check(
        whole and all(isinstance(word, str) for word in vocabulary),
        "source",
        path,
        "has a split or a vocab that is no list; fetch it again",
    )
    return [path], {ours: content[theirs] for theirs, ours in SPLITS.items() if theirs in content}, vocabulary


def _item(path: Path, variant: str, split: str, row: Any, at: int, vocabulary: list[str]) -> tuple[str, str | Question]:
    """One row: a video, and its caption or question."""
    try:
        video = str(row["video"] if "video" in row else row["video_id"])
        item = row["caption"].strip() if "caption" in row else _question(f"{variant}-{split}-{at}", row, variant, vocabulary)
    except (AttributeError, IndexError, KeyError, TypeError):
        item = None
    check(item is not None, "source", path,
          f"row {at} of {split} lacks a video, a caption, or a question with an answer that is there; mend it")  # fmt: skip
    return video, item


def _question(name: str, row: dict[str, Any], variant: str, vocabulary: list[str]) -> Question:
    options = []
    while f"option_{len(options)}" in row:
        options.append(plain(row[f"option_{len(options)}"]))
    answer, question = row["answer"], row["question"].strip()
    if options:
        return Question(name, question, options[range(len(options))[answer]], options, answer, kind=variant.partition("-")[2])
    known = isinstance(answer, int) and 0 <= answer < len(vocabulary)
    return Question(name, question, plain(vocabulary[answer] if known else str(answer)))


def _frames(path: Path) -> dict[str, list[str]]:
    content = read_pickle(path)
    whole = isinstance(content, dict) and all(isinstance(images, list) and images for images in content.values())
    check(whole, "source", path, "holds no lists of images by video; give the file of VIOLET's extract_video-frame.py")
    return content
