"""The losses: pure functions, tensors to a scalar. A loss over nothing (no masked word, no masked frame) is 0.

"Published" is the code of MELTR (github.com/mlvlab/MELTR, univl/), which builds on UniVL's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def text_to_video(similarity: Tensor) -> Tensor:
    """Cross entropy of finding the video of each caption, the `align` losses.

    similarity (B, B), row i a caption, column i its video: -mean_i log softmax_j(s_ij)[i].
    Source: published `CrossEn`.
    """
    return F.cross_entropy(similarity, torch.arange(len(similarity), device=similarity.device))


def contrastive(similarity: Tensor) -> Tensor:
    """Cross entropy both ways, the `joint` losses: mean of caption-to-video and video-to-caption.

    similarity (B, B), row i a caption, column i its video. Source: CLIP (arXiv 2103.00020), figure 3.
    Differs from UniVL, whose joint loss (MIL-NCE) puts both directions in one softmax.
    """
    return (text_to_video(similarity) + text_to_video(similarity.T)) / 2


def max_margin(similarity: Tensor, margin: float = 0.1) -> Tensor:
    """Max-margin ranking, the published `joint` losses.

    similarity s (B, B): mean_ij of relu(margin + s_ij - s_ii) + relu(margin + s_ij - s_jj).
    Source: published `MaxMarginRankingLoss` with its defaults, margin 0.1 and one caption a clip (`n_pair=1`), for which
    its weighting of hard negatives does nothing. As there, the mean includes the diagonal, a constant 2 margin / B.
    """
    own = similarity.diagonal()
    return (F.relu(margin + similarity - own[:, None]) + F.relu(margin + similarity - own[None, :])).mean()


def word_cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of predicted words: `masked_language` at masked words, the `caption` losses at the next word.

    scores (N, V), targets (N,) int64: -mean_n log softmax(scores_n)[targets_n].
    Source: published `alm_loss_fct` and `decoder_loss_fct`. Callers pass only the positions that count. Differs from the
    published captioning in that: padding after [SEP] isn't a target (there, its data loader makes it [PAD], id 0).
    """
    return F.cross_entropy(scores, targets, reduction="sum") / max(len(targets), 1)


def masked_frame(predicted: Tensor, video: Tensor, video_mask: Tensor, masked: Tensor) -> Tensor:
    """Noise-contrastive estimation of masked frames against all frames of the batch, `masked_frame`.

    predicted (M, D): predicted features of the masked frames, row by row of `masked`; video (B, F, D): true, normalised
    features; video_mask, masked (B, F) bool: -mean_m log softmax_k(predicted_m . video_k)[m] over the real frames k.
    Source: published `_calculate_mfm_loss`, which scores every frame and then selects. The targets carry a gradient, too.
    """
    scores = predicted @ video.flatten(0, 1).T
    scores = scores.masked_fill(~video_mask.flatten(), -torch.inf)
    targets = masked.flatten().nonzero()[:, 0]
    return F.cross_entropy(scores, targets, reduction="sum") / max(len(targets), 1)
