"""Settings of the data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from meltr_ray.bounds import bounded, check_settings
from meltr_ray.config.paths import check_path

MADE = "digits"
"""The data set that is made, not imported."""


@dataclass(kw_only=True)
class DataConfig:
    """Which clips, and how much of each a batch takes."""

    name: str = MADE
    """Name of the data set: `digits` is made on first use; others come from `workloads/prepare.py`."""
    variant: Optional[str] = None
    """prepare.py: which of a data set's own divisions, such as `9k` of msrvtt or `action` of tgif_qa; default: the importer's first."""
    held_out: float = bounded(0.1, 0.01, 0.4)
    """prepare.py: share of the clips to train on that each split which the data set lacks (meta, validation, test) takes, by whole sources, at least one; give more where there are few."""
    features: Optional[str] = None
    """prepare.py: folder below `source` whose feature files are taken, such as `resnet152`, where several hold features of the same videos; default: all."""
    folder: str = "data/digits"
    """Folder of the prepared data set (Parquet); relative to the working folder."""
    vocabulary: Optional[str] = None
    """Vocabulary file, one word piece a line (for a published checkpoint BERT's `vocab.txt`); default: that of the data set."""
    max_words: int = bounded(20, 3, 65_536)
    """Word pieces a caption is cut to, [CLS] and [SEP] included."""
    max_frames: int = bounded(12, 1, 65_536)
    """Frame features a clip is sampled down to, evenly; backbones that read pixels take `backbone.num_frames` frames."""
    word_dropout: float = bounded(0.0, 0, 0.99)
    """UniVL: probability that a word piece of a training text is left out, for every loss (published: 0; for small data)."""
    mask_probability: float = bounded(0.15, 1e-6, 0.999)
    """Probability that a word piece or a frame is masked in the masked losses (BERT's 80/10/10 rule for words)."""
    loader_workers: Optional[int] = bounded(None, 0, 64)
    """Older name of `train.loader_workers`."""
    prefetch: Optional[int] = bounded(None, 1, 64)
    """Older name of `train.prefetch`."""

    def __post_init__(self):
        check_settings("data", self)
        check_path("data.folder", self.folder)
