"""What a run leaves behind: rows of the results table, the best weights, checkpoints."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Callable, Sequence

import torch
from torch import nn

from meltr_ray.config import Config
from meltr_ray.config.user_code import called
from meltr_ray.results.table import RunningMeans
from meltr_ray.storage.writers import Attempt
from meltr_ray.training import checkpoint, memory
from meltr_ray.training.evaluation import Measured, measured, measured_saved, saved_module
from meltr_ray.training.state import RunState
from meltr_ray.training.tuning import merge

Report = Callable[[dict[str, Any]], None]


@dataclass
class Record:
    """Every rank calls what it has; rank 0 writes."""

    config: Config
    folder: Path
    report: Report
    known: dict[str, str]
    """Columns alike in all rows of the run."""
    state: RunState
    module: nn.Module
    validation: Sequence[Any]
    facts: dict[str, Any]
    """Kept with each checkpoint."""
    attempt: Attempt | None
    """Of rank 0."""
    began: float
    """On `time.perf_counter`: when the run would have begun, had nothing interrupted it."""
    tests: bool
    """Whether a row of the test split comes last."""

    def evaluate(self) -> None:
        """Score the validation split; keep the weights, if none were better."""
        config, engine, progress = self.config, self.state.engine, self.state.progress
        found = measured(config.workload, self.module, self.validation, engine.device)
        own = torch.tensor(config.workload.score(found.metrics), dtype=torch.float64, device=engine.device)
        (score,) = engine.average([own.nan_to_num(nan=-torch.inf)])
        if score > progress.best_score or progress.best_step == 0:  # alike on all ranks: what follows waits for each
            progress.best_score, progress.best_step = score.item(), progress.step
            self._keep_weights(found)
        last = progress.step == config.train.steps and not self.tests
        self._row("validation", "finished" if last else "running", found)
        progress.means = RunningMeans()

    def save(self) -> None:
        """Write a checkpoint."""
        self._check_ours()
        self.state.progress.elapsed = time.perf_counter() - self.began
        self.state.save(self.folder / "checkpoints", self.facts, self.config.train.checkpoints_kept)

    def test(self) -> None:
        """Score the test split with the best weights."""
        checkpoint.check_weights_of(self.folder.name, self.best)
        self._row("test", "finished", measured_saved(self.config, self.best, "test", self.state.engine.device))

    def keep(self) -> None:
        """Hand the best model to the workload, if that keeps it in a form of its own."""
        workload = self.config.workload
        if self.attempt and workload.defines("keep"):
            best = saved_module(self.config, self.best)
            merge(best)
            called(workload, "keep", lambda: workload.keep(best, self.folder))

    @property
    def best(self) -> Path:
        return self.folder / checkpoint.BEST

    def _keep_weights(self, found: Measured) -> None:
        weights = self.state.engine.weights()
        self._check_ours()
        if self.attempt:
            about = {"trial": self.folder.name, "step": self.state.progress.step, "checksums": self.facts["fingerprint"]}
            checkpoint.save_weights(self.best, weights, found.metrics | about)

    def _row(self, split: str, status: str, found: Measured) -> None:
        config, engine, progress, way = self.config, self.state.engine, self.state.progress, self.state.way
        progress.elapsed = time.perf_counter() - self.began
        self._check_ours()
        self.report(
            self.known
            | {"split": split, "status": status, "step": progress.step, "best_step": progress.best_step}
            | {"time": datetime.now(UTC), "seconds": progress.seconds, "meta_seconds": progress.meta_seconds}
            | {"elapsed": progress.elapsed}
            | {"peak_memory_bytes": memory.peak_bytes(engine.device), "meta_steps": way.num_steps}
            | {"learning_rate": engine.learning_rate(progress.step - 1)}
            | progress.means.values()
            | {"score": config.workload.score(found.metrics), "resampled": found.resampled}
            | {f"metric.{name}": found.metrics[name] for name in config.workload.metrics}
        )

    def _check_ours(self) -> None:
        if self.attempt:
            self.attempt.check()
