"""UniVL (Luo et al., arXiv 2002.06353): text, visual and cross encoders, a caption decoder and their heads.

Parameter names and shapes are those of the published checkpoint. B: clips, L: word pieces, F: frames, D: video feature
size, H: hidden size, V: vocabulary size, T: rows of audio, A: audio feature size. Masks are bool, true at real positions.
Heads of tasks that the authors have no code for (`answer_dense`, `score_dense`, `audio`) exist only for these tasks.

Differs from the published code in: heads take only the positions that are asked for; token types of the text are all 0
(as its data loaders have them); the poolers of the text and visual encoders exist for the checkpoint's sake, but nothing
uses them, so they have no gradient.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meltr_ray.video.backbones.layers import (
    MASKED_SCORE,
    Attention,
    DecoderLayer,
    Dropout,
    Embeddings,
    EncoderLayer,
    LayerStack,
    Linear,
    Pooler,
    TiedEmbedding,
    Transform,
    WordPredictions,
    attention_bias,
    initialize,
    layer_norm,
    linear,
    plain_attention,
)
from meltr_ray.video.backbones.univl.settings import UniVLConfig


def encoder_layers(config: UniVLConfig, num_layers: int) -> LayerStack:
    return LayerStack([EncoderLayer(config) for _ in range(num_layers)], config.activation_checkpointing)


class TextEncoder(nn.Module):
    """BERT, or a bag of words: ids (B, L) int64 and mask (B, L) -> (B, L, H)."""

    def __init__(self, config: UniVLConfig, vocabulary_size: int):
        super().__init__()
        words = nn.Embedding(vocabulary_size, config.hidden_size)
        positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embeddings = Embeddings(config, words, positions, num_types=2)
        self.encoder = encoder_layers(config, config.text_layers)
        self.pooler = Pooler(config)
        self.bag_of_words = config.bag_of_words

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        if self.bag_of_words:
            return self.embeddings.word_embeddings(ids)
        types = torch.zeros(ids.size(1), dtype=torch.int64, device=ids.device)
        return self.encoder(self.embeddings(ids, types), attention_bias(mask))


class VisualEncoder(nn.Module):
    """Normalised frame features (B, F, D) and mask (B, F) -> (B, F, H)."""

    def __init__(self, config: UniVLConfig, video_size: int):
        super().__init__()
        positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embeddings = Embeddings(config, Linear(video_size, config.hidden_size), positions)
        self.encoder = encoder_layers(config, config.visual_layers)
        self.pooler = Pooler(config)

    def forward(self, video: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(self.embeddings(video), attention_bias(mask))


class CrossEncoder(nn.Module):
    """Encoded text (B, L, H) and video (B, F, H) with their masks -> (B, L+F, H); pooled, (B, H) instead."""

    def __init__(self, config: UniVLConfig):
        super().__init__()
        positions = nn.Embedding(config.max_cross_position_embeddings, config.hidden_size)
        self.embeddings = Embeddings(config, None, positions, num_types=2)
        self.encoder = encoder_layers(config, config.cross_layers)
        self.pooler = Pooler(config)

    def forward(self, text: Tensor, text_mask: Tensor, video: Tensor, video_mask: Tensor, pooled: bool = False) -> Tensor:
        both = torch.cat((text, video), dim=1)
        types = (torch.arange(both.size(1), device=both.device) >= text.size(1)).long()
        bias = attention_bias(torch.cat((text_mask, video_mask), dim=1))
        # the pooler reads the first position alone, so the last layer need not compute the others
        encoded = self.encoder(self.embeddings(both, types), bias, first_only=pooled)
        return self.pooler(encoded) if pooled else encoded


class FramePredictions(nn.Module):
    """Predicted frame features, weights tied to the visual embeddings, transposed: (..., H) -> (..., D)."""

    def __init__(self, config: UniVLConfig, weight: nn.Parameter):
        super().__init__()
        self.transform = Transform(config)
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(weight.size(1)))

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.transform(x), self.weight.T, self.bias)


class AudioEmbedding(nn.Module):
    """Standardised audio features (B, T, A) -> (B, T, H), which the cross encoder takes behind the frames."""

    def __init__(self, config: UniVLConfig, audio_size: int):
        super().__init__()
        self.dense = Linear(audio_size, config.hidden_size)
        self.LayerNorm = layer_norm(config.hidden_size)
        self.dropout = Dropout(config.dropout)

    def forward(self, audio: Tensor) -> Tensor:
        return self.dropout(self.LayerNorm(self.dense(audio)))


@dataclass
class DecoderCache:
    """Keys and values of each layer while captions are generated, N beams a clip, one after another."""

    words: list[tuple[Tensor, Tensor]]
    """Of the words so far, (B N, heads, length, H / heads) each."""
    encoded: list[tuple[Tensor, Tensor]]
    """Of the cross encoder's output, (B, heads, K, H / heads) each: one for all beams of a clip."""
    bias: Tensor
    """(B, 1, 1, K), of that output's padding."""

    def follow(self, rows: Tensor) -> None:
        """Make row i that of beam `rows[i]`, (B N,) int64."""
        self.words = [(keys[rows], values[rows]) for keys, values in self.words]


class Decoder(nn.Module):
    """Caption decoder: ids (B, C) int64, mask (B, C), encoded (B, K, H), encoded mask (B, K) -> scores (N, V).

    Scores are for the N positions at which `chosen` (B, C) is true, row by row.
    """

    def __init__(self, config: UniVLConfig, words: nn.Parameter, positions: nn.Parameter):
        super().__init__()
        self.embeddings = Embeddings(config, TiedEmbedding(words), TiedEmbedding(positions))
        layers = [DecoderLayer(config) for _ in range(config.decoder_layers)]
        self.decoder = LayerStack(layers, config.activation_checkpointing)
        self.classifier = nn.ModuleDict({"cls": nn.ModuleDict({"predictions": WordPredictions(config, words)})})

    def forward(self, ids: Tensor, mask: Tensor, encoded: Tensor, encoded_mask: Tensor, chosen: Tensor) -> Tensor:
        later = torch.ones(ids.size(1), ids.size(1), dtype=torch.bool, device=ids.device).triu(1)
        bias = torch.where(later | ~mask[:, None, None, :], MASKED_SCORE, 0.0)  # (B, 1, C, C)
        x = self.decoder(self.embeddings(ids), bias, encoded, attention_bias(encoded_mask))
        return self.classifier["cls"]["predictions"](x[chosen])

    def start(self, encoded: Tensor, mask: Tensor, num_beams: int) -> DecoderCache:
        """A cache without words, for the cross encoder's output (B, K, H) and its mask."""
        layers, rows = self.decoder.layer, len(encoded) * num_beams
        encodings = [keys_values(layer.enc_attn["att"], encoded) for layer in layers]
        empty = [tuple(x.new_empty(rows, x.size(1), 0, x.size(3)) for x in pair) for pair in encodings]
        return DecoderCache(empty, encodings, attention_bias(mask))

    def step(self, ids: Tensor, cache: DecoderCache) -> Tensor:
        """The next word (B, N) of each beam -> scores (B, N, V) of the one after it; adds the word to the cache.

        The function of `forward` at the last position, without dropout. Submodules are called as they are, so that weights
        in shards or with LoRA work.
        """
        place = torch.full((1,), cache.words[0][0].size(2), device=ids.device)
        embeddings = self.embeddings
        x = embeddings.LayerNorm(embeddings.word_embeddings(ids) + embeddings.position_embeddings(place))
        for number, layer in enumerate(self.decoder.layer):
            x = self._layer_step(layer, x, number, cache)
        return self.classifier["cls"]["predictions"](x)

    def _layer_step(self, layer: DecoderLayer, x: Tensor, number: int, cache: DecoderCache) -> Tensor:
        alone = x.flatten(0, 1)[:, None]  # (B N, 1, H): beams share no words
        own = keys_values(layer.slf_attn["att"], alone)
        keys, values = cache.words[number] = tuple(torch.cat(pair, dim=2) for pair in zip(cache.words[number], own))
        context = attend(layer.slf_attn["att"], alone, keys, values, x.new_zeros(()))
        x = layer.slf_attn["output"](context.view_as(x), x)
        context = attend(layer.enc_attn["att"], x, *cache.encoded[number], cache.bias.to(x.dtype))
        x = layer.enc_attn["output"](context, x)
        return layer.output(F.gelu(layer.intermediate["dense"](x)), x)


def keys_values(attention: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K, H) -> keys and values (B, heads, K, H / heads)."""
    return tuple(dense(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for dense in (attention.key, attention.value))


def attend(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """`attention` of (B, Q, H) over keys and values as `keys_values` gives them -> (B, Q, H), without dropout."""
    query = attention.query(queries).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    return plain_attention(query, keys, values, bias).transpose(1, 2).flatten(2)


class UniVL(nn.Module):
    """The backbone; its methods are the passes that tasks put their losses together from.

    `config`: sizes and attention; `vocabulary_size`: V; `video_size`: D, 0: there are no frames and nothing that reads them;
    `task`: whose head there is beside the published ones; `num_answers` of open_ended; `audio_size`: A of sentiment, or 0.
    """

    def __init__(
        self, config: UniVLConfig, vocabulary_size: int, video_size: int, task: str = "retrieval", num_answers: int = 0,
        audio_size: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.config, self.has_frames, self.has_audio = config, video_size > 0, task == "sentiment" and audio_size > 0
        self.bert = TextEncoder(config, vocabulary_size)
        if self.has_frames:
            self.visual = VisualEncoder(config, video_size)
        self.cross = CrossEncoder(config)
        words, positions = self.bert.embeddings.word_embeddings, self.bert.embeddings.position_embeddings
        self.decoder = Decoder(config, words.weight, positions.weight)
        self.cls = nn.ModuleDict({"predictions": WordPredictions(config, words.weight)})
        if self.has_frames:
            frames = self.visual.embeddings.word_embeddings.weight
            self.cls_visual = nn.ModuleDict({"predictions": FramePredictions(config, frames)})
        self.similarity_dense = nn.Linear(config.hidden_size, 1)
        self.pool_dropout = Dropout(config.embedding_dropout)
        if self.has_frames:
            self.normalize_video = nn.Sequential(OrderedDict(visual_norm2d=layer_norm(video_size)))
        if task == "open_ended":
            self.answer_dense = Linear(config.hidden_size, num_answers)
        if task == "sentiment":
            self.score_dense = nn.Linear(config.hidden_size, 1)
        if self.has_audio:
            self.audio = AudioEmbedding(config, audio_size)
        initialize(self, config)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Word pieces (B, L) int64 -> (B, L, H)."""
        return self.bert(ids, mask)

    def encode_video(self, normalized: Tensor, mask: Tensor) -> Tensor:
        """Output of `normalize_video` (B, F, D) -> (B, F, H)."""
        return self.visual(normalized, mask)

    def embed_audio(self, audio: Tensor) -> Tensor:
        """Standardised audio (B, T, A) -> (B, T, H)."""
        return self.audio(audio)

    def encode_cross(self, text: Tensor, text_mask: Tensor, video: Tensor, video_mask: Tensor) -> Tensor:
        """Encoded text (B, L, H) and video (B, F, H) -> (B, L+F, H)."""
        return self.cross(text, text_mask, video, video_mask)

    def embed_text(self, text: Tensor, mask: Tensor) -> Tensor:
        """Encoded text (B, L, H) -> (B, H): mean over the words without [CLS], of length 1 if so configured."""
        return self._pool(text[:, 1:], mask[:, 1:])

    def embed_video(self, video: Tensor, mask: Tensor) -> Tensor:
        """Encoded video (B, F, H) -> (B, H): mean over the frames, of length 1 if so configured."""
        return self._pool(video, mask)

    def joint_similarity(self, text: Tensor, video: Tensor) -> Tensor:
        """Embeddings (Q, H) and (V, H) -> (Q, V): dot products over the temperature."""
        return text @ video.T / self.config.similarity_temperature

    def pair_similarity(
        self, text: Tensor, text_mask: Tensor, video: Tensor, video_mask: Tensor, pairs_per_block: int = 4096
    ) -> Tensor:
        """Encoded text (Q, L, H) and video (V, F, H) -> (Q, V): the cross encoder's score of every pair.

        Blocks of whole rows, at most `pairs_per_block` pairs (but at least one row) each, bound the memory without
        gradients.
        """
        rows = max(1, pairs_per_block // len(video))
        blocks = []
        for start in range(0, len(text), rows):
            part, part_mask = text[start : start + rows], text_mask[start : start + rows]
            scores = self.match(
                part.repeat_interleave(len(video), 0), part_mask.repeat_interleave(len(video), 0),
                video.repeat(len(part), 1, 1), video_mask.repeat(len(part), 1),
            )  # fmt: skip
            blocks.append(scores.view(len(part), len(video)))
        return torch.cat(blocks)

    def match(self, text: Tensor, text_mask: Tensor, video: Tensor, video_mask: Tensor) -> Tensor:
        """Encoded text (N, L, H) and video (N, F, H), row by row -> the cross encoder's scores (N,) that they belong together."""
        return self.similarity_dense(self.cross(text, text_mask, video, video_mask, pooled=True))[:, 0]

    def predict_answer(self, text: Tensor, text_mask: Tensor, video: Tensor, video_mask: Tensor) -> Tensor:
        """Encoded questions (B, L, H) and videos (B, F, H) -> scores of all answers (B, answers)."""
        return self.answer_dense(self.cross(text, text_mask, video, video_mask, pooled=True))

    def predict_score(self, text: Tensor, text_mask: Tensor, video: Tensor, video_mask: Tensor) -> Tensor:
        """Encoded transcripts (B, L, H) and videos (B, F, H) -> sentiment (B,)."""
        return self.score_dense(self.cross(text, text_mask, video, video_mask, pooled=True))[:, 0]

    def predict_words(self, x: Tensor) -> Tensor:
        """Cross encoder's output at masked words (N, H) -> scores of all words (N, V)."""
        return self.cls["predictions"](x)

    def predict_frames(self, x: Tensor) -> Tensor:
        """Cross encoder's output at masked frames (N, H) -> normalised frame features (N, D)."""
        return self.cls_visual["predictions"](x)

    def predict_caption(self, ids: Tensor, mask: Tensor, encoded: Tensor, encoded_mask: Tensor, chosen: Tensor) -> Tensor:
        """Caption so far (B, C) and cross encoder's output (B, K, H) -> scores (N, V) of the next word where `chosen`."""
        return self.decoder(ids, mask, encoded, encoded_mask, chosen)

    def _pool(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = mask.to(x.dtype)
        mean = (x * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
        mean = self.pool_dropout(mean)
        return F.normalize(mean, dim=-1) if self.config.normalize_embeddings else mean
