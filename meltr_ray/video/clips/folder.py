"""A prepared data folder as a run uses it: its splits, its words, and the sizes that shape the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from meltr_ray.storage.sealed import sha256
from meltr_ray.video.clips.answers import Answers
from meltr_ray.video.clips.store import ClipStore, load_manifest
from meltr_ray.video.clips.vocabulary import Vocabulary

if TYPE_CHECKING:
    from meltr_ray.video.workload import Video


@dataclass(frozen=True)
class DataFolder:
    """What a configuration takes from its data folder."""

    path: Path
    vocabulary: Vocabulary
    """The one that the settings name, else the data set's own."""
    answers: Answers | None
    """For open questions."""
    feature_size: int
    """Columns of frame features; 0: the data set has none."""
    audio_size: int
    """Columns of audio features; 0: the data set has none."""
    checksums: dict[str, str]
    """SHA-256 of the vocabulary, and of the answers: what the model's numbers stand for."""
    reads_pixels: bool
    needs_features: bool

    @classmethod
    def open(cls, config: Video) -> Self:
        """Raises ConfigError where the folder isn't whole, or lacks answers that the task needs."""
        path = Path(config.data.folder)
        manifest = load_manifest(path)
        words = {"vocabulary": Path(config.data.vocabulary or path / "vocabulary.txt")}
        if config.task.name == "open_ended":
            words["answers"] = path / "answers.txt"
        vocabulary, answers = Vocabulary(words["vocabulary"]), Answers(words["answers"]) if "answers" in words else None
        checksums = {name: sha256(file) for name, file in words.items()}
        pixels = config.backbone.reads_pixels
        needs_features = not pixels and config.task.name != "sentiment"  # which words and audio can do without
        sizes = manifest["feature_size"], manifest.get("audio_size", 0)
        return cls(path, vocabulary, answers, *sizes, checksums, pixels, needs_features)

    @property
    def num_answers(self) -> int:
        return len(self.answers) if self.answers else 0

    def split(self, name: str) -> ClipStore:
        """The clips of a split, with their videos where the backbone reads pixels. Raises ConfigError where it lacks what is read."""
        return ClipStore(self.path, name, videos=self.reads_pixels, features=self.needs_features)
