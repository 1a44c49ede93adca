"""The pickles in which CMU-MOSI and CMU-MOSEI are passed around, of MulT (Tsai et al., ACL 2019) and of MMSA (Mao et al., 2022).

`train`, `valid` and `test`, each a dictionary of `id`, `vision` and `audio` (N, rows, D), `labels` (MulT) or `regression_labels`
(MMSA), and in MMSA's `raw_text`, `vision_lengths` and `audio_lengths`. MulT's have vectors in place of words, which aren't read:
frames and sound alone are rated there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from meltr_ray.errors import check
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.datasets.importers.annotations import Annotations
from meltr_ray.video.datasets.importers.grouping import text_of
from meltr_ray.video.datasets.pickles import read_pickle

SPLIT_NAMES = {"train": "train", "valid": "validation", "val": "validation", "validation": "validation", "dev": "validation",
               "test": "test"}  # fmt: skip
"""How a split is called elsewhere -> how it is called here."""
NAMED = re.compile(r"(?P<video>.+?)(?:\$_\$|\[|_(?=\d+\]?$))(?P<clip>\d+)\]?")
"""`<video>$_$<clip>`, `<video>[<clip>]` or `<video>_<clip>`."""


def read_pickled(title: str, path: Path) -> Annotations:
    """Clips with video features, audio, score, and transcript if there is one. Raises ConfigError for a damaged file."""
    content = read_pickle(path)
    check(isinstance(content, dict) and "train" in content, "source", path, "holds no train split; fetch the file again")
    splits = {ours: _clips(path, name, content[name]) for name, ours in SPLIT_NAMES.items() if name in content}
    clips = [clip for clips in splits.values() for clip in clips]
    infinite = sum(_replace_infinity(clip) for clip in clips)
    counts, warnings = described(clips)
    if infinite:
        counts["values of minus infinity, set to 0 as MulT sets them"] = infinite
        warnings.append(f"{infinite} values of minus infinity were set to 0, as MulT sets them")
    if not any(clip.transcript for clip in clips):
        warnings.append(f"{path.name} has no raw_text, so there are no words, and frames and audio alone are rated")
    return Annotations(f"{title}; official splits", splits, [path], counts=counts, warnings=warnings)


def described(clips: list[Clip]) -> tuple[dict[str, int], list[str]]:
    """What there is in scores, transcripts and audio, as counts and warnings."""
    outside = [clip for clip in clips if clip.score is not None and not abs(clip.score) <= 3]
    audio = [clip.audio for clip in clips if clip.audio is not None]
    values = np.concatenate(audio) if len({part.shape[1:] for part in audio}) == 1 else np.zeros((0, 0), np.float32)
    finite = values[np.isfinite(values).all(1)]
    constant = (finite == finite[:1]).all(0).sum() if len(finite) else 0
    counts = {"videos": len({clip.source for clip in clips}), "scores outside -3 to 3": len(outside),
              "utterances without a transcript": sum(not clip.transcript for clip in clips),
              "columns of audio": values.shape[1], "constant columns of audio": int(constant),
              "largest value of audio, rounded": int(np.abs(finite).max(initial=0)),
              "rows of audio with NaN or infinity": len(values) - len(finite)}  # fmt: skip
    worrying = ("constant columns of audio", "rows of audio with NaN or infinity")
    warnings = [f"{counts[name]} {name}" for name in worrying if counts[name]]
    warnings += [f"{clip.id}: score {clip.score:g} isn't in -3 to 3" for clip in outside]
    return counts, warnings


def _clips(path: Path, split: str, given: Any) -> list[Clip]:
    try:
        labels = np.asarray(given["regression_labels"] if "regression_labels" in given else given["labels"], np.float64)
        names = [_name(name) for name in given.get("id", [f"{split}_{at}" for at in range(len(labels))])]
        texts = [text_of(text).strip() for text in given.get("raw_text", [""] * len(labels))]
        whole = all(len(column) == len(labels) for column in (names, texts, given["audio"], given["vision"]))
        scores = labels.reshape(len(labels), -1)[:, 0].tolist()
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        whole = False
    check(whole, "source", path, f"its {split} lacks vision, audio and labels of one length, or text in UTF-8; fetch it again")
    clips = []
    for at, ((clip_id, video, *times), text, score) in enumerate(zip(names, texts, scores)):
        features, audio = (_rows(path, given, kind, at) for kind in ("vision", "audio"))
        start, end = times or (None, None)
        clips.append(Clip(clip_id, [], features, video, start=start, end=end, audio=audio, score=score,
                          transcript=text or None))  # fmt: skip
    return clips


def _name(given: Any) -> tuple:
    """Clip and video of an id, and its start and end (s) where they are part of it, as in MulT's [video, start, end]."""
    if not isinstance(given, (str, bytes)) and np.ndim(given) == 1:
        video, *times = map(text_of, given)
        clip_id = "_".join([video, *times[:1]])
        return (clip_id, video, *map(float, times)) if len(times) == 2 else (clip_id, video)
    name = text_of(given)
    parts = NAMED.fullmatch(name)
    return (f"{parts['video']}_{parts['clip']}", parts["video"]) if parts else (name, name)


def _rows(path: Path, given: dict[str, Any], kind: str, at: int) -> np.ndarray:
    """(rows, D) float32 without padding: as long as the file says, else without rows of zeros before and after; at least one."""
    length = None
    try:
        values = np.atleast_2d(np.array(given[kind][at], np.float32))
        if f"{kind}_lengths" in given:
            length = int(np.asarray(given[f"{kind}_lengths"][at]).item())
    except (IndexError, TypeError, ValueError):
        values = np.zeros(0)
    check(values.ndim == 2, "source", path, f"{kind} of utterance {at} isn't (rows, D) numbers, or has no length; fetch it again")
    if length is not None:
        return values[: max(1, length)]
    used = np.flatnonzero(values.any(1))
    return values[used[0] : used[-1] + 1] if len(used) else values[:1]


def _replace_infinity(clip: Clip) -> int:
    """Set minus infinity (the logarithm of silence, in COVAREP's features) to 0; how often."""
    count = 0
    for values in (clip.features, clip.audio):
        found = np.isneginf(values)
        values[found] = 0
        count += int(found.sum())
    return count
