"""The bi-level loop of MELTR (arXiv 2303.13009, algorithm 1), for any way to combine losses. Knows neither Ray nor DeepSpeed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable

from meltr_ray.combining.way import Way
from meltr_ray.config import Config
from meltr_ray.hypergrad.structure import InvalidLosses
from meltr_ray.results.table import RunningMeans
from meltr_ray.training.batches import to_device
from meltr_ray.training.statistics import Diverged, by_name, statistics
from meltr_ray.training.step import EngineStep
from meltr_ray.training.stopping import End, Stop, Stopped

if TYPE_CHECKING:
    from meltr_ray.training.engine import Engine


@dataclass
class Progress:
    """What a run knows of itself. The step is also the data position: batches are pure functions of it."""

    step: int = 0  # optimiser steps done
    seconds: float = 0.0
    meta_seconds: float = 0.0
    elapsed: float = 0.0  # seconds with all that isn't training too: start, evaluation, checkpoints
    best_score: float = float("-inf")
    best_step: int = 0
    means: RunningMeans = field(default_factory=RunningMeans)  # since the last row of the results table


def train(config: Config, engine: Engine, way: Way, batches: Iterable[tuple[list[Any], list[Any] | None]],
          progress: Progress, evaluate: Callable[[], None], save: Callable[[], None], stop: Stop | None = None) -> End:  # fmt: skip
    """Inner steps on w; before and after each, `way` may learn (MELTR: a meta step on phi before every `aid.inner_steps`-th).

    `batches`: of each step from `progress.step` on, its micro-batches, and the meta batches where `way` asks for them. `stop`: asked
    before the first step and after each; where it ends the run, the step is saved.
    """
    if stop and (end := stop(engine)):
        return end
    started = time.perf_counter()
    for number, (micro_batches, meta_batches) in zip(range(progress.step, config.train.steps), batches):
        micro_batches, meta_batches = (to_device(each, engine.device) for each in (micro_batches, meta_batches))
        step = EngineStep(engine, number, micro_batches, meta_batches, config.losses.primary, config.aid, save, stop)
        meta_started = time.perf_counter()
        try:
            learned = before(way, step, config)
        except Stopped as stopped:
            save()
            return stopped.end
        if learned:
            progress.means.add(by_name(learned, config))
            progress.meta_seconds += time.perf_counter() - meta_started
        wanted = way.wanted()
        looked_at = (
            way.learns
            and wanted is None
            and not config.workload.per_example
            and is_due(number + 1, config.train.evaluate_every, config.train.steps)
        )
        if looked_at:
            step.problem()  # where the generators stand now
        for micro, batch in enumerate(micro_batches):
            losses = step.losses(micro, wanted)  # (T,)
            value, a = way.slopes(engine.shared(losses, way.averages), batch)
            if looked_at and micro == 0:
                progress.means.add({f"share.{name}": share for name, share in zip(config.losses.set, step.shares(a).tolist())})
            engine.backward(a @ losses)  # slopes are detached: w never sees phi's graph
            engine.step(number)
            progress.means.add(statistics(config, losses, a, value, number, wanted))
        way.after(step)
        progress.step = number + 1
        progress.seconds += time.perf_counter() - started
        if is_due(progress.step, config.train.evaluate_every, config.train.steps):
            evaluate()
        if saved := is_due(progress.step, config.train.checkpoint_every, config.train.steps):
            save()
        if stop and progress.step < config.train.steps and (end := stop(engine)):
            if not saved:
                save()
            return end
        started = time.perf_counter()
    return End.FINISHED


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something done `every` so many steps, and at the last, is due after `step` steps; 0: only at the last."""
    return step == last or (every > 0 and step % every == 0)


def before(way: Way, step: EngineStep, config: Config) -> dict[str, Any]:
    """What `way` does before w moves; losses that no hypergradient can be taken of end the run by the name of the loss."""
    try:
        return way.before(step)
    except InvalidLosses as error:
        losses = step.problem().losses().detach()[0]
        statistics(config, losses, losses, losses.sum(), step.number)  # names a loss that is not finite
        raise Diverged(f"{error} (step {step.number})") from error
