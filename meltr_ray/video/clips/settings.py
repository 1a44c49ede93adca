"""Settings of the data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from meltr_ray.errors import check, check_at_least


@dataclass(kw_only=True)
class DataConfig:
    """Which clips, and how much of each a batch takes."""

    name: str = "digits"
    """Name of the data set: `digits` is made on first use; others come from `workloads/prepare.py`."""
    variant: Optional[str] = None
    """prepare.py: which of a data set's own divisions, such as `9k` of msrvtt or `action` of tgif_qa; default: the importer's first."""
    folder: str = "data/digits"
    """Folder of the prepared data set (Parquet); relative to the working folder."""
    vocabulary: Optional[str] = None
    """Vocabulary file, one word piece a line (for a published checkpoint BERT's `vocab.txt`); default: that of the data set."""
    max_words: int = 20
    """Word pieces a caption is cut to, [CLS] and [SEP] included."""
    max_frames: int = 12
    """Frame features a clip is sampled down to, evenly; backbones that read pixels take `backbone.num_frames` frames."""
    word_dropout: float = 0.0
    """UniVL: probability that a word piece of a training text is left out, for every loss (published: 0; for small data)."""
    mask_probability: float = 0.15
    """Probability that a word piece or a frame is masked in the masked losses (BERT's 80/10/10 rule for words)."""
    loader_workers: Optional[int] = None
    """Older name of `train.loader_workers`."""
    prefetch: Optional[int] = None
    """Older name of `train.prefetch`."""

    def __post_init__(self):
        check_at_least("data.max_words", self.max_words, 3)
        check_at_least("data.max_frames", self.max_frames, 1)
        check(0 <= self.word_dropout < 1, "data.word_dropout", self.word_dropout, "must lie in [0, 1); lower it")
        check(0 < self.mask_probability < 1, "data.mask_probability", self.mask_probability,
              "must lie between 0 and 1; published: 0.15")
