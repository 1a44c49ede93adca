"""The losses against their formulas written out, and what they do at their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from meltr_ray.video import losses


def log_softmax(row: np.ndarray) -> np.ndarray:
    return row - np.log(np.exp(row).sum())


def test_losses_of_a_similarity_matrix_are_their_formulas():
    s = np.random.default_rng(0).normal(size=(5, 5))
    forth = -np.mean([log_softmax(s[i])[i] for i in range(5)])
    back = -np.mean([log_softmax(s[:, i])[i] for i in range(5)])
    margin = np.mean([
        max(0, 0.1 + s[i, j] - s[i, i]) + max(0, 0.1 + s[i, j] - s[j, j]) for i in range(5) for j in range(5)
    ])  # fmt: skip
    similarity = torch.from_numpy(s)
    assert losses.text_to_video(similarity).item() == pytest.approx(forth)
    assert losses.contrastive(similarity).item() == pytest.approx((forth + back) / 2)
    assert losses.max_margin(similarity).item() == pytest.approx(margin)


def masked_frame_case():
    generator = np.random.default_rng(1)
    video = generator.normal(size=(3, 4, 6))
    video_mask = np.arange(4) < np.array([4, 2, 3])[:, None]
    masked = np.array([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    return generator.normal(size=(masked.sum(), 6)), video, video_mask, masked


def test_masked_frame_contrasts_each_masked_frame_with_all_real_frames():
    predicted, video, video_mask, masked = masked_frame_case()
    real = [(clip, frame) for clip in range(3) for frame in range(4) if video_mask[clip, frame]]
    expected = -np.mean([
        log_softmax(np.array([p @ video[at] for at in real]))[real.index(tuple(where))]
        for p, where in zip(predicted, np.argwhere(masked))
    ])  # fmt: skip
    got = losses.masked_frame(*map(torch.from_numpy, (predicted, video, video_mask, masked)))
    assert got.item() == pytest.approx(expected)


def test_losses_over_nothing_are_zero_with_zero_gradient():
    predicted, video, video_mask, masked = map(torch.from_numpy, masked_frame_case())
    nothing, video = predicted[:0].requires_grad_(), video.requires_grad_()
    scores = torch.zeros(0, 7, requires_grad=True)
    for loss in (
        losses.masked_frame(nothing, video, video_mask, torch.zeros_like(masked)),
        losses.word_cross_entropy(scores, torch.zeros(0, dtype=torch.int64)),
    ):
        assert loss.item() == 0
        loss.backward()
    assert torch.equal(video.grad, torch.zeros_like(video)) and scores.grad.shape == (0, 7)
