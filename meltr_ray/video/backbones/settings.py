"""Settings that the backbones share.

A field left empty is filled in from `size`. Sizes below the authors' own start from nothing on small data, so theirs also
say what such a start needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Optional

from meltr_ray.bounds import bounded, check_settings
from meltr_ray.errors import check, check_choice

if TYPE_CHECKING:  # `--help` needs no torch
    from torch import nn

    from meltr_ray.video.backbones.naming import Naming
    from meltr_ray.video.clips.folder import DataFolder
    from meltr_ray.video.clips.settings import DataConfig
    from meltr_ray.video.clips.store import ClipStore
    from meltr_ray.video.tasks.settings import TaskConfig

CONTROL_LOSSES = ("constant", "shuffled")
"""Planted losses that should be demoted: one that depends on nothing, one that pulls captions to wrong videos."""
PAIR_LOSSES = ("align", "matching", "rank")
"""Primary losses that score each text with each video in a pass of its own."""
OPTION_TEXTS = ("listed", "pair")
"""How the question and an option make one text, see meltr_ray/video/clips/questions.py."""


@dataclass(frozen=True)
class Losses:
    """What a backbone offers for a task."""

    primaries: tuple[str, ...]
    """Losses whose scores the metric is taken of; the first is the default, that of the published code."""
    default: tuple[str, ...]
    """The default loss set, the primary first: that of the paper or of its code, as far as there is one."""
    offered: tuple[str, ...]
    """All losses, the controls included."""


@dataclass(kw_only=True)
class BackboneConfig:
    """What every backbone has."""

    sizes: ClassVar[dict[str, dict[str, Any]]] = {}
    """Size -> what fills fields that are left empty."""
    losses: ClassVar[dict[str, Losses]] = {}
    """Task -> what the backbone offers for it; a task that isn't there isn't offered."""
    loss_sets: ClassVar[dict[str, list[str]]] = {}
    """Name in `losses.set` -> auxiliary losses that join the primary, as far as the task offers them."""
    encoders: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Each the modules that it is made of, from its input on; all else is heads."""
    of_frames: ClassVar[tuple[str, ...]] = ()
    """Those of their modules that a data set without frame features does without."""

    name: str = ""
    """Backbone: `univl`, `violet` or `allinone`; chosen by `backbone=<name>`."""
    size: str = "tiny"
    """Size that fills every field left empty below: `tiny` (seconds on a CPU) up to the authors' own."""
    weights: Optional[str] = None
    """Folder of an imported checkpoint (workloads/prepare.py checkpoint=...) that training starts from; default: drawn anew."""
    hidden_size: Optional[int] = bounded(None, 1, 8192)
    """Width of the transformers; default: from `size`."""
    num_heads: Optional[int] = bounded(None, 1, 256)
    """Attention heads; must divide `hidden_size`; default: from `size`."""
    feed_forward_size: Optional[int] = bounded(None, 1, 65_536)
    """Width of the feed-forward layers; default: from `size`."""
    max_position_embeddings: Optional[int] = bounded(None, 1, 65_536)
    """Longest text (positions); default: from `size`."""
    dropout: float = bounded(0.1, 0, 0.99)
    """Dropout probability of hidden states and, but for All-in-one, of attention."""
    initializer_range: Optional[float] = bounded(None, 1e-6, 10)
    """Standard deviation of weights that are drawn anew (published: 0.02, too little for narrow models); default: from `size`."""
    fused_attention: bool = True
    """Use torch's fused attention kernels; false: plain matrix products, which admit a second derivative. On a CPU with dropout there is no fused kernel and the plain form runs; nor is there one with a bias that is trained (Video Swin), where the plain form runs twice to keep no scores."""
    activation_checkpointing: bool = False
    """Compute each layer again in the backward pass instead of keeping its activations (memory for time)."""

    drops_words: ClassVar[bool] = False
    """Whether it knows `data.word_dropout`."""

    @property
    def reads_pixels(self) -> bool:
        """Whether clips are read as pixels, else as extracted features."""
        return True

    def module(self, task: TaskConfig, folder: DataFolder) -> nn.Module:
        """The losses of a task around the backbone, weights drawn from torch's generator."""
        raise NotImplementedError

    def inputs(self, data: DataConfig, task: TaskConfig, folder: DataFolder) -> Any:
        """What turns clips, captions and questions into that module's batches."""
        raise NotImplementedError

    @classmethod
    def naming(cls) -> Naming:
        """The names in its checkpoint files."""
        raise NotImplementedError

    def prepare(self, data: DataConfig, report: Callable[[str], None]) -> None:
        """Make what every process needs; on the driver, on a prepared data folder."""

    def caveats(self, loss_set: list[str], train: ClipStore) -> list[str]:
        """What a reader of the results has to know of how inputs were made."""
        return []

    def check(self, data: DataConfig, task: TaskConfig) -> None:
        """Refuse data and a task that this backbone can't take."""
        check(
            data.max_words <= self.max_position_embeddings,
            "data.max_words",
            data.max_words,
            f"longer than backbone.max_position_embeddings={self.max_position_embeddings}; lower it",
        )
        if task.name == "captioning":
            check(
                task.max_caption_words <= self.max_position_embeddings,
                "task.max_caption_words",
                task.max_caption_words,
                f"longer than backbone.max_position_embeddings={self.max_position_embeddings}; lower it",
            )
        check(
            not data.word_dropout or self.drops_words,
            "data.word_dropout",
            data.word_dropout,
            f"backbone={self.name} has none; leave it out",
        )

    def _fill(self) -> None:
        """Fill empty fields from the size, and check what all backbones share."""
        check_settings("backbone", self)
        check_choice("backbone.size", self.size, tuple(self.sizes))
        for name, value in self.sizes[self.size].items():
            given = getattr(self, name)
            setattr(self, name, value if given is None else given)
        check(
            self.hidden_size % self.num_heads == 0,
            "backbone.num_heads",
            self.num_heads,
            f"must divide backbone.hidden_size={self.hidden_size}; change one of the two",
        )
