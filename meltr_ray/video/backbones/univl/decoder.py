"""UniVL's caption decoder: all words at once for its losses, one after another with a cache for generation.

B: clips, C: words of a caption, N: beams of a clip, K: positions of the cross encoder's output, H: hidden size, V: vocabulary
size. Masks are bool, true at real positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meltr_ray.video.backbones.layers import (
    MASKED_SCORE,
    Attention,
    DecoderLayer,
    Embeddings,
    LayerStack,
    TiedEmbedding,
    WordPredictions,
    attention_bias,
    plain_attention,
)
from meltr_ray.video.backbones.univl.settings import UniVLConfig


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
