"""All-in-one (Wang et al., arXiv 2203.07303): text and video in one ViT whose tokens roll over time, and its heads.

Parameter names and shapes are those of the published checkpoints. B: clips, T: frames, L: word pieces, P: patches of a
frame, K: tokens in front of a frame's patches ([class], and [distillation] in size S), H: hidden size, V: vocabulary
size, C: texts to choose from. Masks are bool, true at real positions.

The published faults that weights were trained with are kept: patches enter in a random order, so tokens roll at random
places and the mean over frames mixes places; the roll treats [distillation] as a patch, and size S has a temporal
embedding that nothing uses. Differs from the published code in: text alone is encoded once a clip, not once a frame (the
copies differ by dropout alone); the last layer computes only the positions that are asked for; a pixel that is exactly 0
in all channels isn't taken for padding, which there stops the run or bends the position table; `rank_output` starts as a
copy of the row of `itm_score` that it shares memory with there (on a CPU, so that one step moves it twice).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from meltr_ray.video.backbones.allinone.settings import AllInOneConfig
from meltr_ray.video.backbones.layers import Dropout, Embeddings, Linear, Pooler, WordPredictions, attention_bias, initialize

HEADS = ("itm_score", "mlm_score", "projections", "rank_output", "vqa_classifier", "mc_vqa_classifier")
"""Heads by their names in checkpoints; `projections` are `txt_proj` and `vid_proj`."""
PRETRAINED_HEADS = ("itm_score", "mlm_score", "projections")
TASK_HEADS = {
    "retrieval": (*PRETRAINED_HEADS, "rank_output"),
    "multiple_choice": (*PRETRAINED_HEADS, "rank_output", "mc_vqa_classifier"),
    "open_ended": (*PRETRAINED_HEADS, "vqa_classifier"),
}
"""Task -> the heads of its losses: those of pre-training and its own. `vqa_classifier` has one class an answer; published, one
more, which no question has."""


class SelfAttention(nn.Module):
    """Multi-head attention of the first `num_queries` positions of (N, L, H) over all -> (N, num_queries, H)."""

    def __init__(self, config: AllInOneConfig):
        super().__init__()
        self.num_heads, self.fused = config.num_heads, config.fused_attention
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor | None, num_queries: int | None) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query = query[:, :, :num_queries]
        bias = None if bias is None else bias.to(query.dtype)
        if self.fused:
            context = F.scaled_dot_product_attention(query, key, value, bias)
        else:
            scores = query @ key.transpose(-1, -2) * query.size(-1) ** -0.5
            context = (scores if bias is None else scores + bias).softmax(-1) @ value
        return self.dropout(self.proj(context.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two dense layers with gelu between, (N, L, H) -> (N, L, H)."""

    def __init__(self, config: AllInOneConfig):
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.feed_forward_size)
        self.fc2 = Linear(config.feed_forward_size, config.hidden_size)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """Pre-norm layer: (N, L, H) -> (N, num_queries, H); in training each row skips each half with `drop_path`."""

    def __init__(self, config: AllInOneConfig, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.attn = SelfAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.mlp = FeedForward(config)
        self.drop_path = drop_path

    def forward(self, x: Tensor, bias: Tensor | None, num_queries: int | None = None) -> Tensor:
        x = x[:, :num_queries] + self._dropped(self.attn(self.norm1(x), bias, num_queries))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x
        return x * F.dropout(x.new_ones(len(x), 1, 1), self.drop_path)


class VideoTransformer(nn.Module):
    """Frames (B, T, 3, height, width) -> their tokens (B, T, K+P, H); owns the layers that text and video share."""

    def __init__(self, config: AllInOneConfig):
        super().__init__()
        self.distilled = config.distilled
        num_first, size = 1 + config.distilled, config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size))
        if config.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, size))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_first + config.num_patches, size))
        self.temporal_embed = nn.Parameter(torch.zeros(1, config.num_frames, size))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, size, config.patch_size, stride=config.patch_size)})
        last = max(config.num_layers - 1, 1)
        self.blocks = nn.ModuleList([Block(config, config.drop_path * i / last) for i in range(config.num_layers)])
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.dropout = Dropout(config.dropout)
        for parameter in (self.cls_token, self.pos_embed, *([self.dist_token] if config.distilled else [])):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, video: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](video.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, video.shape[:2])
        first = torch.cat((self.cls_token, self.dist_token), dim=1) if self.distilled else self.cls_token
        first_places, places = self.pos_embed.split((first.size(1), patches.size(2)), dim=1)
        if not self.distilled:
            places = places + self.temporal_embed.transpose(0, 1)  # (T, P, H)
        first = (first + first_places).expand(*video.shape[:2], -1, -1)
        return self.dropout(torch.cat((first, patches + places), dim=2))


class AllInOne(nn.Module):
    """The backbone; its methods are the passes that tasks put their losses together from.

    `config`: sizes and attention; `vocabulary_size`: V; `heads`: those of `HEADS` that the task needs; `num_answers`:
    answers of `vqa_classifier` (published: 1501 for MSRVTT-QA, 1001 for MSVD-QA, 1541 for TGIF-FrameQA).
    """

    def __init__(self, config: AllInOneConfig, vocabulary_size: int, heads: tuple[str, ...] = HEADS, num_answers: int = 1501):
        super().__init__()
        self.config = config
        size = config.hidden_size
        words, positions = nn.Embedding(vocabulary_size, size), nn.Embedding(config.max_position_embeddings, size)
        self.text_embeddings = Embeddings(config, words, positions, num_types=2)
        self.token_type_embeddings = nn.Embedding(2, size)
        self.transformer = VideoTransformer(config)
        self.pooler = Pooler(config)
        if "mlm_score" in heads:
            self.mlm_score = WordPredictions(config, nn.Parameter(torch.empty(vocabulary_size, size).normal_(std=0.02)))
        if "itm_score" in heads:
            self.itm_score = nn.ModuleDict({"fc": nn.Linear(size, 2)})
        if "projections" in heads:
            self.txt_proj = Linear(size, config.retrieval_size)
            self.vid_proj = Linear(size, config.retrieval_size)
        if "vqa_classifier" in heads:
            self.vqa_classifier = classifier(size, size // 2, num_answers, dropout=0.5)
        if "mc_vqa_classifier" in heads:
            self.mc_vqa_classifier = classifier(size, 256, 1, dropout=0.1)
        if "rank_output" in heads:
            self.rank_output = nn.Linear(size, 1)
        initialize(self, config)
        if "rank_output" in heads and "itm_score" in heads:
            start_rank_from_match(self)

    def embed_video(self, video: Tensor) -> Tensor:
        """Frames (B, T, 3, height, width), normalised -> tokens (B, T, K+P, H), the input of every pass with video."""
        return self.transformer(video) + self._type(1)

    def encode_text(self, ids: Tensor, mask: Tensor, num_kept: int | None = 1) -> Tensor:
        """Text alone, (B, L) int64 -> its first `num_kept` positions (B, num_kept, H)."""
        return self._encode(self._embed_text(ids)[:, None], attention_bias(mask), num_kept)

    def encode_video(self, tokens: Tensor, num_kept: int | None = 1) -> Tensor:
        """Each frame alone, tokens (B, T, K+P, H) -> mean over frames of the first positions (B, num_kept, H)."""
        return self._encode(tokens, None, num_kept)

    def encode_joint(self, ids: Tensor, mask: Tensor, tokens: Tensor, num_kept: int | None = 1) -> Tensor:
        """Text (B, L) with every frame of (B, T, K+P, H) -> mean over frames (B, num_kept, H), the L word pieces first."""
        if self.config.shuffle_patches:
            num_first = 1 + self.config.distilled
            first, patches = tokens[:, :, :num_first], tokens[:, :, num_first:]
            order = random_order(patches)[..., None].expand_as(patches)
            tokens = torch.cat((first, patches.gather(2, order)), dim=2)
        text = self._embed_text(ids)[:, None].expand(-1, tokens.size(1), -1, -1)
        real = mask.new_ones(len(mask), tokens.size(2))
        bias = attention_bias(torch.cat((mask, real), dim=1)).repeat_interleave(tokens.size(1), 0)
        return self._encode(torch.cat((text, tokens), dim=2), bias, num_kept, rolled_from=ids.size(1))

    def project_text(self, text: Tensor) -> Tensor:
        """Output of the pass over text alone (B, 1, H) -> embeddings (B, R) of length 1; their products with videos' are similarities."""
        return F.normalize(self.txt_proj(text[:, 0]), dim=-1, eps=1e-8)

    def project_video(self, video: Tensor) -> Tensor:
        """Output of the pass over frames alone (B, 1, H) -> embeddings (B, R) of length 1."""
        return F.normalize(self.vid_proj(video[:, 0]), dim=-1, eps=1e-8)

    def predict_words(self, x: Tensor) -> Tensor:
        """Joint output at masked words (N, H) -> scores of all words (N, V)."""
        return self.mlm_score(x)

    def predict_match(self, x: Tensor) -> Tensor:
        """Joint output (B, L, H) -> scores (B, 2) of `belong to different clips` and `belong together`."""
        return self.itm_score["fc"](self.pooler(x))

    def predict_rank(self, x: Tensor) -> Tensor:
        """Joint output (B, L, H) -> score of the text for the video (B,): ranking, and multiple choice."""
        return self.rank_output(self.pooler(x))[:, 0]

    def predict_choice(self, x: Tensor) -> Tensor:
        """Joint output (B, L, H) -> score of one answer's text (B,): multiple-choice questions."""
        return self.mc_vqa_classifier(self.pooler(x))[:, 0]

    def predict_answer(self, x: Tensor) -> Tensor:
        """Joint output (B, L, H) of a question -> scores of all answers (B, answers)."""
        return self.vqa_classifier(self.pooler(x))

    def _type(self, number: int) -> Tensor:
        return self.token_type_embeddings(torch.tensor(number, device=self.token_type_embeddings.weight.device))

    def _embed_text(self, ids: Tensor) -> Tensor:
        types = torch.zeros(ids.size(1), dtype=torch.int64, device=ids.device)
        return self.text_embeddings(ids, types) + self._type(0)

    def _encode(self, x: Tensor, bias: Tensor | None, num_kept: int | None, rolled_from: int | None = None) -> Tensor:
        """(B, T, L, H) -> (B, num_kept, H); `rolled_from`: position of the frames' first token, None: nothing rolls."""
        num_frames, blocks = x.size(1), self.transformer.blocks
        for index, block in enumerate(blocks):
            if rolled_from is not None:
                x = roll(x, rolled_from)
            arguments = (x.flatten(0, 1), bias, num_kept if index == len(blocks) - 1 else None)
            if self.config.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=True)
            else:
                x = block(*arguments)
            x = x.unflatten(0, (-1, num_frames))
        return self.transformer.norm(x).mean(1)


def roll(x: Tensor, start: int) -> Tensor:
    """Token rolling: of the frames' tokens x[:, :, start:] (B, T, V, H), an eighth goes to the next frame, an eighth back.

    Those are the V // 8 tokens after [class] and the last V // 8; the last frame's go to the first, and the other way.
    """
    size = (x.size(2) - start) // 8
    kept, later, still, earlier = x.tensor_split((start + 1, start + 1 + size, x.size(2) - size), dim=2)
    return torch.cat((kept, later.roll(1, 1), still, earlier.roll(-1, 1)), dim=2)


def random_order(patches: Tensor) -> Tensor:
    """A random permutation of the patches of each frame, (B, T, P, H) -> (B, T, P) int64."""
    return torch.rand(patches.shape[:3], device=patches.device).argsort(-1)


def classifier(size: int, inner_size: int, num_scores: int, dropout: float) -> nn.Sequential:
    """Dropout, dense layer, LayerNorm, gelu, dense layer: (B, H) -> (B, num_scores)."""
    layers = (Linear(size, inner_size), nn.LayerNorm(inner_size), nn.GELU(), Linear(inner_size, num_scores))
    return nn.Sequential(Dropout(dropout), *layers)


def start_rank_from_match(model: AllInOne) -> None:
    """Make the ranking score that of `belong together`: after loading pretrained weights and before fine-tuning, as published."""
    with torch.no_grad():
        model.rank_output.weight.copy_(model.itm_score["fc"].weight[1:])
        model.rank_output.bias.copy_(model.itm_score["fc"].bias[1:])
