"""Settings of All-in-one, and its sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

from meltr_ray.bounds import bounded
from meltr_ray.errors import check, check_choice
from meltr_ray.video.backbones.settings import CONTROL_LOSSES, OPTION_TEXTS, BackboneConfig, Losses

if TYPE_CHECKING:  # `--help` needs no torch
    from torch import nn

    from meltr_ray.video.backbones.naming import Naming
    from meltr_ray.video.clips.folder import DataFolder
    from meltr_ray.video.clips.settings import DataConfig
    from meltr_ray.video.tasks.settings import TaskConfig

ALLINONE_LOSSES = ("contrastive", "rank", "matching", "alignment", "masked_language")
LOSSES = {  # the released code leaves matching out, too
    "retrieval": Losses(("contrastive", "rank"), ("contrastive", "matching", "masked_language"), ALLINONE_LOSSES + CONTROL_LOSSES),
    # released for questions without auxiliary losses; these are those of retrieval
    "multiple_choice": Losses(
        ("choice", "rank"), ("choice", "contrastive", "matching", "masked_language"), ("choice", *ALLINONE_LOSSES) + CONTROL_LOSSES),
    "open_ended": Losses(
        ("answer",), ("answer", "contrastive", "matching", "masked_language"),
        ("answer", "contrastive", "matching", "alignment", "masked_language") + CONTROL_LOSSES),
}  # fmt: skip
ALLINONE_SIZES = {
    "tiny": dict(hidden_size=64, num_heads=4, feed_forward_size=128, num_layers=2, image_size=32, patch_size=8,
                 retrieval_size=32, distilled=False, unaligned_tokens=1, initializer_range=0.1, drop_path=0.0,
                 option_text="pair"),
    "Ti": dict(hidden_size=192, num_heads=3, feed_forward_size=768, num_layers=12, image_size=224, patch_size=16,
               retrieval_size=512, distilled=False, unaligned_tokens=2, initializer_range=0.02, drop_path=0.1,
               option_text="listed"),
    "S": dict(hidden_size=384, num_heads=6, feed_forward_size=1536, num_layers=12, image_size=224, patch_size=16,
              retrieval_size=512, distilled=True, unaligned_tokens=2, initializer_range=0.02, drop_path=0.1,
              option_text="listed"),
    "B": dict(hidden_size=768, num_heads=12, feed_forward_size=3072, num_layers=12, image_size=224, patch_size=16,
              retrieval_size=512, distilled=False, unaligned_tokens=1, initializer_range=0.02, drop_path=0.1,
              option_text="listed"),
}  # fmt: skip


@dataclass(kw_only=True)
class AllInOneConfig(BackboneConfig):
    """All-in-one (arXiv 2203.07303): one transformer over text and video, over pixels."""

    sizes = ALLINONE_SIZES
    losses = LOSSES
    loss_sets = {"small": ["masked_language"]}
    encoders = (("text_embeddings", "token_type_embeddings", "transformer"),)

    name: str = "allinone"
    """Backbone: `allinone`."""
    max_position_embeddings: int = bounded(40, 1, 65_536)
    """Longest text (positions; published: 40, and 80 for DiDeMo and LSMDC)."""
    num_layers: Optional[int] = bounded(None, 1, 128)
    """Layers of the transformer; default: from `size`."""
    num_frames: int = bounded(3, 1, 1024)
    """Frames a clip (published: 3)."""
    image_size: Optional[int] = bounded(None, 1, 2048)
    """Height and width of a frame (pixels); default: from `size`."""
    patch_size: Optional[int] = bounded(None, 1, 2048)
    """Height and width of a patch (pixels); must divide `image_size`; default: from `size`."""
    retrieval_size: Optional[int] = bounded(None, 1, 65_536)
    """Width of the embeddings that retrieval compares; default: from `size`."""
    distilled: Optional[bool] = None
    """A [distillation] token follows [class], and frames have no temporal embedding (published size S); default: from `size`."""
    unaligned_tokens: Optional[int] = bounded(None, 0, 1024)
    """Tokens of a frame that the alignment loss leaves out; 2 costs Ti its first patch, as published; default: from `size`."""
    drop_path: Optional[float] = bounded(None, 0, 0.99)
    """Probability that a half of the last layer is skipped for a frame (published: 0.1); rises linearly from 0 at the first; default: from `size`."""
    option_text: Optional[str] = None
    """Multiple choice: the text of an option, `listed` (question, all options, then this one; published) or `pair` (question, [SEP], option); default: from `size`."""
    shuffle_patches: bool = True
    """Shuffle each frame's patches in front of the joint pass, as published, in evaluation too; false: keep their order."""
    num_false_texts: int = bounded(15, 1, 1024)
    """Wrong texts that `rank` tells the right one from (published: 15), captions of other clips of the batch; at most batch size - 1."""

    def __post_init__(self):
        self._fill()
        check_choice("backbone.option_text", self.option_text, OPTION_TEXTS)
        check(
            self.image_size % self.patch_size == 0 and self.num_patches >= 7,
            "backbone.patch_size",
            self.patch_size,
            f"must divide backbone.image_size={self.image_size} into at least 7 patches; change one of the two",
        )
        check(
            self.unaligned_tokens < self.num_patches,
            "backbone.unaligned_tokens",
            self.unaligned_tokens,
            f"leaves none of {self.num_patches} patches to align; lower it",
        )

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def module(self, task: TaskConfig, folder: DataFolder) -> nn.Module:
        from meltr_ray.video.backbones.allinone.losses import AllInOneLosses
        from meltr_ray.video.backbones.allinone.model import TASK_HEADS, AllInOne

        return AllInOneLosses(AllInOne(self, len(folder.vocabulary), TASK_HEADS[task.name], folder.num_answers), task)

    @classmethod
    def naming(cls) -> Naming:
        from meltr_ray.video.backbones.allinone.naming import AllInOneNaming

        return AllInOneNaming()

    def inputs(self, data: DataConfig, task: TaskConfig, folder: DataFolder) -> Any:
        from meltr_ray.video.backbones.allinone.inputs import AllInOneInputs

        return AllInOneInputs(folder.vocabulary, data, self, task=task, answers=folder.answers)
