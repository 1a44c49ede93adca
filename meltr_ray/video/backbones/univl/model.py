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

import torch
from torch import Tensor, nn

from meltr_ray.video.backbones.layers import (
    Dropout,
    Embeddings,
    EncoderLayer,
    LayerStack,
    Linear,
    Pooler,
    Transform,
    WordPredictions,
    attention_bias,
    initialize,
    layer_norm,
    linear,
    unit,
)
from meltr_ray.video.backbones.univl.decoder import Decoder
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

    def pair_similarity(self, text: Tensor, text_mask: Tensor, video: Tensor, video_mask: Tensor, pairs_per_block: int = 4096) -> Tensor:
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
        return unit(mean) if self.config.normalize_embeddings else mean
