"""A clip as importers write it and training reads it, and a question about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Segment(NamedTuple):
    """Where a clip lies in its video file, in seconds from the first frame; None: from its start, or to its end."""

    start: float | None = None
    end: float | None = None
    clip: str = ""
    """The clip's id, for messages."""

    @property
    def is_part(self) -> bool:
        return self.start is not None or self.end is not None


WHOLE = Segment()


@dataclass
class Question:
    """A question about a clip: open, or with options to choose from."""

    id: str
    """Unique in the data set."""
    question: str
    answer: str
    """The right answer; with options, the text of the right one."""
    options: list[str] = field(default_factory=list)
    right: int | None = None
    """Which of `options` is right; None for an open question."""
    kind: str = ""
    """Type by which accuracy is told apart, such as `what` or `action`; default: the question's first word."""

    def __post_init__(self):
        self.kind = self.kind or (self.question.split() or [""])[0].lower()


@dataclass
class Clip:
    """One clip; what a data set lacks stays empty."""

    id: str
    captions: list[str] = field(default_factory=list)
    """Sentences that describe the clip."""
    features: np.ndarray | None = None
    """(frames, D) float32."""
    source: str = ""
    """The video that the clip was cut from: intervals are drawn over these, and splits should share none. Default: the id."""
    video: bytes | Path | None = None
    """The encoded video, or its file; None where the store was opened without videos."""
    start: float | None = None
    end: float | None = None
    """Where the clip lies in its file (seconds); None: the whole file."""
    transcript: str | None = None
    """What is said in the clip."""
    audio: np.ndarray | None = None
    """(frames, A) float32."""
    questions: list[Question] = field(default_factory=list)
    score: float | None = None
    """Sentiment, -3 (negative) to 3 (positive)."""
    vq_tokens: np.ndarray | None = None
    """Visual tokens that came with the clip, row-major (frames x rows x columns,) int16."""
    question: Question | None = None
    """The one that is asked, in an example of question answering."""

    def __post_init__(self):
        self.source = self.source or self.id

    @property
    def segment(self) -> Segment:
        return Segment(self.start, self.end, self.id)
