"""Retrieval in two stages: embeddings find candidates, and only these take a pass of both texts and video. Q: queries, V: videos."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

PAIRS_AT_ONCE = 256
"""Pairs of text and video that evaluation scores at once."""


class Reranker(Protocol):
    """What a backbone's module offers for it, of what its `query` and `candidate` gave."""

    def embedding_similarity(self, query: tuple[Tensor, ...], candidate: tuple[Tensor, ...]) -> Tensor: ...

    def pair_scores(self, query: tuple[Tensor, ...], candidate: tuple[Tensor, ...]) -> Tensor: ...


def rerank(model: Reranker, query: tuple[Tensor, ...], candidate: tuple[Tensor, ...], k: int) -> Tensor:
    """Scores (Q, V) float32: of the k pairs of highest embedding similarity of each row and of each column, by a pass of their own.

    All other pairs stand behind these, in the order of their embeddings. At most k (Q + V) passes instead of Q V.
    """
    similarity = model.embedding_similarity(query, candidate).float()
    chosen = among_best(similarity, k) | among_best(similarity.T, k).T
    texts, videos = chosen.nonzero(as_tuple=True)
    scores = torch.cat([
        model.pair_scores(tuple(x[rows] for x in query), tuple(x[columns] for x in candidate)).float()
        for rows, columns in zip(texts.split(PAIRS_AT_ONCE), videos.split(PAIRS_AT_ONCE))
    ])  # fmt: skip
    found = similarity - similarity.max() + scores.min() - 1
    found[texts, videos] = scores
    return found


def among_best(similarity: Tensor, k: int) -> Tensor:
    """Which entries (bool, as `similarity`) are among the k highest of their row."""
    best = similarity.topk(min(k, similarity.size(1)), dim=1).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, best, True)
