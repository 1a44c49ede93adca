"""Captions and questions, one a line as their authors list them, gathered by clip."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from meltr_ray.video.clips.clip import Clip, Question
from meltr_ray.video.clips.schema import SPLITS

Listed = Mapping[str, list[tuple[str, "str | Question"]]]
"""Split -> (clip, caption or question about it), in the order of the file."""
WORRYING = ("clips in more than one split",)


def gather(listed: Listed, files: Mapping[str, str] | None = None, source: Callable[[str], str] = str) -> dict[str, Any]:
    """Clips by split with all that is listed for them: `splits`, `media`, `counts` and `warnings` of `Annotations`.

    Clips come in the order in which they are first named. `files`: clip -> name of its video file, where that isn't the clip's;
    `source`: name of the file -> the video that it was cut from. What is listed twice stays, as the authors' figures have it, and
    is counted. A clip of two splits is a clip in each, the later one named `<clip>@<split>`.
    """
    files = files or {}
    counts: Counter[str] = Counter()
    splits: dict[str, dict[str, Clip]] = {}
    media: dict[str, str] = {}
    for split, rows in listed.items():
        clips = splits[split] = {}
        for name, item in rows:
            if name not in clips:
                again = any(name in other for other in splits.values())
                counts["clips in more than one split"] += again
                clips[name] = Clip(f"{name}@{split}" if again else name, source=source(files.get(name, name)))
                media |= {clips[name].id: files.get(name, name)} if again or name in files else {}
            _add(clips[name], item, counts)
    return dict(splits={split: list(clips.values()) for split, clips in splits.items()}, media=media,
                counts={name: count for name, count in counts.items() if count},
                warnings=[f"{counts[name]} {name}" for name in WORRYING if counts[name]])  # fmt: skip


def _add(clip: Clip, item: str | Question, counts: Counter[str]) -> None:
    if isinstance(item, str):
        counts["captions"] += 1
        counts["captions listed twice for a clip"] += item in clip.captions
        clip.captions.append(item)
        return
    counts["questions"] += 1
    twice = any((item.question, item.answer) == (other.question, other.answer) for other in clip.questions)
    counts["questions listed twice for a clip"] += twice
    clip.questions.append(item)


def text_of(given: Any) -> str:
    """Text, also of bytes in UTF-8; nothing where None or NaN stands for it. Raises ValueError where bytes aren't UTF-8."""
    if given is None or given != given:
        return ""
    return given.decode("utf-8") if isinstance(given, bytes) else str(given)


def plain(text: str) -> str:
    """An answer in lower case with single spaces, so that equal answers are equal strings."""
    return " ".join(text.lower().split())


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
