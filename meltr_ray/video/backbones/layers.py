"""The transformer layers that the backbones share: BERT's post-norm layers, with fused or explicit attention.

Our own rather than `transformers`: its BERT takes 2 to 3 s to import in every trial's process, its cross-attention and decoder
have other parameter names than the published checkpoint, and it can't compute the first position alone. Modules that only
hold others are `nn.ModuleDict`s, so that parameter names follow the checkpoint without a forward of their own.
Every parameter is used in the forward of the module that owns it: ZeRO-3 gathers weights by hooks on that forward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from meltr_ray.video.backbones.settings import BackboneConfig

MASKED_SCORE = -10000.0
"""Added to the attention score of a padded position (published); finite, so that a row without any position stays finite."""
CACHED_SCORES = 2**20
"""Attention scores (float32) that a core of a CPU can keep in its cache."""
ONEDNN_PRODUCT = 2**24
"""Multiplications from which on a product is given to oneDNN; below, its preparations cost what it saves."""


def layer_norm(size: int) -> nn.LayerNorm:
    return nn.LayerNorm(size, eps=1e-12)


def unit(x: Tensor) -> Tensor:
    """Vectors (..., H) divided by their length; zeros stay zeros. `F.normalize` has no second derivative there: products with a Hessian are NaN."""
    there = (x != 0).any(-1, keepdim=True)
    return F.normalize(torch.where(there, x, 1.0), dim=-1) * there


def attention_bias(mask: Tensor) -> Tensor:
    """(B, L) mask, true at real positions -> (B, 1, 1, L) float32 term that is added to attention scores."""
    return torch.where(mask, 0.0, MASKED_SCORE)[:, None, None, :]


def used_length(used: Tensor) -> int:
    """Positions up to the last one of (..., L) bool that some row uses; at least 1."""
    places = torch.arange(1, used.size(-1) + 1, device=used.device)
    return max(1, int((used * places).max()))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, (..., K) and (N, K) -> (..., N), on a CPU with AVX-512 by oneDNN where that is faster.

    torch gives float32 products to MKL, which leaves AVX-512 unused on AMD: 100 against 200 GFLOP/s a core there. oneDNN gets a
    convolution by one pixel instead, which is the same product, with derivatives of every order in both modes. The dilation,
    which one pixel doesn't feel, is what makes torch choose oneDNN; for inputs of 20480 values or fewer it doesn't.
    """
    if x.numel() <= 20480 or x.numel() * weight.size(0) < ONEDNN_PRODUCT or not has_onednn(x):
        return F.linear(x, weight, bias)
    pixels = x.reshape(1, 1, -1, x.size(-1)).permute(0, 3, 1, 2)  # channels last, so nothing is copied
    return F.conv2d(pixels, weight[:, :, None, None], bias, dilation=2).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def has_onednn(x: Tensor) -> bool:
    """Whether float32 products of `x` are faster there."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return plain and torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


class Linear(nn.Linear):
    """`nn.Linear` with the product of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Dropout(nn.Module):
    """Dropout; on a CPU 2.5 times as fast as torch's, which took a fifth of a training step of the `tiny` size.

    There, one random 64-bit number of torch's generator decides on four values, so that the probability is rounded to a
    multiple of 2^-16; kept values are scaled by the rounded one, so that the mean is exact. The mask is kept as bools, a
    quarter of torch's memory.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.probability)
        num_dropped = round(self.probability * 2**16)
        draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = draws[: x.numel()].view(x.shape) >= num_dropped - 2**15
        return (x * kept).mul_(1 / (1 - num_dropped / 2**16))


def plain_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: nn.Module | None = None) -> Tensor:
    """Softmax attention: (N, heads, Q, size), twice (N, heads, K, size) and a bias -> (N, heads, Q, size)."""
    weights = (query * query.size(-1) ** -0.5 @ key.transpose(-1, -2) + bias).softmax(-1)
    return (weights if dropout is None else dropout(weights)) @ value


def blocked_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: nn.Module | None = None) -> Tensor:
    """`plain_attention` in blocks of rows whose scores stay in the cache; the backward pass forms them again, with equal dropout.

    What fused kernels do, for a CPU, which has none with dropout, nor with a trained bias. `bias` has N rows or one.
    """
    rows = max(1, CACHED_SCORES // (query.size(1) * query.size(2) * key.size(2)))
    if rows >= len(query):
        return plain_attention(query, key, value, bias, dropout)
    parts = [x.split(rows) for x in (query, key, value)]
    biases = [bias] * len(parts[0]) if len(bias) == 1 else bias.split(rows)
    options = dict(use_reentrant=False, preserve_rng_state=dropout is not None)
    return torch.cat([checkpoint(plain_attention, *part, dropout, **options) for part in zip(*parts, biases)])


class Attention(nn.Module):
    """Multi-head attention of `queries` (B, Q, H) over `keys` (B, K, H), which also are the values -> (B, Q, H).

    `bias` (B or 1, 1, Q or 1, K). Explicit attention (`fused_attention=False`) is plain matrix products and a softmax:
    torch's fused kernels have no second derivative. The two draw different dropout masks from one seed. With dropout on a
    CPU there is no fused kernel; scores of large batches are then formed in blocks.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.num_heads, self.fused = config.num_heads, config.fused_attention
        self.dropout = Dropout(config.dropout)
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key = Linear(config.hidden_size, config.hidden_size)
        self.value = Linear(config.hidden_size, config.hidden_size)

    def forward(self, queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (self._heads(x) for x in (self.query(queries), self.key(keys), self.value(keys)))
        bias = bias.to(query.dtype)
        probability = self.dropout.probability if self.training else 0.0
        if not self.fused:
            context = plain_attention(query, key, value, bias, self.dropout)
        elif probability > 0 and query.device.type == "cpu":
            context = blocked_attention(query, key, value, bias, self.dropout)
        else:
            context = F.scaled_dot_product_attention(query, key, value, bias, dropout_p=probability)
        return context.transpose(1, 2).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Residual(nn.Module):
    """Dense layer, dropout, sum with `residual`, LayerNorm: (B, L, size) and (B, L, H) -> (B, L, H)."""

    def __init__(self, config: BackboneConfig, size: int):
        super().__init__()
        self.dense = Linear(size, config.hidden_size)
        self.LayerNorm = layer_norm(config.hidden_size)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward layer: (B, L, H) -> (B, L, H), or (B, 1, H) of the first position alone."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.attention = nn.ModuleDict({"self": Attention(config), "output": Residual(config, config.hidden_size)})
        self.intermediate = nn.ModuleDict({"dense": Linear(config.hidden_size, config.feed_forward_size)})
        self.output = Residual(config, config.feed_forward_size)

    def forward(self, x: Tensor, bias: Tensor, first_only: bool = False) -> Tensor:
        queries = x[:, :1] if first_only else x
        attended = self.attention["output"](self.attention["self"](queries, x, bias), queries)
        return self.output(F.gelu(self.intermediate["dense"](attended)), attended)


class DecoderLayer(nn.Module):
    """Self-attention, attention over the encoder's output (B, K, H) and feed-forward: (B, L, H) -> (B, L, H)."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.slf_attn = nn.ModuleDict({"att": Attention(config), "output": Residual(config, config.hidden_size)})
        self.enc_attn = nn.ModuleDict({"att": Attention(config), "output": Residual(config, config.hidden_size)})
        self.intermediate = nn.ModuleDict({"dense": Linear(config.hidden_size, config.feed_forward_size)})
        self.output = Residual(config, config.feed_forward_size)

    def forward(self, x: Tensor, bias: Tensor, encoded: Tensor, encoded_bias: Tensor) -> Tensor:
        x = self.slf_attn["output"](self.slf_attn["att"](x, x, bias), x)
        x = self.enc_attn["output"](self.enc_attn["att"](x, encoded, encoded_bias), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class LayerStack(nn.Module):
    """`layer` applied one after another to (B, L, H); each is computed again in the backward pass if so configured.

    `last` are keyword arguments of the last layer alone.
    """

    def __init__(self, layers: list[nn.Module], activation_checkpointing: bool):
        super().__init__()
        self.layer = nn.ModuleList(layers)
        self.activation_checkpointing = activation_checkpointing

    def forward(self, x: Tensor, *rest: Tensor, **last: bool) -> Tensor:
        for index, layer in enumerate(self.layer):
            options = last if index == len(self.layer) - 1 else {}
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, *rest, use_reentrant=False, preserve_rng_state=True, **options)
            else:
                x = layer(x, *rest, **options)
        return x


class TiedEmbedding(nn.Module):
    """Embedding whose weight (N, H) belongs to another module too: int64 (...) -> (..., H)."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class TiedLinear(nn.Module):
    """Linear layer without bias whose weight (N, H) belongs to another module too: (..., H) -> (..., N)."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class Embeddings(nn.Module):
    """LayerNorm and dropout of content plus positions plus token types: (B, L, ...) -> (B, L, H).

    `words` turns the input into (B, L, H): an embedding, a linear layer, or None where the input has that form.
    """

    def __init__(self, config: BackboneConfig, words: nn.Module | None, positions: nn.Module, num_types: int = 0):
        super().__init__()
        if words is not None:
            self.word_embeddings = words
        self.position_embeddings = positions
        if num_types:
            self.token_type_embeddings = nn.Embedding(num_types, config.hidden_size)
        self.has_words, self.has_types = words is not None, num_types > 0
        self.LayerNorm = layer_norm(config.hidden_size)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, token_types: Tensor | None = None) -> Tensor:
        """`token_types` (L,) int64 is the same for every row; None: without token types."""
        # positions and types are added as (L, H) before they meet the batch: one large sum less
        place = self.position_embeddings(torch.arange(x.size(1), device=x.device))
        if token_types is not None:
            place = place + self.token_type_embeddings(token_types)
        content = self.word_embeddings(x) if self.has_words else x
        return self.dropout(self.LayerNorm(content + place))


class Pooler(nn.Module):
    """tanh of a dense layer on the first position: (B, L, H) -> (B, H)."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x[:, 0]))


class Transform(nn.Module):
    """Dense layer, gelu, LayerNorm in front of a prediction head: (..., H) -> (..., H)."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = layer_norm(config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x)))


class WordPredictions(nn.Module):
    """Scores of all words, weights tied to the word embeddings: (..., H) -> (..., V)."""

    def __init__(self, config: BackboneConfig, weight: nn.Parameter):
        super().__init__()
        self.transform = Transform(config)
        self.decoder = TiedLinear(weight)
        self.bias = nn.Parameter(torch.zeros(weight.size(0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x)) + self.bias


def initialize(module: nn.Module, config: BackboneConfig) -> None:
    """BERT's initialisation of all of `module`: N(0, `initializer_range`) weights, zero biases."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=config.initializer_range)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
