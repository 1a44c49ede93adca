"""One optimiser step as the loop takes it, and as a way of combining may ask about it."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Sequence

import torch
from torch import Tensor

from meltr_ray.combining.way import SlopesOf
from meltr_ray.hypergrad.generators import get_generators
from meltr_ray.hypergrad.module_problem import LossesProblem
from meltr_ray.hypergrad.vectors import Vector
from meltr_ray.training.engine import Engine
from meltr_ray.training.evaluation import quietly
from meltr_ray.training.stopping import Stop, Stopped


class EngineStep:
    """`Step` (combining/way.py) on an engine. To be made when the generators stand where the step starts.

    Args:
        save: writes a checkpoint of the run as it is.
        stop: whether the run ends, asked by every rank after the same steps.
    """

    def __init__(self, engine: Engine, number: int, batches: list[Any], meta_batches: list[Any] | None, primary: str, aid: Any,
                 save: Callable[[], None] = lambda: None, stop: Stop | None = None):  # fmt: skip
        self.engine, self.number, self.batches, self.meta_batches = engine, number, batches, meta_batches
        self.primary, self.aid, self.save, self.stop = primary, aid, save, stop or (lambda engine: None)
        self.start = get_generators(engine.device)
        self._problem: LossesProblem | None = None

    def problem(self) -> LossesProblem:
        if self._problem is None:
            self._problem = self.engine.problem(self.batches, self.meta_batches or [], self.primary, self.aid)
        return self._problem

    def alignments(self) -> Tensor:
        problem = self.problem()
        return problem.jvp(problem.outer_gradient())

    def gradients(self) -> list[Vector]:
        return self.problem().loss_gradients()

    def gramian(self) -> Tensor:
        rows = self.gradients()
        return torch.stack([row.dots(rows) for row in rows])

    def shares(self, a: Tensor) -> Tensor:
        """(T,) a_t <g_t, g> / <g, g> with g = sum_t a_t g_t: of what the step does to the training loss, to first order, the part of each loss."""
        problem = self.problem()
        along = problem.jvp(problem.gradient(lambda l: a @ l)).mean(0)  # <g_t, g>, by this rank's losses
        parts = a * self.average([along])[0]
        return parts / parts.sum()

    def held_out_loss(self, batches: Sequence[Any]) -> float:
        with torch.no_grad():
            losses = [quietly(self.engine.module, lambda: self.engine.module(batch, (self.primary,)).mean()) for batch in batches]
        return float(self.engine.average([torch.stack(losses).double().mean()])[0])

    def look_ahead(self, a: Tensor | SlopesOf, ahead: Iterable[Any], batches: Sequence[Any], stops: bool = False) -> float:
        engine, micro = self.engine, len(self.batches)
        before = engine.snapshot()
        for number, batch in enumerate(ahead):
            losses = engine.losses(batch)
            now = a if isinstance(a, Tensor) else a(engine.shared(losses), batch)
            engine.backward(now @ losses)
            engine.step(self.number + number // micro)
            if stops and (number + 1) % micro == 0 and (end := self.stop(engine)):
                engine.restore(before)
                raise Stopped(end)
        found = self.held_out_loss(batches)
        engine.restore(before)
        return found

    def keep(self) -> None:
        self.save()

    def adam_scale(self) -> Vector | None:
        return self.engine.adam_scale()

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return self.engine.average(tensors)

    def losses(self, micro: int, wanted: Sequence[int] | None = None) -> Tensor:
        """Training losses (T,) of a micro-batch with their graph: the problem's own where it has been asked for; 0 for those that aren't `wanted`."""
        if wanted is not None:
            names = self.engine.config.losses.set
            found = self.engine.losses(self.batches[micro], tuple(names[t] for t in wanted))
            of, none = dict(zip(wanted, found)), found.new_zeros(())
            return torch.stack([of.get(t, none) for t in range(len(names))])
        if micro == 0 and self._problem is not None:
            return self._problem.losses()[0]
        return self.engine.losses(self.batches[micro])

    def losses_again(self) -> Tensor:
        with self.engine.w.replayed(self.start), torch.no_grad():
            return torch.stack([self.engine.losses(batch) for batch in self.batches])
