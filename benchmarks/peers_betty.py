"""betty-ml (Choe et al. 2022, arXiv 2207.02849): two ImplicitProblems in an Engine, as in its documentation.

The engine builds the dependency graph; then only the upper problem's gradient is timed, not the lower problem's SGD step, which
would move w off its optimum.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from betty.problems import ImplicitProblem
from numpy import ndarray
from peers_problems import Problem
from peers_torch import Loss, Parameter, torch_losses
from torch import Tensor

METHODS = {"cg": "iterations", "neumann": "iterations", "darts (finite difference)": None}


class Outer(ImplicitProblem):
    """min_phi F(w, phi)."""

    loss: Loss

    def training_step(self, batch: Any) -> Tensor:
        return self.loss(self.inner(), self.module())


class Inner(ImplicitProblem):
    """min_w L(w, phi)."""

    loss: Loss

    def training_step(self, batch: Any) -> Tensor:
        return self.loss(self.module(), self.outer())


def prepare(problem: Problem, method: str, size: int) -> Callable[[], ndarray]:
    """A function that computes the hypergradient (q,) once."""
    inner_config = Config(
        type=method.split()[0],
        cg_iterations=size,
        neumann_iterations=size,
        neumann_alpha=1 / problem.largest,
    )
    outer = _problem(Outer, "outer", Config(), problem.hyperparameters)
    inner = _problem(Inner, "inner", inner_config, problem.weights)
    inner.loss, outer.loss = torch_losses(problem)
    Engine([outer, inner], EngineConfig(strategy="cpu"), {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}})
    inner.cur_batch, outer.cur_batch = inner.get_batch(), outer.get_batch()

    def call() -> ndarray:
        outer.zero_grad()
        loss = outer.training_step_exec(outer.cur_batch)
        outer.backward(loss, outer.trainable_parameters(), outer.paths)
        return outer.trainable_parameters()[0].grad.numpy()

    return call


def _problem(kind: type[ImplicitProblem], name: str, config: Config, value: ndarray) -> ImplicitProblem:
    """The losses hold their own data, so one empty batch stands for all of it."""
    module = Parameter(value)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return kind(name, config, module=module, optimizer=optimizer, train_data_loader=[()])
