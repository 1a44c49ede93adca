"""Multi-modal sentiment, a score in [-3, 3] for each clip: its examples, predictions and metrics, for any backbone that rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from meltr_ray.results.bootstrap import interval
from meltr_ray.video.backbones.batch import Batch
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.store import ClipStore
from meltr_ray.video.metrics import sentiment
from meltr_ray.video.tasks.examples import Examples, in_parts
from meltr_ray.video.tasks.settings import TaskConfig
from meltr_ray.workload import Metric

if TYPE_CHECKING:
    from meltr_ray.video.workload import Video

METRICS = {
    "mae": Metric(higher=False, digits=3, label="MAE", meaning="sentiment: mean absolute error, of scores in [-3, 3]"),
    "correlation": Metric(digits=3, meaning="sentiment: Pearson's correlation with the truth"),
    "accuracy_2": Metric("%", label="Acc-2", meaning="sentiment: negative or not told right"),
    "accuracy_2_non_zero": Metric(
        "%", label="Acc-2 without 0", meaning="sentiment: negative or positive told right where the truth isn't 0"
    ),
    "accuracy_7": Metric("%", label="Acc-7", meaning="sentiment: rounded score right"),
    "f1": Metric("%", label="F1", meaning="sentiment: weighted F1 of negative or not"),
    "f1_non_zero": Metric("%", label="F1 without 0", meaning="sentiment: weighted F1 of negative or positive where the truth isn't 0"),
}
AT_ONCE = 128
"""Clips that evaluation reads and rates at once."""


class Inputs(Protocol):
    """Clips as a backbone reads them (backbones/<name>/inputs.py)."""

    def evaluation(self, clips: list[Clip]) -> Batch: ...


class Rater(Protocol):
    """What a backbone's module offers besides its losses."""

    def rate(self, batch: Batch) -> Tensor:
        """Sentiment (B,)."""
        ...


def examples(store: ClipStore, config: Video) -> Examples:
    """Clips that have a score, once each."""
    return Examples(store, config.task.name, np.flatnonzero(store.column("score").is_valid()))


def predict(model: Rater, examples: Examples, inputs: Inputs, device: torch.device | str, task: TaskConfig) -> list[dict[str, Any]]:
    """One row a clip. `correct`: negative or not told right; `quality`: the negative absolute error."""
    rows = []
    for clips in in_parts(examples, AT_ONCE):
        found = model.rate(inputs.evaluation(clips).to(device)).double().cpu().tolist()
        rows += [score_row(clip, predicted) for clip, predicted in zip(clips, found)]
    return rows


def score_row(clip: Clip, predicted: float) -> dict[str, Any]:
    truth = float(clip.score)
    right = predicted == predicted and (predicted >= 0) == (truth >= 0)  # NaN is wrong
    return dict(id=clip.id, source=clip.source, correct=right, quality=-abs(predicted - truth), transcript=clip.transcript or "",
                truth=truth, predicted=predicted)  # fmt: skip


def metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """All metrics of metrics/sentiment.py."""
    return sentiment.metrics(*arrays(rows))


def report(rows: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, tuple[float, float]], list[str]]:
    """All metrics, their intervals over sources, and notes."""
    found, counts, sources = metrics(rows), sentiment.counts(*arrays(rows)), [row["source"] for row in rows]

    def one(name: str) -> tuple[float, float]:
        return interval(counts, sources, lambda sums: sentiment.scores(sums)[name])

    truth = arrays(rows)[1]
    constant = np.abs(truth - np.median(truth)).mean()
    notes = [f"{len(rows)} clips of {len(set(sources))} videos.",
             f"The best constant, which knows the truths' median {np.median(truth):.2f}, has a mae of {constant:.3f}.",
             "accuracy_2, f1: negative against the rest; accuracy_2_non_zero, f1_non_zero: against positive, without truths of 0."]  # fmt: skip
    return found, {name: one(name) for name in found}, notes


def arrays(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and truths (N,)."""
    return tuple(np.array([row[name] for row in rows]) for name in ("predicted", "truth"))
