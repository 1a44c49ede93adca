"""Ranks of retrieval and their summary. Q: queries, V: candidates."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

RECALL_AT = (1, 5, 10)


def ranks(similarity: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rank (Q,) of column `target` (Q,) in each row of `similarity` (Q, V), 1 the best.

    1 + the columns that score higher + half of the others that tie, so that a constant score ranks in the middle, (V + 1) / 2.
    A NaN counts as higher than all, and one of the target as lower than all.
    """
    similarity, target = np.asarray(similarity), np.asarray(target)
    own = np.take_along_axis(similarity, target[:, None], axis=1)
    others = np.ones(similarity.shape, dtype=bool)
    np.put_along_axis(others, target[:, None], False, axis=1)
    higher = (~(similarity <= own) & others).sum(1)
    ties = ((similarity == own) & others).sum(1)
    return 1 + higher + ties / 2


def rank_metrics(ranks: np.ndarray) -> dict[str, float]:
    """recall_at_1, _5 and _10 (%), median_rank and mean_rank of ranks (Q,); NaN where there is no query."""
    ranks = np.asarray(ranks, dtype=float)
    if not len(ranks):
        return dict.fromkeys([*(f"recall_at_{k}" for k in RECALL_AT), "median_rank", "mean_rank"], float("nan"))
    recall = {f"recall_at_{k}": 100 * float((ranks <= k).mean()) for k in RECALL_AT}
    return recall | {"median_rank": float(np.median(ranks)), "mean_rank": float(ranks.mean())}


def dual_softmax(similarity: np.ndarray, temperature: float) -> np.ndarray:
    """`similarity` s (Q, V) times its softmax over the queries: s_ij exp(s_ij / t) / sum_k exp(s_kj / t).

    CAMoE (arXiv 2109.04290); its code also multiplies by Q, which changes no rank. It looks at all queries of the test at
    once, so its figures stand only beside others that do the same. Meant for similarities above 0: of negative ones the
    product reverses the order. A NaN makes its whole column NaN, which `ranks` holds against every query.
    Raises ValueError where `temperature` isn't above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0; 0.01 suits cosines")
    similarity = np.asarray(similarity, dtype=float)
    return similarity * softmax(similarity / temperature, axis=0)
