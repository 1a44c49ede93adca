"""Settings of the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from meltr_ray.bounds import bounded, check_settings
from meltr_ray.errors import check, check_choice
from meltr_ray.video.backbones.settings import PAIR_LOSSES

TASKS = ("retrieval", "multiple_choice", "open_ended", "captioning", "sentiment")
RERANKED = {"align": "joint", "rank": "contrastive"}
"""Primary loss whose pairs `task.rerank` can choose -> the loss that trains the embeddings which choose them."""


@dataclass(kw_only=True)
class TaskConfig:
    """The task and the losses that train for it."""

    name: str = "retrieval"
    """Task: `retrieval` (text-to-video), `multiple_choice` or `open_ended` (questions), `captioning` or `sentiment`; chosen by `task=<name>`."""
    primary: Optional[str] = None
    """Older name of `losses.primary`; scores of this loss make the predictions."""
    loss_set: Any = None
    """Older name of `losses.set`."""
    evaluate_captions: Optional[int] = bounded(None, 1, 10**6)
    """Retrieval: captions of each clip that evaluation asks with; default: all, or 1 where each pair of caption and clip takes a pass of its own (align, matching, rank)."""
    dual_softmax: Optional[float] = bounded(None, 1e-6, 1e6)
    """Retrieval by embeddings (joint, contrastive): temperature at which each similarity, as the primary loss takes it, is weighed by its softmax over all queries (arXiv 2109.04290), such as 0.01 for plain cosines. It knows the whole set of queries, so figures with and without don't compare; default: not at all."""
    rerank: Optional[int] = bounded(None, 1, 10**6)
    """Retrieval by align or rank: only so many pairs of highest embedding similarity (joint, contrastive) of each query and each video take a pass of their own; default: all pairs."""
    beam_size: int = bounded(5, 1, 1000)
    """Captioning: captions kept while one is generated; 1: greedy."""
    length_penalty: float = bounded(0.0, 0, 100)
    """Captioning: beams are compared by log probability over length to this power; 0: by log probability (published), 1: by its mean over words."""
    max_caption_words: int = bounded(20, 2, 65_536)
    """Captioning: word pieces of a generated caption, [SEP] included."""

    def __post_init__(self):
        check_settings("task", self)
        check_choice("task.name", self.name, TASKS)

    def resolve(self, primary: str, loss_set: list[str]) -> None:
        """Told the losses, fill what depends on them, and check it."""
        self.primary, self.loss_set = primary, loss_set
        if self.evaluate_captions is None and self.primary in PAIR_LOSSES:
            self.evaluate_captions = 1
        check(
            self.dual_softmax is None or self.primary not in PAIR_LOSSES,
            "task.dual_softmax",
            self.dual_softmax,
            f"reverses the order of scores below 0, which losses.primary={self.primary} has; leave it out",
        )
        if self.rerank is not None:
            check(self.name == "retrieval" and primary in RERANKED, "task.rerank", self.rerank,
                  f"needs losses.primary={' or '.join(RERANKED)}, and it is {primary}; leave it out")  # fmt: skip
            check(
                RERANKED[primary] in loss_set,
                "task.rerank",
                self.rerank,
                f"candidates are chosen by embeddings that no loss trains; add {RERANKED[primary]} to losses.set",
            )
