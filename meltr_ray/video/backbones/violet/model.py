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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meltr_ray.errors import check_at_least, check_choice
from meltr_ray.video.backbones.layers import (
    Dropout,
    Embeddings,
    EncoderLayer,
    LayerStack,
    Linear,
    Transform,
    attention_bias,
    initialize,
)
from meltr_ray.video.backbones.violet.settings import VioletConfig
from meltr_ray.video.backbones.violet.video_swin import VideoSwin

PIXEL_MEAN, PIXEL_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Red, green and blue of ImageNet, with which pixels in [0, 1] are normalised."""
VIOLET_TASKS = ("retrieval", "multiple_choice", "open_ended")


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
        self.decoder = Linear(config.hidden_size, vocabulary_size)
        self.bias = self.decoder.bias  # one parameter with two names in the published checkpoint

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))


def make_head(config: VioletConfig, size: int, dropout: float) -> nn.Sequential:
    """Two dense layers on the cross encoder's output: (..., H) -> (..., size)."""
    hidden = config.hidden_size
    return nn.Sequential(Dropout(dropout), Linear(hidden, 2 * hidden), nn.ReLU(), Linear(2 * hidden, size))


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
            initialize(part, config)

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
        with torch.autocast(x.device.type, enabled=False):  # over a small temperature, bfloat16's rounding would drown the score
            return (self.fc if self.task == "retrieval" else self.fc_vtm)(x.to(torch.promote_types(x.dtype, torch.float32)))[..., 0]

    def choose_answer(self, x: Tensor) -> Tensor:
        """[CLS] of each question with its clip, scores: (B, O, H) -> (B, O) of options, or (B, 1, H) -> (B, num_answers)."""
        return self.fc_mc(x)[..., 0] if self.task == "multiple_choice" else self.fc_oe(x[:, 0])

    def predict_words(self, x: Tensor) -> Tensor:
        """Cross encoder's output at masked words (N, H) -> scores of all words (N, V)."""
        return self.fc_mtm["predictions"](x)

    def predict_patches(self, x: Tensor) -> Tensor:
        """Cross encoder's output at masked patches (N, H) -> scores of all visual tokens (N, num_visual_tokens)."""
        return self.fc_mvm(x)
