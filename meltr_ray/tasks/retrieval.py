"""Text-to-video retrieval: its metrics, for any backbone. Q: queries, V: videos."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from meltr_ray.data.store import Clip, ClipStore

AT_ONCE = 256
"""Captions that evaluation encodes at once."""
CLIPS_AT_ONCE = 64
"""Clips that evaluation reads and encodes at once."""


class Inputs(Protocol):
    """Clips and captions as a backbone reads them (tasks/<backbone>.py)."""

    def batch(self, clips: list[Clip], seed: int) -> Any: ...

    def texts(self, captions: list[str]) -> tuple[Tensor, ...]: ...

    def videos(self, clips: list[Clip]) -> tuple[Tensor, ...]: ...


class Ranker(Protocol):
    """What a backbone's module offers besides its losses: encoded captions, encoded videos and their similarity (Q, V)."""

    def query(self, *texts: Tensor) -> tuple[Tensor, ...]: ...

    def candidate(self, *videos: Tensor) -> tuple[Tensor, ...]: ...

    def similarity(self, query: tuple[Tensor, ...], candidate: tuple[Tensor, ...]) -> Tensor: ...


def evaluate(model: Any, store: ClipStore, inputs: Inputs, device: torch.device | str, captions: int | None = None) -> dict[str, float]:
    """Metrics of retrieval on `store`, each caption of each clip once a query; the score is recall_at_10 (%).

    Caption number j of every clip that has one makes one set of queries against all videos; metrics are means over j.
    Video-to-text recall ranks the captions of one such set. `captions`: only the first so many of each clip.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            similarity, target, number = similarities(model, store, inputs, device, captions)
    finally:
        model.train(training)
    rows = []
    for j in range(int(number.max()) + 1):
        chosen = similarity[number == j], target[number == j]
        row = rank_metrics(*chosen)
        back = rank_metrics(chosen[0][:, chosen[1]].T, torch.arange(len(chosen[1])))
        rows.append(row | {"video_to_text_recall_at_10": back["recall_at_10"]})
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return mean | {"score": mean["recall_at_10"]}


def similarities(
    model: Ranker, store: ClipStore, inputs: Inputs, device: torch.device | str, captions: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """All similarities (Q, V), each query's video (Q,) and the number of its caption (Q,), on the CPU."""
    texts, target, number, encoded = [], [], [], []
    for start in range(0, len(store), CLIPS_AT_ONCE):
        clips = [store[index] for index in range(start, min(start + CLIPS_AT_ONCE, len(store)))]
        encoded.append(model.candidate(*(x.to(device) for x in inputs.videos(clips))))
        for index, clip in enumerate(clips, start):
            asked = clip.captions[:captions]
            texts, target, number = texts + asked, target + [index] * len(asked), number + list(range(len(asked)))
    candidates = tuple(torch.cat(parts) for parts in zip(*encoded))
    blocks = []
    for start in range(0, len(texts), AT_ONCE):
        query = model.query(*(x.to(device) for x in inputs.texts(texts[start : start + AT_ONCE])))
        blocks.append(model.similarity(query, candidates).float().cpu())
    return torch.cat(blocks), torch.tensor(target), torch.tensor(number)


def rank_metrics(similarity: Tensor, target: Tensor) -> dict[str, float]:
    """Recall (%), median and mean rank of column `target` (Q,) in each row of `similarity` (Q, V).

    Rank: 1 + the columns that score higher + half of the others that tie, so that a constant score ranks in the middle,
    (V + 1) / 2, and doesn't win. A NaN counts as higher than all, and one of the target as lower. Differs from the
    published metrics, which count a tied query once for each tie.
    """
    own = similarity.gather(1, target[:, None])
    others = torch.ones_like(similarity, dtype=torch.bool).scatter_(1, target[:, None], False)
    higher = (~(similarity <= own) & others).sum(1)
    ties = ((similarity == own) & others).sum(1)
    rank = 1 + higher.double() + ties / 2
    recall = {f"recall_at_{k}": 100 * (rank <= k).double().mean().item() for k in (1, 5, 10)}
    return recall | {"median_rank": float(np.median(rank.numpy(force=True))), "mean_rank": rank.mean().item()}
