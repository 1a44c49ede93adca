"""The combination that lowers the primary loss of held-out batches most, to first order, in the optimiser's metric.

The step of weights w >= 0 moves the model by D J' w, D = 1 / (sqrt(second moments) + epsilon), and lowers the primary loss of the meta batch by
c' w, c = J D b. Among steps of one length, w' C w with C = J D J', the best is max c' w. c and C are noisy, so both are exponential means.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from meltr_ray.combining.way import Way
from meltr_ray.hypergrad.combined import InvalidLosses
from meltr_ray.workload import Workload

DECAY = 0.9
"""Of the exponential means."""
LEAST_GAIN = 1e-8
"""Of a combination, where that of the best single loss is 1: below, it is rounding."""
RIDGE = 1e-6
"""Added to the diagonal of C, whose entries are cosines there."""


class Aligned(Way):
    """Slopes of the closed form, every `every` steps; the step is as long as the primary's own would be.

    Args:
        count: T.
        primary: number of the primary loss.
        every: steps between two looks at the meta batch.
        floor: least share of the primary among the normalised gradients.
    """

    learns: ClassVar[bool] = True
    strength: ClassVar[float] = 0.25
    strongest: ClassVar[float] = 1.0
    every: ClassVar[int] = 3
    needs = ("quadprog", "qpsolvers")

    @classmethod
    def of(cls, config: Any, workload: Workload) -> Aligned:
        names = config.losses.set
        return cls(len(names), names.index(config.losses.primary), config.combiner.every, config.combiner.strength)

    def __init__(self, count: int, primary: int, every: int, floor: float):
        self.primary, self.period, self.floor = primary, every, floor
        self.c, self.C = torch.zeros(count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.float64)
        self.a = torch.ones(count)

    def to(self, device: torch.device) -> Aligned:
        self.a = self.a.to(device)
        return self

    def is_due(self, number: int) -> bool:
        return number % self.period == 0

    def before(self, step: Any) -> dict[str, Any]:
        if not self.is_due(step.number):
            return {}
        before = step.problem().passes()
        rows, b, scale = step.gradients(), step.problem().outer_gradient(), step.adam_scale()
        moved = [row if scale is None else row.divided_by(scale) for row in rows]
        c, C = torch.stack([each.dots([b])[0] for each in moved]), torch.stack([each.dots(rows) for each in moved])
        if not (c.isfinite().all() and C.isfinite().all()):
            raise InvalidLosses("a loss or its gradient is not finite")
        self.num_steps += 1
        self.c, self.C = (DECAY * mean + (1 - DECAY) * now for mean, now in ((self.c, c), (self.C, C)))
        known = 1 - DECAY**self.num_steps
        self.a = closed_form(self.c / known, self.C / known, self.primary, self.floor).to(self.a)
        passes = step.problem().passes() - before
        return {"meta_forward_passes": passes["forward"], "meta_backward_passes": passes["backward"]}

    def slopes(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        a = self.a.to(losses.dtype)
        return a @ losses, a

    def state(self) -> dict[str, Tensor]:
        return {"a": self.a, "c": self.c, "C": self.C, "number": torch.tensor(self.num_steps)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.a, self.c, self.C, self.num_steps = state["a"].to(self.a), state["c"], state["C"], int(state["number"])


def closed_form(c: Tensor, C: Tensor, primary: int, floor: float) -> Tensor:
    """w (T,): max c' w subject to w' C w = C of the primary, w >= 0 and a floor for the primary; it alone where no loss helps.

    With u = w sqrt(diag C), gradients have length one: the program is min u' R u / 2 - r' u (which has the same direction), R the cosines,
    and u of the primary is at least `floor` of the sum of u. A loss without a gradient has w = 0.
    """
    from qpsolvers import solve_qp

    length = C.diagonal().sqrt()
    alive = torch.nonzero(length > 0).flatten()
    w = torch.zeros(len(c), dtype=torch.float64)
    if length[primary] == 0:
        return torch.ones(len(c), dtype=torch.float64)
    at = int(torch.nonzero(alive == primary))
    cosines = (C / torch.outer(length, length).clamp(min=torch.finfo(C.dtype).tiny))[alive][:, alive].numpy()
    gain, count = (c / length.clamp(min=torch.finfo(C.dtype).tiny))[alive].numpy(), len(alive)
    gain = gain / max(np.abs(gain).max(), np.finfo(float).tiny)
    share = floor * np.ones(count) - np.eye(count)[at]  # floor * sum u <= u of the primary
    u = solve_qp((cosines + cosines.T) / 2 + RIDGE * np.eye(count), -gain, np.vstack([-np.eye(count), share]), np.zeros(count + 1), solver="quadprog")
    if u is None or gain @ u < LEAST_GAIN:
        u = np.eye(count)[at]
    w[alive] = torch.from_numpy(np.maximum(u, 0)) / length[alive]
    return w * (C[primary, primary] / (w @ C @ w)).sqrt()
