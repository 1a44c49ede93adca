"""What the results table keeps of a step: losses, slopes, what a way said of the losses."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from meltr_ray.combining.way import EFFECTS
from meltr_ray.config import Config
from meltr_ray.results.columns import EFFECT, EFFECT_SQUARE


class Diverged(RuntimeError):
    """A loss is not finite: one line that names the loss, the step and the mend."""


def statistics(config: Config, losses: Tensor, a: Tensor, value: Tensor, step: int, wanted: Sequence[int] | None = None) -> dict[str, Any]:
    """What the results table keeps of one inner step. Losses by example: their mean, and no slopes. Losses that weren't `wanted` have no value.

    Raises:
        Diverged: a loss or the training loss is not finite.
    """
    names = config.losses.set
    negative, count = (a < 0).sum().reshape(1).float(), len(a)
    if config.workload.per_example:
        losses, a = losses.detach().mean().reshape(1), a[:0]
    numbers = torch.cat([losses.detach().float(), a.float(), value.reshape(1).float(), negative]).tolist()  # one wait for the device
    loss_values, slope_values, train_loss = numbers[: len(names)], numbers[len(names) : -2], numbers[-2]
    for name, number in [*zip(names, loss_values), ("g_phi(l)", train_loss)]:
        if number - number != 0:  # neither NaN nor infinity
            raise Diverged(
                f"loss {name} is {number} at step {step}; lower optimizer.learning_rate or aid.learning_rate, or mend the loss if some batches alone make it so"
            )
    return (
        {"train_loss": train_loss, "negative_slopes": numbers[-1] / count}
        | {f"loss.{name}": number for t, (name, number) in enumerate(zip(names, loss_values)) if wanted is None or t in wanted}
        | {f"slope.{name}": number for name, number in zip(names, slope_values)}
    )


def by_name(learned: dict[str, Any], config: Config) -> dict[str, Any]:
    """What a way said, its effects by the names of losses, and their squares, of which their noise is told."""
    effects = learned.pop(EFFECTS, None)
    if effects is None or config.workload.per_example:
        return learned
    pairs = list(zip(config.losses.set, effects.tolist()))
    return learned | {f"{EFFECT}{name}": value for name, value in pairs} | {f"{EFFECT_SQUARE}{name}": value**2 for name, value in pairs}
