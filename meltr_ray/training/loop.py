"""The bi-level loop of MELTR (arXiv 2303.13009, algorithm 1). Knows neither Ray nor DeepSpeed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Callable

import torch
from torch import Tensor, nn

from meltr_ray.combining.combiners import slopes
from meltr_ray.config import Config
from meltr_ray.hypergrad.combined import InvalidLosses
from meltr_ray.hypergrad.problem import Problem
from meltr_ray.results.table import RunningMeans
from meltr_ray.training.meta import Meta
from meltr_ray.video.backbones.batch import Batch


class Diverged(RuntimeError):
    """A loss is not finite: one line that names the loss, the step and the mend."""


@dataclass
class Progress:
    """What a run knows of itself. The step is also the data position: batches are pure functions of it."""

    step: int = 0  # optimiser steps done
    seconds: float = 0.0
    meta_seconds: float = 0.0
    best_score: float = float("-inf")
    best_step: int = 0
    means: RunningMeans = field(default_factory=RunningMeans)  # since the last row of the results table


def train(config: Config, engine: Any, combiner: nn.Module, meta: Meta, batches: Iterable[tuple[list[Batch], list[Batch] | None]],
          progress: Progress, evaluate: Callable[[], None], save: Callable[[], None]) -> None:  # fmt: skip
    """Inner steps on w, and before every `aid.inner_steps`-th of them a meta step on phi (arXiv 2303.13009, alg. 1).

    `batches`: of each step from `progress.step` on, its micro-batches, and the meta batches where a meta step is due.
    """
    started = time.perf_counter()
    for step, (micro_batches, meta_batches) in zip(range(progress.step, config.train.steps), batches):
        micro_batches = [batch.to(engine.device) for batch in micro_batches]
        known: list[Tensor] = []
        if meta.is_due(step):
            meta_started = time.perf_counter()
            meta_batches = [batch.to(engine.device) for batch in meta_batches]
            inner = engine.problem(micro_batches, meta_batches, config.task.primary, config.aid)
            progress.means.add(outer_step(meta, inner, config, step))
            progress.meta_seconds += time.perf_counter() - meta_started
            known = [inner.losses()[0]]  # made by the meta step, at this w and with these masks
        for micro, batch in enumerate(micro_batches):
            losses = known[micro] if micro < len(known) else engine.losses(batch)  # (T,)
            value, a = slopes(combiner, engine.shared(losses))
            engine.backward(a @ losses)  # slopes are detached: w never sees phi's graph
            engine.step(step)
            progress.means.add(statistics(config.task.loss_set, losses, a, value, step))
        progress.step = step + 1
        progress.seconds += time.perf_counter() - started
        if is_due(progress.step, config.train.evaluate_every, config.train.steps):
            evaluate()
        if is_due(progress.step, config.train.checkpoint_every, config.train.steps):
            save()
        started = time.perf_counter()


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something done `every` so many steps, and at the last, is due after `step` steps; 0: only at the last."""
    return step == last or (every > 0 and step % every == 0)


def outer_step(meta: Meta, problem: Problem, config: Config, step: int) -> dict[str, Any]:
    """A meta step; losses that no hypergradient can be taken of end the run by the name of the loss."""
    try:
        return meta.step(problem)
    except InvalidLosses as error:
        losses = problem.losses().detach()[0]
        statistics(config.task.loss_set, losses, losses, losses.sum(), step)  # names a loss that is not finite
        raise Diverged(f"{error} (step {step})") from error


def statistics(loss_set: list[str], losses: Tensor, a: Tensor, value: Tensor, step: int) -> dict[str, Any]:
    """What the results table keeps of one inner step.

    Raises:
        Diverged: a loss or the training loss is not finite.
    """
    numbers = torch.cat([losses.detach().float(), a.float(), value.reshape(1).float()]).tolist()  # one wait for the device
    loss_values, slope_values, train_loss = numbers[: len(losses)], numbers[len(losses) : -1], numbers[-1]
    for name, number in [*zip(loss_set, loss_values), ("g_phi(l)", train_loss)]:
        if number - number != 0:  # neither NaN nor infinity
            raise Diverged(f"loss {name} is {number} at step {step}; lower optimizer.learning_rate or aid.learning_rate")
    return (
        {"train_loss": train_loss, "negative_slopes": sum(s < 0 for s in slope_values) / len(slope_values)}
        | {f"loss.{name}": number for name, number in zip(loss_set, loss_values)}
        | {f"slope.{name}": number for name, number in zip(loss_set, slope_values)}
    )
