"""What an importer returns: clips by split, with all that the annotation says of them and without their media."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from meltr_ray.video.clips.clip import Clip


@dataclass
class Annotations:
    """A data set as its authors annotated it.

    `splits` holds those that the data set has: train is a must; test may be missing where validation is there. What else training
    wants (meta, validation) is held out of train later, by whole sources.
    """

    description: str
    """One sentence for reports: which data, which split is what."""
    splits: dict[str, list[Clip]]
    """Split -> clips; of media, an importer sets only what its own files hold. The rest is found by the clips' `media` names."""
    files: list[Path]
    """Files that were read: with the media they are the data set's source."""
    media: dict[str, str] = field(default_factory=dict)
    """Clip id -> name of its video file (without its ending) and key of its features, where that isn't the id."""
    num_answers: int | None = None
    """Size of the answer vocabulary of open questions that the authors use; None: every answer of train."""
    counts: dict[str, int] = field(default_factory=dict)
    """What else the import reports: name -> number."""
    warnings: list[str] = field(default_factory=list)
    published: bool = True
    """False: a user's own table, in which captions that repeat go, and so do questions with equal options."""
