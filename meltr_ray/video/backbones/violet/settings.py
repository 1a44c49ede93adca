"""Settings of VIOLET, and its sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional

from meltr_ray.bounds import bounded
from meltr_ray.errors import check, check_choice
from meltr_ray.video.backbones.settings import CONTROL_LOSSES, OPTION_TEXTS, BackboneConfig, Losses

if TYPE_CHECKING:  # `--help` needs no torch
    from torch import nn

    from meltr_ray.video.backbones.naming import Naming
    from meltr_ray.video.backbones.violet.visual_tokens import VisualTokens
    from meltr_ray.video.clips.folder import DataFolder
    from meltr_ray.video.clips.settings import DataConfig
    from meltr_ray.video.clips.store import ClipStore
    from meltr_ray.video.tasks.settings import TaskConfig

VIOLET_LOSSES = ("matching", "masked_language", "masked_patch")
VIOLET_QUESTION_LOSSES = ("answer", *VIOLET_LOSSES)
LOSSES = {
    "retrieval": Losses(("matching",), VIOLET_LOSSES, VIOLET_LOSSES + CONTROL_LOSSES),
    "multiple_choice": Losses(("answer",), VIOLET_QUESTION_LOSSES, VIOLET_QUESTION_LOSSES + CONTROL_LOSSES),
    "open_ended": Losses(("answer",), VIOLET_QUESTION_LOSSES, VIOLET_QUESTION_LOSSES + CONTROL_LOSSES),
}  # fmt: skip
VIOLET_SIZES = {
    "tiny": dict(hidden_size=64, num_heads=4, feed_forward_size=128, cross_layers=2, max_position_embeddings=64,
                 num_frames=4, max_frames=6, image_size=32, max_rows=8, swin_depths=[2, 2], swin_heads=[2, 4],
                 swin_window=[2, 4, 4], num_visual_tokens=64, initializer_range=0.1,
                 matching_loss="both_ways", drop_path=0.0, option_text="pair", published_options=False),
    "base": dict(hidden_size=768, num_heads=12, feed_forward_size=3072, cross_layers=12, max_position_embeddings=512,
                 num_frames=5, max_frames=6, image_size=224, max_rows=14, swin_depths=[2, 2, 18, 2], swin_heads=[3, 6, 12, 24],
                 swin_window=[8, 7, 7], num_visual_tokens=8192, initializer_range=0.02,
                 matching_loss="texts", drop_path=0.2, option_text="listed", published_options=True),
}  # fmt: skip


@dataclass(kw_only=True)
class VioletConfig(BackboneConfig):
    """VIOLET (arXiv 2111.12681): Video Swin, a cross encoder and heads, over pixels.

    Video Swin's last stage is as wide as the cross encoder, its first has this over 2^(stages - 1).
    """

    sizes = VIOLET_SIZES
    losses = LOSSES
    loss_sets = {"small": ["masked_language"]}
    encoders = (("enc_img",), ("enc_txt", "trsfr"))

    name: str = "violet"
    """Backbone: `violet`."""
    cross_layers: Optional[int] = bounded(None, 1, 128)
    """Layers of the cross encoder; default: from `size`."""
    num_frames: Optional[int] = bounded(None, 1, 1024)
    """Frames a clip (published: 5); default: from `size`."""
    max_frames: Optional[int] = bounded(None, 1, 1024)
    """Rows of the table of frame positions; default: from `size`."""
    image_size: Optional[int] = bounded(None, 1, 2048)
    """Height and width of a frame (pixels; published: 224); default: from `size`."""
    max_rows: Optional[int] = bounded(None, 1, 512)
    """A frame has at most this squared of patches, each 4 x 2^(stages - 1) pixels square; default: from `size`."""
    swin_depths: Optional[list[int]] = bounded(None, 1, 64, most=6)
    """Blocks of each stage of Video Swin; default: from `size`."""
    swin_heads: Optional[list[int]] = bounded(None, 1, 256, most=6)
    """Attention heads of each stage of Video Swin; default: from `size`."""
    swin_window: Optional[list[int]] = bounded(None, 1, 512, most=3)
    """Frames, rows and columns of Video Swin's windows; default: from `size`."""
    num_visual_tokens: Optional[int] = bounded(None, 2, 65_536)
    """Number of visual tokens that masked patches are told from (published: DALL-E's 8192); default: from `size`."""
    answer_dropout: float = bounded(0.5, 0, 0.99)
    """Dropout probability of the open-ended head."""
    drop_path: Optional[float] = bounded(None, 0, 0.99)
    """Probability that Video Swin's last block leaves a branch out for a clip (published: 0.2); lower blocks rise to it from 0; default: from `size`."""
    matching_temperature: float = bounded(0.05, 1e-4, 1e4)
    """Divides the scores of video-text matching before its loss."""
    matching_loss: Optional[str] = None
    """`texts`: softmax over the texts for each video (published), which leaves open how one video's scores compare with another's; `both_ways`: also over the videos for each text; default: from `size`."""
    option_text: Optional[str] = None
    """Multiple choice: the text of an option, `listed` (question, all options, then this one; published) or `pair` (question, [SEP], option); default: from `size`."""
    published_options: Optional[bool] = None
    """Multiple choice: match and mask as the published code does, which takes options of the first questions for the texts of all clips and masks whole options; false: match each clip with the right option of every question, and mask words; default: from `size`."""

    def __post_init__(self):
        self._fill()
        check(len(self.swin_depths) > 0, "backbone.swin_depths", self.swin_depths, "must have a number for each stage; give at least one")
        check(
            self.hidden_size % 2 ** (len(self.swin_depths) - 1) == 0,
            "backbone.hidden_size",
            self.hidden_size,
            f"must be a multiple of {2 ** (len(self.swin_depths) - 1)}, as widths double from stage to stage; change it",
        )
        check(len(self.swin_window) == 3, "backbone.swin_window", self.swin_window, "must have three numbers; give them")
        widths = [self.swin_width * 2**index for index in range(len(self.swin_depths))]
        check(
            len(self.swin_heads) == len(widths) and not any(width % heads for width, heads in zip(widths, self.swin_heads)),
            "backbone.swin_heads",
            self.swin_heads,
            f"must divide the widths {widths} of the stages; give one number each",
        )
        check(
            self.num_frames <= self.max_frames,
            "backbone.num_frames",
            self.num_frames,
            f"more than backbone.max_frames={self.max_frames}; lower it",
        )
        check(
            self.image_size % self.patch_pixels == 0 and self.image_size <= self.patch_pixels * self.max_rows,
            "backbone.image_size",
            self.image_size,
            f"must be a multiple of a patch, {self.patch_pixels}, and at most {self.patch_pixels * self.max_rows}; change it",
        )
        check_choice("backbone.matching_loss", self.matching_loss, ("texts", "both_ways"))
        check_choice("backbone.option_text", self.option_text, OPTION_TEXTS)

    @property
    def swin_width(self) -> int:
        """Channels of Video Swin's first stage."""
        return self.hidden_size // 2 ** (len(self.swin_depths) - 1)

    @property
    def patch_pixels(self) -> int:
        """Side of a patch as the cross encoder sees it, in pixels (published: 32)."""
        return 4 * 2 ** (len(self.swin_depths) - 1)

    def module(self, task: TaskConfig, folder: DataFolder) -> nn.Module:
        from meltr_ray.video.backbones.violet.losses import VioletLosses
        from meltr_ray.video.backbones.violet.model import Violet

        return VioletLosses(Violet(self, len(folder.vocabulary), task.name, folder.num_answers), task)

    @classmethod
    def naming(cls) -> Naming:
        from meltr_ray.video.backbones.violet.naming import VioletNaming

        return VioletNaming()

    def inputs(self, data: DataConfig, task: TaskConfig, folder: DataFolder) -> Any:
        from meltr_ray.video.backbones.violet.inputs import VioletInputs

        return VioletInputs(folder.vocabulary, data, self, self.visual_tokens(data), task=task, answers=folder.answers)

    def visual_tokens(self, data: DataConfig, report: Callable[[str], None] = print) -> VisualTokens:
        """Tokens for clips that come without any; fitted once for a data folder."""
        from meltr_ray.video.backbones.violet.visual_tokens import ensure_visual_tokens

        return ensure_visual_tokens(data.folder, self.image_size, self.patch_pixels, self.num_visual_tokens, self.num_frames, report=report)

    def prepare(self, data: DataConfig, report: Callable[[str], None]) -> None:
        self.visual_tokens(data, report)

    def caveats(self, loss_set: list[str], train: ClipStore) -> list[str]:
        if "masked_patch" not in loss_set or train[0].vq_tokens is not None:
            return []
        return [f"masked_patch: {self.num_visual_tokens} k-means tokens of train patches stand in for DALL-E's visual "
                "tokens, which the data set lacks."]  # fmt: skip
