"""Settings of the backbones, one class each.

A field left empty is filled in from `size`. Sizes below the authors' own start from nothing on small data, so theirs also
say what such a start needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from meltr_ray.errors import check, check_at_least, check_choice

OPTION_TEXTS = ("listed", "pair")
"""How the question and an option make one text, see meltr_ray/video/clips/questions.py."""


@dataclass(kw_only=True)
class BackboneConfig:
    """What every backbone has."""

    name: str = ""
    """Backbone: `univl`, `violet` or `allinone`; chosen by `backbone=<name>`."""
    size: str = "tiny"
    """Size that fills every field left empty below: `tiny` (seconds on a CPU) up to the authors' own."""
    weights: Optional[str] = None
    """Folder of an imported checkpoint (workloads/prepare.py checkpoint=...) that training starts from; default: drawn anew."""
    hidden_size: Optional[int] = None
    """Width of the transformers; default: from `size`."""
    num_heads: Optional[int] = None
    """Attention heads; must divide `hidden_size`; default: from `size`."""
    feed_forward_size: Optional[int] = None
    """Width of the feed-forward layers; default: from `size`."""
    max_position_embeddings: Optional[int] = None
    """Longest text (positions); default: from `size`."""
    dropout: float = 0.1
    """Dropout probability of hidden states and, but for All-in-one, of attention."""
    initializer_range: Optional[float] = None
    """Standard deviation of weights that are drawn anew (published: 0.02, too little for narrow models); default: from `size`."""
    fused_attention: bool = True
    """Use torch's fused attention kernels; false: plain matrix products, which admit a second derivative. On a CPU with dropout there is no fused kernel and the plain form runs; nor is there one with a bias that is trained (Video Swin), where the plain form runs twice to keep no scores."""
    activation_checkpointing: bool = False
    """Compute each layer again in the backward pass instead of keeping its activations (memory for time)."""

    @property
    def reads_pixels(self) -> bool:
        """Whether clips are read as pixels, else as extracted features."""
        return True

    def _fill(self, sizes: dict[str, dict[str, Any]]) -> None:
        """Fill empty fields from the size, and check what all backbones share."""
        check_choice("backbone.size", self.size, tuple(sizes))
        for name, value in sizes[self.size].items():
            given = getattr(self, name)
            setattr(self, name, value if given is None else given)
            if isinstance(value, (int, list)) and not isinstance(value, bool):
                numbers = getattr(self, name) if isinstance(value, list) else [getattr(self, name)]
                check(min(numbers) > 0, f"backbone.{name}", getattr(self, name), "must be positive; raise it")
        check(self.hidden_size % self.num_heads == 0, "backbone.num_heads", self.num_heads,
              f"must divide backbone.hidden_size={self.hidden_size}; change one of the two")
        self._check_probabilities("dropout")

    def _check_probabilities(self, *names: str) -> None:
        for name in names:
            check(0 <= getattr(self, name) < 1, f"backbone.{name}", getattr(self, name), "must lie in [0, 1); lower it")


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

    name: str = "univl"
    """Backbone: `univl`."""
    text_layers: Optional[int] = None
    """Layers of the text encoder; default: from `size`."""
    visual_layers: Optional[int] = None
    """Layers of the visual encoder; default: from `size`."""
    cross_layers: Optional[int] = None
    """Layers of the cross encoder; default: from `size`."""
    decoder_layers: Optional[int] = None
    """Layers of the caption decoder; default: from `size`."""
    max_cross_position_embeddings: Optional[int] = None
    """Longest text plus clip (positions) that the cross encoder takes; default: from `size`."""
    similarity_temperature: Optional[float] = None
    """Divides the joint similarities before their loss (published: 1); default: from `size`."""
    normalize_embeddings: Optional[bool] = None
    """Scale text and video embeddings to length 1 before the joint similarity; the published MELTR code does; default: from `size`."""
    embedding_dropout: float = 0.0
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
        self._fill(UNIVL_SIZES)
        self._check_probabilities("embedding_dropout")
        check(not (self.bag_of_words and self.weights), "backbone.bag_of_words", True, "an imported text encoder would not be used; set it to false")
        check_choice("backbone.joint_loss", self.joint_loss, ("contrastive", "margin"))
        check_choice("backbone.auxiliary_text", self.auxiliary_text, ("caption", "transcript"))
        check_choice("backbone.choice_score", self.choice_score, ("pair", "joint"))

    @property
    def reads_pixels(self) -> bool:
        return False


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

    name: str = "violet"
    """Backbone: `violet`."""
    cross_layers: Optional[int] = None
    """Layers of the cross encoder; default: from `size`."""
    num_frames: Optional[int] = None
    """Frames a clip (published: 5); default: from `size`."""
    max_frames: Optional[int] = None
    """Rows of the table of frame positions; default: from `size`."""
    image_size: Optional[int] = None
    """Height and width of a frame (pixels; published: 224); default: from `size`."""
    max_rows: Optional[int] = None
    """A frame has at most this squared of patches, each 4 x 2^(stages - 1) pixels square; default: from `size`."""
    swin_depths: Optional[list[int]] = None
    """Blocks of each stage of Video Swin; default: from `size`."""
    swin_heads: Optional[list[int]] = None
    """Attention heads of each stage of Video Swin; default: from `size`."""
    swin_window: Optional[list[int]] = None
    """Frames, rows and columns of Video Swin's windows; default: from `size`."""
    num_visual_tokens: Optional[int] = None
    """Number of visual tokens that masked patches are told from (published: DALL-E's 8192); default: from `size`."""
    answer_dropout: float = 0.5
    """Dropout probability of the open-ended head."""
    drop_path: Optional[float] = None
    """Probability that Video Swin's last block leaves a branch out for a clip (published: 0.2); lower blocks rise to it from 0; default: from `size`."""
    matching_temperature: float = 0.05
    """Divides the scores of video-text matching before its loss."""
    matching_loss: Optional[str] = None
    """`texts`: softmax over the texts for each video (published), which leaves open how one video's scores compare with another's; `both_ways`: also over the videos for each text; default: from `size`."""
    option_text: Optional[str] = None
    """Multiple choice: the text of an option, `listed` (question, all options, then this one; published) or `pair` (question, [SEP], option); default: from `size`."""
    published_options: Optional[bool] = None
    """Multiple choice: match and mask as the published code does, which takes options of the first questions for the texts of all clips and masks whole options; false: match each clip with the right option of every question, and mask words; default: from `size`."""

    def __post_init__(self):
        self._fill(VIOLET_SIZES)
        self._check_probabilities("answer_dropout", "drop_path")
        check(self.hidden_size % 2 ** (len(self.swin_depths) - 1) == 0, "backbone.hidden_size", self.hidden_size,
              f"must be a multiple of {2 ** (len(self.swin_depths) - 1)}, as widths double from stage to stage; change it")
        check(len(self.swin_window) == 3, "backbone.swin_window", self.swin_window, "must have three numbers; give them")
        widths = [self.swin_width * 2**index for index in range(len(self.swin_depths))]
        check(len(self.swin_heads) == len(widths) and not any(width % heads for width, heads in zip(widths, self.swin_heads)),
              "backbone.swin_heads", self.swin_heads, f"must divide the widths {widths} of the stages; give one number each")
        check(self.num_frames <= self.max_frames, "backbone.num_frames", self.num_frames,
              f"more than backbone.max_frames={self.max_frames}; lower it")
        check(self.image_size % self.patch_pixels == 0 and self.image_size <= self.patch_pixels * self.max_rows,
              "backbone.image_size", self.image_size,
              f"must be a multiple of a patch, {self.patch_pixels}, and at most {self.patch_pixels * self.max_rows}; change it")
        check_choice("backbone.matching_loss", self.matching_loss, ("texts", "both_ways"))
        check_choice("backbone.option_text", self.option_text, OPTION_TEXTS)
        check(self.matching_temperature > 0, "backbone.matching_temperature", self.matching_temperature,
              "must be positive; published: 0.05")

    @property
    def swin_width(self) -> int:
        """Channels of Video Swin's first stage."""
        return self.hidden_size // 2 ** (len(self.swin_depths) - 1)

    @property
    def patch_pixels(self) -> int:
        """Side of a patch as the cross encoder sees it, in pixels (published: 32)."""
        return 4 * 2 ** (len(self.swin_depths) - 1)


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

    name: str = "allinone"
    """Backbone: `allinone`."""
    max_position_embeddings: int = 40
    """Longest text (positions; published: 40, and 80 for DiDeMo and LSMDC)."""
    num_layers: Optional[int] = None
    """Layers of the transformer; default: from `size`."""
    num_frames: int = 3
    """Frames a clip (published: 3)."""
    image_size: Optional[int] = None
    """Height and width of a frame (pixels); default: from `size`."""
    patch_size: Optional[int] = None
    """Height and width of a patch (pixels); must divide `image_size`; default: from `size`."""
    retrieval_size: Optional[int] = None
    """Width of the embeddings that retrieval compares; default: from `size`."""
    distilled: Optional[bool] = None
    """A [distillation] token follows [class], and frames have no temporal embedding (published size S); default: from `size`."""
    unaligned_tokens: Optional[int] = None
    """Tokens of a frame that the alignment loss leaves out; 2 costs Ti its first patch, as published; default: from `size`."""
    drop_path: Optional[float] = None
    """Probability that a half of the last layer is skipped for a frame (published: 0.1); rises linearly from 0 at the first; default: from `size`."""
    option_text: Optional[str] = None
    """Multiple choice: the text of an option, `listed` (question, all options, then this one; published) or `pair` (question, [SEP], option); default: from `size`."""
    shuffle_patches: bool = True
    """Shuffle each frame's patches in front of the joint pass, as published, in evaluation too; false: keep their order."""
    num_false_texts: int = 15
    """Wrong texts that `rank` tells the right one from (published: 15), captions of other clips of the batch; at most batch size - 1."""

    def __post_init__(self):
        self._fill(ALLINONE_SIZES)
        self._check_probabilities("drop_path")
        check_choice("backbone.option_text", self.option_text, OPTION_TEXTS)
        for name in ("num_frames", "max_position_embeddings", "num_false_texts"):
            check_at_least(f"backbone.{name}", getattr(self, name), 1)
        check(self.image_size % self.patch_size == 0 and self.num_patches >= 7, "backbone.patch_size", self.patch_size,
              f"must divide backbone.image_size={self.image_size} into at least 7 patches; change one of the two")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


BACKBONES = {"univl": UniVLConfig, "violet": VioletConfig, "allinone": AllInOneConfig}
