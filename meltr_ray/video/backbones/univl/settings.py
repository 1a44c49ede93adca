"""Settings of UniVL, and its sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

from meltr_ray.bounds import bounded
from meltr_ray.errors import check, check_choice
from meltr_ray.video.backbones.settings import CONTROL_LOSSES, BackboneConfig, Losses

if TYPE_CHECKING:  # `--help` needs no torch
    from torch import nn

    from meltr_ray.video.backbones.naming import Naming
    from meltr_ray.video.clips.folder import DataFolder
    from meltr_ray.video.clips.settings import DataConfig
    from meltr_ray.video.tasks.settings import TaskConfig

UNIVL_LOSSES = (
    "joint",
    "align",
    "masked_language",
    "masked_frame",
    "masked_joint",
    "masked_align",
    "caption",
    "masked_caption",
)
LOSSES = {
    "retrieval": Losses(  # the paper's without those over all pairs
        ("joint", "align"), ("joint", "masked_joint", "masked_language", "masked_frame", "caption"), UNIVL_LOSSES + CONTROL_LOSSES),
    "multiple_choice": Losses(
        ("choice",), ("choice", "joint", "masked_joint", "masked_language", "masked_frame"), ("choice", *UNIVL_LOSSES, *CONTROL_LOSSES)),
    "open_ended": Losses(
        ("answer",), ("answer", "joint", "masked_joint", "masked_language", "masked_frame"), ("answer", *UNIVL_LOSSES, *CONTROL_LOSSES)),
    "captioning": Losses(  # the paper's without those over all pairs
        ("caption",), ("caption", "masked_caption", "joint", "masked_joint", "masked_language", "masked_frame"),
        UNIVL_LOSSES + CONTROL_LOSSES),
    "sentiment": Losses(
        ("sentiment",), ("sentiment", "joint", "masked_joint", "masked_language"),
        ("sentiment", *(loss for loss in UNIVL_LOSSES if "caption" not in loss), *CONTROL_LOSSES)),
}  # fmt: skip
UNIVL_SIZES = {
    "tiny": dict(hidden_size=64, num_heads=4, feed_forward_size=128, text_layers=2, visual_layers=1, cross_layers=1,
                 decoder_layers=1, max_position_embeddings=64, max_cross_position_embeddings=128,
                 similarity_temperature=0.1, normalize_embeddings=True, initializer_range=0.02),
    "small": dict(hidden_size=128, num_heads=4, feed_forward_size=256, text_layers=1, visual_layers=1, cross_layers=1,
                  decoder_layers=1, max_position_embeddings=128, max_cross_position_embeddings=256,
                  similarity_temperature=0.07, normalize_embeddings=True, initializer_range=0.02),
    "base": dict(hidden_size=768, num_heads=12, feed_forward_size=3072, text_layers=12, visual_layers=6, cross_layers=2,
                 decoder_layers=3, max_position_embeddings=512, max_cross_position_embeddings=1024,
                 similarity_temperature=1.0, normalize_embeddings=False, initializer_range=0.02),
}  # fmt: skip


@dataclass(kw_only=True)
class UniVLConfig(BackboneConfig):
    """UniVL (arXiv 2002.06353): text, visual and cross encoders and a decoder, over frame features."""

    sizes = UNIVL_SIZES
    losses = LOSSES
    loss_sets = {
        "small": ["masked_joint"],
        "masked": ["masked_joint", "masked_language", "masked_frame"],
        "generative": ["masked_language", "caption", "masked_caption"],
    }
    encoders = (("bert",), ("normalize_video", "visual"), ("cross",), ("decoder.embeddings", "decoder.decoder"))
    of_frames = ("normalize_video", "visual")

    name: str = "univl"
    """Backbone: `univl`."""
    text_layers: Optional[int] = bounded(None, 1, 128)
    """Layers of the text encoder; default: from `size`."""
    visual_layers: Optional[int] = bounded(None, 1, 128)
    """Layers of the visual encoder; default: from `size`."""
    cross_layers: Optional[int] = bounded(None, 1, 128)
    """Layers of the cross encoder; default: from `size`."""
    decoder_layers: Optional[int] = bounded(None, 1, 128)
    """Layers of the caption decoder; default: from `size`."""
    max_cross_position_embeddings: Optional[int] = bounded(None, 1, 65_536)
    """Longest text plus clip (positions) that the cross encoder takes; default: from `size`."""
    similarity_temperature: Optional[float] = bounded(None, 1e-4, 1e4)
    """Divides the joint similarities before their loss (published: 1); default: from `size`."""
    normalize_embeddings: Optional[bool] = None
    """Scale text and video embeddings to length 1 before the joint similarity; the published MELTR code does; default: from `size`."""
    embedding_dropout: float = bounded(0.0, 0, 0.99)
    """Dropout probability of the pooled text and video embeddings (not UniVL's; for small data)."""
    bag_of_words: bool = False
    """Read text as word embeddings alone, without positions, norm and `text_layers` (not UniVL's; for small data from scratch)."""
    joint_loss: str = "contrastive"
    """Loss on the joint similarity matrix: `contrastive` (cross entropy both ways) or `margin` (max-margin ranking, the published MELTR code)."""
    auxiliary_text: str = "caption"
    """Captioning: what the auxiliary losses read, a drawn `caption`, or the `transcript` that captions are generated from (published; where nothing is said it is empty and these losses learn nothing)."""
    choice_score: str = "pair"
    """Multiple choice: an option's score, that of the cross encoder for the `pair` of text and clip, or the `joint` similarity of their embeddings."""

    def __post_init__(self):
        self._fill()
        check(
            not (self.bag_of_words and self.weights),
            "backbone.bag_of_words",
            True,
            "an imported text encoder would not be used; set it to false",
        )
        check_choice("backbone.joint_loss", self.joint_loss, ("contrastive", "margin"))
        check_choice("backbone.auxiliary_text", self.auxiliary_text, ("caption", "transcript"))
        check_choice("backbone.choice_score", self.choice_score, ("pair", "joint"))

    drops_words = True

    @property
    def reads_pixels(self) -> bool:
        return False

    def check(self, data: DataConfig, task: TaskConfig) -> None:
        super().check(data, task)
        check(
            data.max_frames <= self.max_position_embeddings,
            "data.max_frames",
            data.max_frames,
            f"longer than backbone.max_position_embeddings={self.max_position_embeddings}; lower it",
        )
        more = " and as many rows of audio" if task.name == "sentiment" else ""
        total = data.max_words + data.max_frames * (2 if more else 1)
        check(
            total <= self.max_cross_position_embeddings,
            "backbone.max_cross_position_embeddings",
            self.max_cross_position_embeddings,
            f"less than words plus frames{more}; raise it to {total}",
        )

    def module(self, task: TaskConfig, folder: DataFolder) -> nn.Module:
        from meltr_ray.video.backbones.univl.losses import UniVLLosses
        from meltr_ray.video.backbones.univl.model import UniVL

        heads = dict(task=task.name, num_answers=folder.num_answers, audio_size=folder.audio_size)
        return UniVLLosses(UniVL(self, len(folder.vocabulary), folder.feature_size, **heads), task)

    @classmethod
    def naming(cls) -> Naming:
        from meltr_ray.video.backbones.univl.naming import UniVLNaming

        return UniVLNaming()

    def inputs(self, data: DataConfig, task: TaskConfig, folder: DataFolder) -> Any:
        from meltr_ray.video.backbones.univl.features import AudioScale
        from meltr_ray.video.backbones.univl.inputs import UniVLInputs

        reads_audio = task.name == "sentiment" and folder.audio_size
        audio = AudioScale.of(folder.split("train")) if reads_audio else None  # standardised by the train split
        return UniVLInputs(folder.vocabulary, data, task=task, answers=folder.answers, backbone=self,
                           feature_size=folder.feature_size, audio=audio)  # fmt: skip
