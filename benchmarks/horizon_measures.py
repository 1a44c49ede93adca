"""What each loss does to the held-out primary loss from one w: by one step, by looking ahead, and by the gradient through training.

A gain is above 0 where the loss helps. Of one step: (J v)_t over its absolute value for the primary, by the products of `aid.*`; by loss space, with
slopes that are constant, it is J b exactly, and the identity's but for the error of its product. Of a look-ahead of K: F after K steps without
the loss minus F with it. Of the oracle of K: -d F(w_K) / d a_t, which is the look-ahead's gain to first order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Sequence

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad import AdamRule, hypergradient, training_gradient
from meltr_ray.hypergrad.named import SOLVERS
from meltr_ray.training.engine import Engine
from meltr_ray.training.evaluation import in_evaluation
from meltr_ray.training.schedules import rate_factor
from meltr_ray.training.step import EngineStep

ONE_STEP = ("identity", "cg", "loss_space")


class Slopes(nn.Module):
    """g_phi(l) = <a, l>, phi = a."""

    def __init__(self, a: Tensor):
        super().__init__()
        self.a = nn.Parameter(a.clone())

    def forward(self, losses: Tensor) -> Tensor:
        return self.a @ losses


@dataclass(frozen=True)
class Fork:
    """A w of an engine, and the batches from there on.

    Args:
        number: of the step that comes next.
        ahead: micro-batches of the steps to come.
        held_out: batches that F is the mean over.
    """

    engine: Engine
    number: int
    ahead: Sequence[Any]
    held_out: Sequence[Any]

    @property
    def names(self) -> list[str]:
        return self.engine.config.losses.set

    @property
    def primary(self) -> int:
        return self.names.index(self.engine.config.losses.primary)

    @property
    def micro(self) -> int:
        return self.engine.config.engine.gradient_accumulation

    @property
    def bases(self) -> dict[str, Tensor]:
        """Slopes (T,) that a loss is added to, and those that it is taken out of."""
        alone = torch.zeros(len(self.names), device=self.engine.device)
        alone[self.primary] = 1
        return {"beside": alone, "in_full": torch.ones_like(alone)}

    def step(self, solver: str = "identity") -> EngineStep:
        aid = replace(self.engine.config.aid, solver=solver)
        return EngineStep(self.engine, self.number, list(self.ahead[: self.micro]), list(self.held_out), self.names[self.primary], aid)


def one_step(fork: Fork, solver: str, a: Tensor) -> list[float]:
    """Alignment of each loss (T,) along the v of a solver, at slopes a."""
    before, step = fork.engine.snapshot(), fork.step(solver)
    found = hypergradient(step.problem(), Slopes(a), SOLVERS[solver].of(step.aid))
    fork.engine.restore(before)  # generators and buffers, which the step's own forward moves
    gains = -found.implicit[0]
    return (gains / gains[fork.primary].abs()).tolist()


def course(fork: Fork, a: Tensor, horizons: Sequence[int]) -> list[float]:
    """F after each of `horizons` steps (rising) with slopes a; then all is as it was."""
    engine, step, found = fork.engine, fork.step(), []
    before = engine.snapshot()
    for count in range(max(horizons)):
        for batch in fork.ahead[count * fork.micro : (count + 1) * fork.micro]:
            engine.backward(a @ engine.losses(batch))
            engine.step(fork.number + count)
        if count + 1 in horizons:
            found.append(step.held_out_loss(fork.held_out))
    engine.restore(before)
    return found


def look_ahead(fork: Fork, base: str, horizons: Sequence[int]) -> dict[str, list[float]]:
    """Auxiliary loss -> its gain after each of `horizons` steps."""
    a, sign = fork.bases[base], 1 if base == "beside" else -1
    stays, found = course(fork, a, horizons), {}
    for t, name in enumerate(fork.names):
        if t != fork.primary:
            turned = a.clone()
            turned[t] = 1 - turned[t]
            found[name] = [sign * (without - with_) for without, with_ in zip(stays, course(fork, turned, horizons))]
    return found


def oracle(fork: Fork, a: Tensor, steps: int, segments: int, max_bytes: int) -> list[float]:
    """Gain (T,) of each loss through `steps` steps.

    Raises:
        ValueError: another optimiser than AdamW, ZeRO, half precision, or more than `max_bytes`.
    """
    engine = fork.engine
    if engine.stage > 0 or engine.autocast:
        raise ValueError(f"engine.zero_stage={engine.stage}: the oracle takes whole float32 weights; use 0, and engine.precision=float32")
    name = fork.names[fork.primary]

    def losses(number: int) -> Tensor:
        return torch.stack([engine.module(batch) for batch in fork.ahead[number * fork.micro : (number + 1) * fork.micro]])

    def primary() -> Tensor:
        with in_evaluation(engine.module):
            return torch.stack([engine.module(batch, (name,)).mean() for batch in fork.held_out]).mean()

    found = training_gradient(engine.module, losses, primary, a, rule_of(engine, fork.number), steps, segments, max_bytes)
    return (-found.gradient[0]).tolist()


def rule_of(engine: Engine, number: int) -> AdamRule:
    """The engine's AdamW from step `number` on."""
    settings, total = engine.config.optimizer, engine.config.train.steps
    engine.link_moments()
    for group in engine.adam().param_groups:  # `Engine.step` sets it again
        group["lr"] = settings.learning_rate * group["rate"]
    return AdamRule.of(engine.adam(), engine.w.parameters, lambda step: rate_factor(settings, number + step, total), settings.clip)
