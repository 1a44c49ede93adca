"""Video Swin Transformer (Liu et al., arXiv 2106.13230) as VIOLET uses it: a clip to one feature vector a patch and frame.

Parameter and buffer names and shapes are those of the published code, so that its checkpoints load. B: clips, T: frames,
C: channels of a stage, W: windows of a clip, N: positions of a window. Grids are (T, height, width), channels last.

Differs from the published code in: channels stay last all through, so the output is (B, T, height, width, C) and not
(B, C, T, height, width); bias and shift mask are added up before they meet the scores. Kept as published, though
questionable: padding up to whole windows takes part in attention; where a stage is smaller than the window in height or
width, the relative positions are cut as if it were only smaller in time (see `WindowAttention`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from meltr_ray.video.backbones.layers import Linear, blocked_attention, plain_attention

PATCH = (2, 4, 4)
"""Frames, rows and columns of a patch; patches overlap in time, one starts at each frame."""
MASKED_SCORE = -100.0
"""Added to the attention score of positions that a shift has brought into one window without being neighbours (published)."""

Size = tuple[int, int, int]


def fit_window(grid: Size, window: Size, shifted: bool) -> tuple[Size, Size]:
    """Window and shift for a grid: an axis no longer than the window is one window, unshifted; else half a window."""
    fitted = tuple(min(length, size) for length, size in zip(grid, window))
    shift = tuple(size // 2 if shifted and length > size else 0 for length, size in zip(grid, window))
    return fitted, shift


def to_windows(x: Tensor, window: Size) -> Tensor:
    """(B, T, height, width, C), whole windows -> (B, W, N, C)."""
    b, t, h, w, c = x.shape
    x = x.view(b, t // window[0], window[0], h // window[1], window[1], w // window[2], window[2], c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, window[0] * window[1] * window[2], c)


def from_windows(x: Tensor, window: Size, grid: Size) -> Tensor:
    """Inverse of `to_windows` for a `grid` of whole windows."""
    x = x.view(len(x), *(length // size for length, size in zip(grid, window)), *window, -1)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(x), *grid, -1)


def shift_mask(grid: Size, window: Size, shift: Size, device: torch.device) -> Tensor:
    """(W, N, N) float32, added to the scores of a shifted grid: 0 between neighbours, MASKED_SCORE across the seam.

    The shift rolls an axis, so its last window holds positions of both ends: those before and after the seam.
    """
    region = torch.zeros(grid, device=device)
    for axis, (length, step) in enumerate(zip(grid, shift)):
        beyond = torch.arange(length, device=device) >= length - step
        region = 2 * region + beyond.view([-1 if a == axis else 1 for a in range(3)])
    region = to_windows(region[None, ..., None], window)[0, ..., 0]
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, MASKED_SCORE)


class DropPath(nn.Module):
    """Leaves a residual branch out for a whole clip with `probability` while training; kept branches are scaled up."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        kept = torch.rand([len(x)] + [1] * (x.dim() - 1), device=x.device) >= self.probability
        return x * kept.to(x.dtype) / (1 - self.probability)


class WindowAttention(nn.Module):
    """Multi-head attention inside each window with a bias for each relative position: (B, W, N, C) -> (B, W, N, C).

    The bias of a window cut to N positions is the first N rows and columns of the full window's. That is right where only
    time is cut, the slowest axis. Where height or width is cut, biases belong to other displacements; as published.

    `fused=False` is plain matrix products and a softmax, which admit a second derivative. A CPU has no fused kernel with a
    gradient for the bias: there, scores of large batches are formed in blocks, and again in the backward pass.
    """

    def __init__(self, channels: int, window: Size, num_heads: int, fused: bool):
        super().__init__()
        self.num_heads, self.fused = num_heads, fused
        reach = [2 * size - 1 for size in window]
        table = torch.empty(reach[0] * reach[1] * reach[2], num_heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        places = torch.cartesian_prod(*(torch.arange(size) for size in window)).view(-1, 3)
        t, h, w = (places[:, None] - places[None, :] + torch.tensor(window) - 1).unbind(-1)
        # a buffer because it is in the published checkpoints
        self.register_buffer("relative_position_index", (t * reach[1] + h) * reach[2] + w)
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (W, N, N): what `shift_mask` gives, or None for an unshifted grid."""
        num_windows, positions = x.shape[1:3]
        bias = F.embedding(self.relative_position_index[:positions, :positions], self.relative_position_bias_table)
        bias = bias.permute(2, 0, 1)[None]  # (1, heads, N, N)
        if mask is not None:
            bias = bias + mask[:, None].to(bias.dtype)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        # kernels take (rows, heads, N, size): a row is a window if windows share a bias, and a window's head, with the clips
        # for heads, if each has its own, so that the bias is never repeated for every clip
        if mask is None:
            query, key, value = (part.flatten(0, 1) for part in (query, key, value))
        else:
            query, key, value = (part.flatten(1, 2).transpose(0, 1) for part in (query, key, value))
            bias = bias.flatten(0, 1)[:, None]
        bias = bias.to(query.dtype)
        if not self.fused:
            context = plain_attention(query, key, value, bias)
        elif query.device.type == "cpu" and bias.requires_grad:
            context = blocked_attention(query, key, value, bias)
        else:
            context = F.scaled_dot_product_attention(query, key, value, bias)
        context = context if mask is None else context.transpose(0, 1)
        context = context.reshape(len(x), num_windows, self.num_heads, positions, -1)
        return self.proj(context.transpose(2, 3).flatten(3))


class SwinBlock(nn.Module):
    """Window attention and feed-forward, each normalised before and added to its input: (B, T, height, width, C) -> same."""

    def __init__(self, channels: int, window: Size, num_heads: int, shifted: bool, drop_path: float, fused: bool):
        super().__init__()
        self.window, self.shifted = window, shifted
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, window, num_heads, fused)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.ModuleDict({"fc1": Linear(channels, 4 * channels), "fc2": Linear(4 * channels, channels)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.drop_path(self._attend(self.norm1(x), mask))
        return x + self.drop_path(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        t, h, w = x.shape[1:4]
        window, shift = fit_window((t, h, w), self.window, self.shifted)
        shift_needed = any(shift)
        x = F.pad(x, (0, 0, 0, -w % window[2], 0, -h % window[1], 0, -t % window[0]))
        padded = tuple(x.shape[1:4])
        if shift_needed:
            x = x.roll([-step for step in shift], dims=(1, 2, 3))
        x = self.attn(to_windows(x, window), mask if shift_needed else None)
        x = from_windows(x, window, padded)
        if shift_needed:
            x = x.roll(shift, dims=(1, 2, 3))
        return x[:, :t, :h, :w]


class PatchMerging(nn.Module):
    """Four neighbours in a frame become one: (B, T, height, width, C) -> (B, T, height / 2, width / 2, 2 C), rounded up."""

    def __init__(self, channels: int):
        super().__init__()
        self.reduction = Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.size(3) % 2, 0, x.size(2) % 2))
        b, t, h, w, c = x.shape
        # columns before rows, the order of the published concatenation
        x = x.view(b, t, h // 2, 2, w // 2, 2, c).permute(0, 1, 2, 4, 5, 3, 6).flatten(4)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """Blocks, every second one shifted, and the merging that follows all stages but the last."""

    def __init__(self, channels: int, window: Size, num_heads: int, drop_paths: list[float], merge: bool, fused: bool,
                 activation_checkpointing: bool):  # fmt: skip
        super().__init__()
        self.window, self.activation_checkpointing = window, activation_checkpointing
        self.blocks = nn.ModuleList(
            SwinBlock(channels, window, num_heads, index % 2 == 1, probability, fused) for index, probability in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(channels) if merge else None

    def forward(self, x: Tensor) -> Tensor:
        grid = tuple(x.shape[1:4])
        window, shift = fit_window(grid, self.window, shifted=True)
        mask = None
        if any(shift):  # one mask for all blocks of the stage
            padded = tuple(length + -length % size for length, size in zip(grid, window))
            mask = shift_mask(padded, window, shift, x.device)
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, use_reentrant=False, preserve_rng_state=True)
            else:
                x = block(x, mask)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbedding(nn.Module):
    """Pixels (B, 3, T, rows, columns) -> normalised patches (B, T, rows / 4, columns / 4, C), rounded up.

    A frame of zeros follows the last, so that every frame starts a patch.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Conv3d(3, channels, PATCH, stride=(1, *PATCH[1:]))
        self.norm = nn.LayerNorm(channels)

    def forward(self, pixels: Tensor) -> Tensor:
        rows, columns = pixels.shape[3:]
        pixels = F.pad(pixels, (0, -columns % PATCH[2], 0, -rows % PATCH[1], 0, PATCH[0] - 1))
        return self.norm(self.proj(pixels).permute(0, 2, 3, 4, 1))


class VideoSwin(nn.Module):
    """The encoder: pixels (B, T, 3, rows, columns) -> (B, T, height, width, C 2^(S-1)) for S stages.

    height is rows / (4 2^(S-1)), rounded up. `width` is C of the first stage; `depths` and `num_heads` have a number a
    stage; `drop_path` is the probability for the last block, lower ones rise to it from 0.
    """

    def __init__(self, width: int, depths: tuple[int, ...], num_heads: tuple[int, ...], window: Size, drop_path: float,
                 fused: bool = True, activation_checkpointing: bool = False):  # fmt: skip
        super().__init__()
        self.patch_embed = PatchEmbedding(width)
        drop_paths = torch.linspace(0, drop_path, sum(depths), device="cpu").split(list(depths))
        self.layers = nn.ModuleList(
            Stage(width * 2**index, window, num_heads[index], drop_paths[index].tolist(), index < len(depths) - 1, fused,
                  activation_checkpointing)
            for index in range(len(depths))
        )  # fmt: skip
        self.norm = nn.LayerNorm(width * 2 ** (len(depths) - 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels.transpose(1, 2))
        for stage in self.layers:
            x = stage(x)
        return self.norm(x)
