"""Text-to-video retrieval: its examples, predictions and metrics, for any backbone. Q: queries, V: videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from meltr_ray.results.bootstrap import histogram, interval, ratio, with_ones
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.store import ClipStore
from meltr_ray.video.metrics.retrieval import dual_softmax, rank_metrics, ranks
from meltr_ray.video.tasks.examples import Examples, captioned, in_parts
from meltr_ray.video.tasks.reranking import rerank
from meltr_ray.video.tasks.settings import TaskConfig
from meltr_ray.workload import Metric

if TYPE_CHECKING:
    from meltr_ray.video.workload import Video

METRICS = {
    "recall_at_10": Metric("%", label="R@10", meaning="text-to-video: queries whose video ranks in the first 10"),
    "recall_at_1": Metric("%", label="R@1", meaning="text-to-video: queries whose video ranks first"),
    "recall_at_5": Metric("%", label="R@5", meaning="text-to-video: queries whose video ranks in the first 5"),
    "median_rank": Metric(higher=False, meaning="text-to-video: median rank of the right video (1 is best)"),
    "mean_rank": Metric(higher=False, meaning="text-to-video: mean rank of the right video (1 is best)"),
    "video_to_text_recall_at_10": Metric("%", label="video-to-text R@10", meaning="video-to-text, one caption a video: videos whose caption ranks in the first 10"),
}  # fmt: skip
AT_ONCE = 256
"""Captions that evaluation encodes at once."""
CLIPS_AT_ONCE = 64
"""Clips that evaluation reads and encodes at once."""
SHOWN = 10
"""Videos that a prediction lists."""


class Inputs(Protocol):
    """Clips and captions as a backbone reads them (backbones/<name>/inputs.py)."""

    def texts(self, captions: list[str]) -> tuple[Tensor, ...]: ...

    def videos(self, clips: list[Clip]) -> tuple[Tensor, ...]: ...


class Ranker(Protocol):
    """What a backbone's module offers besides its losses: encoded captions, encoded videos and their similarity (Q, V)."""

    def query(self, *texts: Tensor) -> tuple[Tensor, ...]: ...

    def candidate(self, *videos: Tensor) -> tuple[Tensor, ...]: ...

    def similarity(self, query: tuple[Tensor, ...], candidate: tuple[Tensor, ...]) -> Tensor: ...


def examples(store: ClipStore, config: Video) -> Examples:
    """Clips that have a caption, once each."""
    return Examples(store, config.task.name, captioned(store))


def predict(model: Ranker, examples: Examples, inputs: Inputs, device: torch.device | str, task: TaskConfig) -> list[dict[str, Any]]:
    """One row a query: each caption of each clip, or the first `task.evaluate_captions`.

    Caption number j of every clip that has one makes one set of queries, ranked against all videos; `video_rank` is the rank of
    the caption among those of its set, for its video.
    """
    similarity, target, number, captions = similarities(model, examples, inputs, device, task)
    clips = [(clip.id, clip.source) for clip in examples]
    rows: list[dict[str, Any]] = [{} for _ in target]
    for j in range(int(number.max()) + 1):
        asked = np.flatnonzero(number == j)
        scores, right = similarity[asked], target[asked]
        if task.dual_softmax:
            scores = dual_softmax(scores, task.dual_softmax)
        forward, back = ranks(scores, right), ranks(scores[:, right].T, np.arange(len(right)))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :SHOWN]
        for at, row in enumerate(asked):
            name, source = clips[right[at]]
            rows[row] = dict(
                id=name, source=source, correct=bool(forward[at] == 1), quality=-float(forward[at]), query=captions[row],
                caption_number=j, rank=float(forward[at]), video_rank=float(back[at]),
                top_ids=[clips[video][0] for video in best[at]], top_scores=[float(s) for s in scores[at, best[at]]],
            )  # fmt: skip
    return rows


def metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Metrics of text-to-video over all queries, and video-to-text recall."""
    forward, back = (rank_metrics(np.array([row[name] for row in rows])) for name in ("rank", "video_rank"))
    return forward | {"video_to_text_recall_at_10": back["recall_at_10"]}


def report(rows: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, tuple[float, float]], list[str]]:
    """All metrics, their intervals over the videos, and notes."""
    found = metrics(rows)
    videos, asked = len({row["id"] for row in rows}), len({row["caption_number"] for row in rows})
    notes = [f"{len(rows)} queries, {asked} caption{'s' * (asked > 1)} at most of each of {videos} videos, each on its own.",
             "Ranks count a tie as half won."]  # fmt: skip
    rank, sources = np.array([row["rank"] for row in rows]), [row["source"] for row in rows]
    means = {f"recall_at_{k}": 100.0 * (rank <= k) for k in (1, 5, 10)} | {"mean_rank": rank}
    intervals = {name: interval(with_ones(values), sources, ratio) for name, values in means.items()}
    counts, median = histogram(rank)
    return found, intervals | {"median_rank": interval(counts, sources, median)}, notes


def similarities(
    model: Ranker, examples: Examples, inputs: Inputs, device: torch.device | str, task: TaskConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """All similarities (Q, V), each query's video (Q,), the number of its caption (Q,) and the captions."""
    texts, target, number, encoded = [], [], [], []
    for part, clips in enumerate(in_parts(examples, CLIPS_AT_ONCE)):
        encoded.append(model.candidate(*(x.to(device) for x in inputs.videos(clips))))
        for index, clip in enumerate(clips, part * CLIPS_AT_ONCE):
            asked = clip.captions[: task.evaluate_captions]
            texts, target, number = texts + asked, target + [index] * len(asked), number + list(range(len(asked)))
    candidates = tuple(torch.cat(parts) for parts in zip(*encoded))
    queries = (model.query(*(x.to(device) for x in inputs.texts(texts[at : at + AT_ONCE]))) for at in range(0, len(texts), AT_ONCE))
    if task.rerank:
        found = torch.empty(len(texts), len(examples))
        query = tuple(torch.cat(parts) for parts in zip(*queries))
        for j in set(number):  # as they are ranked: caption number j of each clip
            rows = torch.tensor([at for at, each in enumerate(number) if each == j])
            found[rows] = rerank(model, tuple(x[rows.to(device)] for x in query), candidates, task.rerank).cpu()
    else:
        found = torch.cat([model.similarity(query, candidates).float().cpu() for query in queries])
    return found.numpy(), np.array(target), np.array(number), texts
