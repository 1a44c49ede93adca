"""What all importers share: annotations in, a data folder out; whatever is left out is counted, listed and reported."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meltr_ray.errors import check
from meltr_ray.storage import put
from meltr_ray.storage.sealed import sha256
from meltr_ray.video.clips import shards
from meltr_ray.video.clips.answers import Answers, build_answers
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.new_folder import new_folder
from meltr_ray.video.clips.schema import SPLITS
from meltr_ray.video.clips.store import LINKED
from meltr_ray.video.clips.vocabulary import build_vocabulary, list_words
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.cleaning import clean
from meltr_ray.video.datasets.importers.media import KINDS, Media, group_reasons, look_into, required
from meltr_ray.video.datasets.importers.splits import HELD_OUT, hold_out, shared_sources

MOST_SCORE = 3.0
SPREAD = ("least", "mean", "most")


@dataclass
class LeftOut:
    """Clips that the annotation names and the folder won't have, and why."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    """(split of the annotation, id, reason); of a video or a question, which isn't counted with the clips, no split."""

    def keep(self, splits: dict[str, list[Clip]], reason: Callable[[Clip], str]) -> dict[str, list[Clip]]:
        """The clips for which `reason` is empty; the others are noted."""
        kept: dict[str, list[Clip]] = {}
        for split, clips in splits.items():
            reasons = [reason(clip) for clip in clips]
            kept[split] = [clip for clip, why in zip(clips, reasons) if not why]
            self.rows += [(split, clip.id, why) for clip, why in zip(clips, reasons) if why]
        return kept

    def write(self, path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("split", "id", "reason"), *self.rows])


def source_of(source: Path, annotations: Annotations, media: Media, **how: Any) -> dict[str, Any]:
    """What identifies a source: SHA-256 of files of many clips, names and sizes of those of one clip (videos, .npy)."""
    files = [*annotations.files, *media.features.files]
    names = {path.relative_to(source).as_posix() if path.is_relative_to(source) else path.name: path for path in files}
    single = {"media": media.described()} if media.all_videos or media.features.single else {}
    return {name: sha256(names[name]) for name in sorted(names)} | single | how


def divided(held_out: float) -> dict[str, Any]:
    """What of the source's identity is a setting, where it isn't the default."""
    return {} if held_out == HELD_OUT else {"held_out": held_out}


def write(
    annotations: Annotations, media: Media, folder: Path, report: Callable[[str], None], derive: Callable | None = None, held_out: float = HELD_OUT,
    **about: Any,
) -> dict[str, Any]:  # fmt: skip
    """Write the data set to `folder` (which must not be in use) and return its manifest; an interrupted import is gone on with.

    `derive(splits)`: adds questions to the clips, once it is known which are in which split. `about`: name, variant and source.
    Raises ConfigError where no clip is left, and where features differ in size.
    """
    counts: dict[str, Any] = {}
    left_out, warnings = LeftOut(), list(annotations.warnings)
    named = {split: annotations.splits[split] for split in SPLITS if annotations.splits.get(split)}
    counts |= {f"clips annotated, {split}": len(clips) for split, clips in named.items()}
    counts |= annotations.counts
    counted = sum(map(len, named.values()))
    splits = _drop_duplicates(named, left_out)
    counts["duplicate ids"] = len(left_out.rows)
    clips = [clip for clips in splits.values() for clip in clips]
    check(bool(clips), "source", media.source, "names no clip; check its files")
    cleaned, unusable = clean(clips, annotations.published)
    counts |= cleaned
    look_into(media, clips, report)
    counts |= _media_counts(media, clips)
    used = {path for clip in clips if (path := media.file(clip)) is not None}
    unused = [path for path in media.all_videos if path not in used]
    counts["videos that no clip names"] = len(unused)
    nameless = media.nameless(clips)
    counts |= {"features that no clip names": len(nameless)} if media.features.found else {}
    needed = required(media, clips)
    splits = left_out.keep(splits, lambda clip: "; ".join(media.lacking[clip.id].get(kind, "") for kind in needed).strip("; "))
    splits = left_out.keep(splits, _text_problem)
    splits = left_out.keep(splits, _time_problem)
    check(any(splits.values()), "source", media.source, f"no clip is left of {len(clips)} ({_reasons(left_out.rows)}); check ids and files")
    warnings += [f"no clip of split {split} is left" for split, chosen in splits.items() if not chosen]
    lost = list(left_out.rows)
    left_out.rows += [("", media.place(path), "no clip names this video") for path in unused]
    left_out.rows += [("", key, "no clip names these features") for key in nameless]
    left_out.rows += [("", name, reason) for name, reason in unusable]
    counts["clips left out"] = len(lost)
    why = f"{len(lost)} of {counted} clips were left out, the first, {lost[0][1]}: {lost[0][2]}" if lost else ""
    splits, more = hold_out(splits, why, held_out)
    warnings += more
    if derive is not None:
        derive(splits)
    clips = [clip for clips in splits.values() for clip in clips]
    counts |= _text_counts(clips) | shared_sources(splits)
    if not needed:
        warnings.append("no video and no features were found, so nothing can be trained on this folder; put them into the source folder")
    have = {kind: sum(media.has(clip, kind) for clip in clips) for kind in KINDS}
    with new_folder(folder, about) as partial:
        counts |= _write_words(partial, splits, annotations.num_answers)
        left_out.write(partial / "left_out.csv")
        if linked := media.linked(clips):
            put(partial / LINKED, json.dumps(linked, indent=1))
        warnings += _warnings(media, counts, left_out)
        entries = {split: shards.write_split(partial, split, chosen, media.filled) for split, chosen in splits.items()}
        manifest = shards.write_manifest(
            partial, **about, description=annotations.description, splits=entries, counts=counts, media=have,
            feature_size=media.sizes["features"], audio_size=media.sizes["audio"],
            feature_extractor=", ".join(path.name for path in media.features.files), warnings=warnings)  # fmt: skip
    for line in _lines(counts, manifest["rows"], warnings):
        report(f"{about['name']}: {line}")
    return manifest


def _drop_duplicates(splits: dict[str, list[Clip]], left_out: LeftOut) -> dict[str, list[Clip]]:
    """Each id once; of two, that in the split held out the longest stays, and in one split the first."""
    seen: dict[str, str] = {}
    kept = {}
    for split in reversed(SPLITS):
        kept[split] = []
        for clip in splits.get(split, []):
            if clip.id in seen:
                left_out.rows.append((split, clip.id, f"duplicate id, also in {seen[clip.id]}"))
                continue
            seen[clip.id] = split
            kept[split].append(clip)
    return {split: kept[split] for split in SPLITS if split in splits}


def _text_problem(clip: Clip) -> str:
    if clip.score is not None and not (math.isfinite(clip.score) and abs(clip.score) <= MOST_SCORE):
        return f"score {clip.score:g} isn't in -3 to 3"
    told = clip.captions or clip.questions or (clip.transcript or "").strip() or clip.score is not None
    return "" if told else "no caption, question, transcript or score"


def _time_problem(clip: Clip) -> str:
    start, end = clip.start or 0.0, math.inf if clip.end is None else clip.end
    return "" if 0 <= start < end else f"no stretch of time ({start:g} to {end:g} s)"


def _media_counts(media: Media, clips: list[Clip]) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for kind, title in {"features": "features", "video": "video", "audio": "audio features"}.items():
        reasons = [media.lacking[clip.id][kind] for clip in clips if not media.has(clip, kind)]
        missing = sum(reason.startswith("no ") for reason in reasons)
        if missing < len(clips):
            counts[f"clips with {title}"] = len(clips) - len(reasons)
            counts[f"clips without {title}"] = missing
            counts[f"clips with unreadable {title}"] = len(reasons) - missing
    readable = [seen for seen in media.probes.values() if not seen.unreadable]
    counts |= _spread("frames of a video", [seen.frames for seen in readable])
    counts |= _spread("seconds of a video", [seen.seconds for seen in readable])
    counts |= _spread("rows of features", media.frames)
    counts["videos of a name that is there already"] = media.twice
    return counts


def _text_counts(clips: list[Clip]) -> dict[str, Any]:
    counts = _spread("captions a clip", [len(clip.captions) for clip in clips if clip.captions])
    counts["clips without captions"] = sum(not clip.captions for clip in clips)
    open_ended = sum(question.right is None for clip in clips for question in clip.questions)
    counts |= {"open questions": open_ended, "questions with options": sum(len(clip.questions) for clip in clips) - open_ended}
    return counts


def _spread(title: str, values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    spread = zip(SPREAD, (min(values), sum(values) / len(values), max(values)))
    return {f"{title}, {name}": round(value, 2) for name, value in spread}


def _warnings(media: Media, counts: dict[str, Any], left_out: LeftOut) -> list[str]:
    named = ("duplicate", "without", "unreadable", "share", "dropped", "renamed", "already", "counted as wrong")
    warnings = [f"{count} {name}" for name, count in counts.items() if count and any(word in name for word in named)]
    warnings += [f"{path.name} holds no frame features and isn't used" for path in media.features.ignored]
    matched = {media.features.found[key][0] for clip_id in media.lacking if (key := media.feature_key(clip_id))}
    for path in media.features.files:
        keys = [key for key, (file, _) in media.features.found.items() if file == path]
        warnings += [] if path in matched else [f"{path.name}: none of its {len(keys)} ids ({keys[0]} ...) is a clip's"]
    reasons = _reasons(row for row in left_out.rows if row[0])
    return warnings + ([f"left out (left_out.csv): {reasons}"] if reasons else [])


def _reasons(rows: Iterable[tuple[str, str, str]]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in group_reasons(reason for _, _, reason in rows).items())


def _write_words(folder: Path, splits: dict[str, list[Clip]], num_answers: int | None) -> dict[str, int]:
    """vocabulary.txt, words.txt and answers.txt, of train alone; counts what other splits ask beyond the answers."""
    train = splits["train"]
    texts = [text for clip in train for text in (*clip.captions, clip.transcript or "")]
    asked = {text for clip in train for question in clip.questions for text in (question.question, question.answer, *question.options)}
    build_vocabulary([*texts, *sorted(asked - set(texts))], folder / "vocabulary.txt")
    list_words(([*clip.captions, clip.transcript or ""] for clip in train), folder / "words.txt")
    answers = {
        split: [question.answer for clip in splits[split] for question in clip.questions if question.right is None] for split in splits
    }
    if not any(answers.values()):
        return {}
    build_answers(answers["train"], folder / "answers.txt", num_answers)
    known = Answers(folder / "answers.txt")
    unknown = {split: sum(known.number(answer) is None for answer in answers[split]) for split in SPLITS}
    counts = {"answers of train": len(set(answers["train"])), "answers in answers.txt": len(known)}
    return counts | {f"{split} questions of other answers, counted as wrong": count for split, count in unknown.items()}


def _lines(counts: dict[str, Any], rows: dict[str, int], warnings: list[str]) -> list[str]:
    """What a user reads: least, mean and most of a thing on one line."""
    shown: dict[str, str] = {}
    for name, value in counts.items():
        title, _, part = name.rpartition(", ")
        title, part = (title, f"{part} {value:g}") if part in SPREAD else (name, f"{value:g}")
        shown[title] = f"{shown[title]}, {part}" if title in shown else part
    lines = [f"{title}: {text}" for title, text in shown.items()]
    return [*lines, "rows: " + ", ".join(f"{split} {count}" for split, count in rows.items()), *(f"warning: {text}" for text in warnings)]
