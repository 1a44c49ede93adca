"""Multiple choice made of captions: which of five sentences is a caption of this clip, the others being those of other clips."""

from __future__ import annotations

import hashlib

from meltr_ray.video.clips.clip import Clip, Question

KIND, QUESTION = "caption", "which sentence describes the video?"
OPTIONS, QUESTIONS_PER_CLIP, DRAWS = 5, 5, 200


def add_caption_choice(clips: list[Clip]) -> None:
    """Up to five questions a clip, each with another caption of it as the right one.

    The wrong ones are captions of clips of other sources in the same list, no two of one source. All draws hang on SHA-256 of the
    question's id alone. Clips for which no four such captions are found get no question.
    """
    for clip in clips:
        order = sorted(range(len(clip.captions)), key=lambda at: _number(f"{clip.id} {at}"))
        for at in sorted(order[:QUESTIONS_PER_CLIP]):
            name = f"{clip.id}-caption{at}"
            options = [clip.captions[at], *_wrong(name, clip, clips)]
            if len(options) < OPTIONS:
                continue
            right = _number(f"{name} place") % OPTIONS
            options.insert(right, options.pop(0))
            clip.questions.append(Question(name, QUESTION, clip.captions[at], options, right, KIND))


def _wrong(name: str, clip: Clip, clips: list[Clip]) -> list[str]:
    """Four captions that aren't the clip's own."""
    chosen: dict[str, str] = {}
    for draw in range(DRAWS):
        other = clips[_number(f"{name} clip {draw}") % len(clips)]
        if other.source == clip.source or other.source in chosen or not other.captions:
            continue
        caption = other.captions[_number(f"{name} caption {draw}") % len(other.captions)]
        if caption not in clip.captions and caption not in chosen.values():
            chosen[other.source] = caption
        if len(chosen) == OPTIONS - 1:
            break
    return list(chosen.values())


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
