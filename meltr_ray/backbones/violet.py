"""VIOLET (Fu et al., arXiv 2111.12681) as MELTR uses it: Video Swin, BERT's embeddings and encoder, and the heads of a task.

Parameter names and shapes are those of the published code, so that its checkpoints load (they may hold one name more,
`enc_txt.emb_txt.position_ids`, a counter of older versions of `transformers`). B: clips, T: frames, P: video positions,
T (1 + h w) for h x w patches a frame, L: word pieces, O: options of a question, H: hidden size, V: vocabulary size. Masks
are bool, true at real positions.

Differs from the published code in: text stands before video in the cross encoder (attention doesn't know the order, since
positions are added earlier), so that its last layer can compute [CLS] alone; heads take only the positions that are asked
for; attention maps are not kept. Called base, the published Video Swin has the sizes of Swin-S.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meltr_ray.backbones.layers import Dropout, Embeddings, EncoderLayer, LayerStack, Transform, attention_bias, initialize
from meltr_ray.backbones.video_swin import VideoSwin
from meltr_ray.config import check, check_at_least, check_choice

PIXEL_MEAN, PIXEL_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Red, green and blue of ImageNet, with which pixels in [0, 1] are normalised."""
VIOLET_TASKS = ("retrieval", "multiple_choice", "open_ended")
VIOLET_SIZES = {
    "tiny": dict(hidden_size=64, num_heads=4, feed_forward_size=128, cross_layers=2, max_position_embeddings=64,
                 max_frames=12, max_rows=8, swin_depths=(2, 2), swin_heads=(2, 4), swin_window=(2, 4, 4),
                 num_visual_tokens=64),
    "base": dict(hidden_size=768, num_heads=12, feed_forward_size=3072, cross_layers=12, max_position_embeddings=512,
                 max_frames=6, max_rows=14, swin_depths=(2, 2, 18, 2), swin_heads=(3, 6, 12, 24), swin_window=(8, 7, 7),
                 num_visual_tokens=8192),
}  # fmt: skip


@dataclass(kw_only=True)
class VioletConfig:
    """VIOLET (arXiv 2111.12681): Video Swin, a cross encoder and heads."""

    size: str = "tiny"
    """Size that fills every field left empty below: `tiny` or `base` (the authors')."""
    hidden_size: Optional[int] = None
    """Width of the cross encoder and of Video Swin's last stage; its first stage has this over 2^(stages - 1); default: from `size`."""
    num_heads: Optional[int] = None
    """Attention heads of the cross encoder; must divide `hidden_size`; default: from `size`."""
    feed_forward_size: Optional[int] = None
    """Width of the cross encoder's feed-forward layers; default: from `size`."""
    cross_layers: Optional[int] = None
    """Layers of the cross encoder; default: from `size`."""
    max_position_embeddings: Optional[int] = None
    """Longest text (word pieces); default: from `size`."""
    max_frames: Optional[int] = None
    """Most frames of a clip; default: from `size`."""
    max_rows: Optional[int] = None
    """A frame has at most this squared of patches, each 4 x 2^(stages - 1) pixels square; default: from `size`."""
    swin_depths: Optional[tuple[int, ...]] = None
    """Blocks of each stage of Video Swin; default: from `size`."""
    swin_heads: Optional[tuple[int, ...]] = None
    """Attention heads of each stage of Video Swin; default: from `size`."""
    swin_window: Optional[tuple[int, int, int]] = None
    """Frames, rows and columns of Video Swin's windows; default: from `size`."""
    num_visual_tokens: Optional[int] = None
    """Number of visual tokens that masked patches are told from (published: DALL-E's 8192); default: from `size`."""
    dropout: float = 0.1
    """Dropout probability of the cross encoder, the text embeddings and the heads."""
    answer_dropout: float = 0.5
    """Dropout probability of the open-ended head."""
    drop_path: float = 0.2
    """Probability that Video Swin's last block leaves a branch out for a clip; lower blocks rise to it from 0."""
    matching_temperature: float = 0.05
    """Divides the scores of video-text matching before its loss."""
    published_options: bool = True
    """Multiple choice: match as the published code does, which takes options of the first questions for the texts of all clips; false: match each clip with the right option of every question."""
    fused_attention: bool = True
    """Use torch's fused attention kernels; false: plain matrix products, which admit a second derivative. On a CPU with dropout there is no fused kernel and the plain form runs; nor is there one with a bias that is trained (Video Swin), where the plain form runs twice to keep no scores."""
    activation_checkpointing: bool = False
    """Compute each layer again in the backward pass instead of keeping its activations (memory for time)."""

    def __post_init__(self):
        check_choice("backbone.size", self.size, tuple(VIOLET_SIZES))
        for name, value in VIOLET_SIZES[self.size].items():
            given = getattr(self, name)
            setattr(self, name, value if given is None else tuple(given) if isinstance(value, tuple) else given)
            check_at_least(f"backbone.{name}", min(np.atleast_1d(getattr(self, name))), 1)
        check(self.hidden_size % self.num_heads == 0, "backbone.num_heads", self.num_heads,
              f"must divide backbone.hidden_size={self.hidden_size}; change one of the two")
        check(self.hidden_size % 2 ** (len(self.swin_depths) - 1) == 0, "backbone.hidden_size", self.hidden_size,
              f"must be a multiple of {2 ** (len(self.swin_depths) - 1)}, as widths double from stage to stage; change it")
        check(len(self.swin_window) == 3, "backbone.swin_window", self.swin_window, "must have three numbers; give them")
        widths = [self.swin_width * 2**index for index in range(len(self.swin_depths))]
        check(len(self.swin_heads) == len(widths) and not any(width % heads for width, heads in zip(widths, self.swin_heads)),
              "backbone.swin_heads", self.swin_heads, f"must divide the widths {widths} of the stages; give one number each")
        for name in ("dropout", "answer_dropout", "drop_path"):
            check(0 <= getattr(self, name) < 1, f"backbone.{name}", getattr(self, name), "must lie in [0, 1); lower it")
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


class VideoEncoder(nn.Module):
    """Pixels in [0, 1] (B, T, 3, rows, columns) -> (B, P, H): for each frame a learned vector and its patches, row by row.

    Rows and columns are multiples of `config.patch_pixels`. As published, patches take the first h w entries of the
    position table whatever the frame's size, so that a position means another place at another size.
    """

    def __init__(self, config: VioletConfig):
        super().__init__()
        self.swin = VideoSwin(config.swin_width, config.swin_depths, config.swin_heads, config.swin_window, config.drop_path,
                              config.fused_attention, config.activation_checkpointing)  # fmt: skip
        self.emb_cls = nn.Parameter(0.02 * torch.randn(1, 1, 1, config.hidden_size))
        self.emb_pos = nn.Parameter(0.02 * torch.randn(1, 1, 1 + config.max_rows**2, config.hidden_size))
        self.emb_len = nn.Parameter(0.02 * torch.randn(1, config.max_frames, 1, config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, frames: Tensor) -> Tensor:
        mean, deviation = (frames.new_tensor(x)[:, None, None] for x in (PIXEL_MEAN, PIXEL_DEVIATION))
        patches = self.swin((frames - mean) / deviation).flatten(2, 3)  # (B, T, h w, H)
        x = torch.cat((self.emb_cls.expand(*patches.shape[:2], -1, -1), patches), dim=2)
        x = x + (self.emb_pos[:, :, : x.size(2)] + self.emb_len[:, : x.size(1)])
        return self.norm(x).flatten(1, 2)


class WordPredictions(nn.Module):
    """Scores of all words: (..., H) -> (..., V). Differs from UniVL's: the weights are its own, not the word embeddings'."""

    def __init__(self, config: VioletConfig, vocabulary_size: int):
        super().__init__()
        self.transform = Transform(config)
        self.decoder = nn.Linear(config.hidden_size, vocabulary_size)
        self.bias = self.decoder.bias  # one parameter with two names in the published checkpoint

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))


def make_head(config: VioletConfig, size: int, dropout: float) -> nn.Sequential:
    """Two dense layers on the cross encoder's output: (..., H) -> (..., size)."""
    hidden = config.hidden_size
    return nn.Sequential(Dropout(dropout), nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, size))


class Violet(nn.Module):
    """The backbone; its methods are the passes that losses are put together from.

    `config`: sizes and attention; `vocabulary_size`: V; `task`: which heads there are, one of VIOLET_TASKS (`retrieval`
    has those of pre-training, too); `num_answers`: answers that the open-ended head chooses from.
    """

    def __init__(self, config: VioletConfig, vocabulary_size: int, task: str = "retrieval", num_answers: int = 0):
        super().__init__()
        check_choice("task.name", task, VIOLET_TASKS)
        self.config, self.task = config, task
        self.enc_img = VideoEncoder(config)
        words = nn.Embedding(vocabulary_size, config.hidden_size)
        positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.enc_txt = nn.ModuleDict({"emb_txt": Embeddings(config, words, positions, num_types=2)})
        layers = [EncoderLayer(config) for _ in range(config.cross_layers)]
        self.trsfr = LayerStack(layers, config.activation_checkpointing)
        self.fc_mtm = nn.ModuleDict({"predictions": WordPredictions(config, vocabulary_size)})
        self.fc_mvm = make_head(config, config.num_visual_tokens, config.dropout)
        # the published fine-tuning for questions renames the matching head, so it starts without the pre-trained one
        matching = make_head(config, 1, config.dropout)
        self.add_module("fc" if task == "retrieval" else "fc_vtm", matching)
        if task == "multiple_choice":
            self.fc_mc = make_head(config, 1, config.dropout)
        if task == "open_ended":
            check_at_least("num_answers", num_answers, 1)
            self.fc_oe = make_head(config, num_answers, config.answer_dropout)
        for part in (self.enc_txt, self.trsfr, self.fc_mtm):  # BERT's; the others keep torch's initialisation, as published
            part.apply(initialize)

    def encode_video(self, frames: Tensor) -> Tensor:
        """Pixels in [0, 1] (B, T, 3, rows, columns) -> (B, P, H)."""
        return self.enc_img(frames)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Word pieces (B, L) int64 -> (B, L, H): words, positions and type 0, which video positions don't have."""
        return self.enc_txt["emb_txt"](ids, torch.zeros(ids.size(1), dtype=torch.int64, device=ids.device))

    def encode_cross(self, text: Tensor, text_mask: Tensor, video: Tensor, first_only: bool = False) -> Tensor:
        """Embedded text (B, L, H), its mask (B, L) and encoded video (B, P, H) -> (B, L+P, H), or [CLS] alone (B, 1, H)."""
        mask = F.pad(text_mask, (0, video.size(1)), value=True)
        return self.trsfr(torch.cat((text, video), dim=1), attention_bias(mask), first_only=first_only)

    def encode_pairs(self, text: Tensor, text_mask: Tensor, video: Tensor, text_index: Tensor, video_index: Tensor) -> Tensor:
        """[CLS] (N, H) of the N pairs of text (Q, L, H) and video (V, P, H) that the two indices (N,) int64 name."""
        return self.encode_cross(text[text_index], text_mask[text_index], video[video_index], first_only=True)[:, 0]

    def pair_similarity(self, text: Tensor, text_mask: Tensor, video: Tensor, pairs_per_block: int = 256) -> Tensor:
        """Text (Q, L, H) and video (V, P, H) -> (Q, V): the matching score of every pair, `pairs_per_block` at a time."""
        pairs = torch.arange(len(text) * len(video), device=video.device)
        scores = [
            self.match(self.encode_pairs(text, text_mask, video, block // len(video), block % len(video)))
            for block in pairs.split(pairs_per_block)
        ]
        return torch.cat(scores).view(len(text), len(video))

    def match(self, x: Tensor) -> Tensor:
        """[CLS] of pairs (..., H) -> how well text and video belong together (...)."""
        return (self.fc if self.task == "retrieval" else self.fc_vtm)(x)[..., 0]

    def choose_answer(self, x: Tensor) -> Tensor:
        """[CLS] of each question with its clip, scores: (B, O, H) -> (B, O) of options, or (B, 1, H) -> (B, num_answers)."""
        return self.fc_mc(x)[..., 0] if self.task == "multiple_choice" else self.fc_oe(x[:, 0])

    def predict_words(self, x: Tensor) -> Tensor:
        """Cross encoder's output at masked words (N, H) -> scores of all words (N, V)."""
        return self.fc_mtm["predictions"](x)

    def predict_patches(self, x: Tensor) -> Tensor:
        """Cross encoder's output at masked patches (N, H) -> scores of all visual tokens (N, num_visual_tokens)."""
        return self.fc_mvm(x)


@dataclass
class VioletBatch:
    """Clips with a text each; for multiple choice, with O texts each (question and option), (B, O, L) in place of (B, L)."""

    frames: Tensor
    """(B, T, 3, rows, columns) in [0, 1]; masked patches are black, for every loss (published)."""
    text_ids: Tensor
    """(B, L) int64: [CLS], word pieces, [SEP], padding."""
    text_mask: Tensor
    """(B, L) bool."""
    masked_text_ids: Tensor
    """(B, L) int64."""
    word_labels: Tensor
    """(B, L) int64: the true id of a masked word, else -1."""
    patch_labels: Tensor
    """(B, P) int64: the visual token of a masked patch, else -1."""
    answers: Tensor
    """(B,) int64: number of the right option or answer; all 0 for retrieval."""

    def to(self, device: torch.device | str) -> VioletBatch:
        return VioletBatch(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean over the N rows of scores (N, K) with targets (N,) int64, in float32 at least; of no row 0."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return F.cross_entropy(scores, targets, reduction="sum") / max(len(targets), 1)


def violet_losses(model: Violet, batch: VioletBatch, names: tuple[str, ...]) -> Tensor:
    """Losses (len(names),) float32 as published, out of `answer`, `matching`, `masked_language` and `masked_patch`.

    matching: softmax over the texts for each video, from [CLS] of every pair. answer: the task's own; retrieval has none.
    Shared: one encoding of the frames; one masked cross pass; and one pass over pairs, in which a pair that two losses need
    comes once. Differs from the published code there, which has a pass for each loss, with dropout of its own.
    """
    video = model.encode_video(batch.frames)
    found = pair_losses(model, batch, video, names) if {"answer", "matching"} & set(names) else {}
    if {"masked_language", "masked_patch"} & set(names):
        found |= masked_losses(model, batch, video)
    return torch.stack([found[name] for name in names])


def pair_numbers(config: VioletConfig, batch: VioletBatch) -> dict[str, Tensor]:
    """Number video Q + text of each pair that a loss scores, Q texts in all: matching (B, B) and answer (B, O).

    Multiple choice as published (`config.published_options`), a fault kept for its numbers: the loss of all pairs takes
    clips and texts number 0 to B - 1 of the lists that repeat every clip for its options. So row i is clip i // O, and
    column j is option j % O of question j // O.
    """
    clips = torch.arange(len(batch.frames), device=batch.frames.device)
    num_options = batch.text_ids.size(1) if batch.text_ids.dim() == 3 else 1
    num_texts = num_options * len(clips)
    own_texts = torch.arange(num_texts, device=clips.device).view(len(clips), num_options)
    rows, columns = clips, own_texts.gather(1, batch.answers[:, None])[:, 0] if num_options > 1 else clips
    if config.published_options:
        rows, columns = clips // num_options, clips
    return {"matching": rows[:, None] * num_texts + columns, "answer": clips[:, None] * num_texts + own_texts}


def pair_losses(model: Violet, batch: VioletBatch, video: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """`answer` and `matching` as far as `names` has them; video (B, P, H)."""
    numbers = {name: x for name, x in pair_numbers(model.config, batch).items() if name in names}
    distinct, where = torch.cat([x.flatten() for x in numbers.values()]).unique(return_inverse=True)
    ids, mask = (x.flatten(0, -2) for x in (batch.text_ids, batch.text_mask))  # (Q, L), options one after another
    first = model.encode_pairs(model.embed_text(ids), mask, video, distinct % len(ids), distinct // len(ids))[where]
    parts = dict(zip(numbers, first.split([x.numel() for x in numbers.values()])))
    found = {}
    if "matching" in parts:
        scores = model.match(parts["matching"]).view(len(video), -1) / model.config.matching_temperature
        found["matching"] = cross_entropy(scores, torch.arange(len(video), device=video.device))
    if "answer" in parts:
        found["answer"] = cross_entropy(model.choose_answer(parts["answer"].unflatten(0, (len(video), -1))), batch.answers)
    return found


def masked_losses(model: Violet, batch: VioletBatch, video: Tensor) -> dict[str, Tensor]:
    """`masked_language` and `masked_patch`; video (B, P, H). Patches are told with the right option (multiple choice)."""
    ids, mask, labels = (x.flatten(0, -2) for x in (batch.masked_text_ids, batch.text_mask, batch.word_labels))
    num_options = len(ids) // len(video)
    crossed = model.encode_cross(model.embed_text(ids), mask, video.repeat_interleave(num_options, 0))
    words, patches = crossed.split((ids.size(1), video.size(1)), dim=1)
    if num_options > 1:
        patches = patches.unflatten(0, (-1, num_options))[torch.arange(len(video), device=video.device), batch.answers]
    chosen, masked = labels >= 0, batch.patch_labels >= 0
    return {
        "masked_language": cross_entropy(model.predict_words(words[chosen]), labels[chosen]),
        "masked_patch": cross_entropy(model.predict_patches(patches[masked]), batch.patch_labels[masked]),
    }
