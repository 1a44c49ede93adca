"""The combination that lowers the primary loss of held-out batches most, to first order, in the optimiser's metric.

The step of weights w >= 0 moves the model by D J' w, D = 1 / (sqrt(second moments) + epsilon), and lowers the primary loss of the meta batch by
c' w, c = J D b. Among steps of one length, w' C w with C = J D J', the best is max c' w. c and C are noisy, so both are exponential means.
"""

from __future__ import annotations

from typing import Any, ClassVar, Optional

import numpy as np
import torch
from torch import Tensor

from meltr_ray.combining.looking import Looking
from meltr_ray.combining.random_gramian import DECAY, RandomGramian
from meltr_ray.combining.way import EFFECTS
from meltr_ray.hypergrad.structure import InvalidLosses
from meltr_ray.workload import Workload

LEAST_GAIN = 1e-8
"""Of a combination, where that of the best single loss is 1: below, it is rounding."""
RIDGE = 1e-6
"""Added to the diagonal of C, whose entries are cosines there."""


class Aligned(Looking):
    """Slopes of the closed form; the step is as long as the primary's own would be.

    Args:
        count, every, random: as `Looking` has them.
        primary: number of the primary loss.
        floor: least share of the primary among the normalised gradients.
    """

    learns: ClassVar[bool] = True
    least_draws: ClassVar[int] = 16
    strength: ClassVar[float] = 0.25
    strongest: ClassVar[float] = 1.0
    needs = ("quadprog", "qpsolvers")

    @classmethod
    def of(cls, config: Any, workload: Workload) -> Aligned:
        names, settings = config.losses.set, config.combiner
        return cls(
            len(names), names.index(config.losses.primary), settings.every, settings.strength, RandomGramian.of(config, cls.least_draws)
        )

    def __init__(self, count: int, primary: int, every: int, floor: float, random: Optional[RandomGramian] = None):
        super().__init__(count, every, random)
        self.primary, self.floor = primary, floor
        self.c, self.C = torch.zeros(count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.float64)

    def is_due(self, number: int) -> bool:
        return self.looks(number)

    def looked(self, step: Any) -> Tensor:
        known = 1 - DECAY ** (self.num_steps + 1)
        c, C = self.by_passes(step, self.random) if self.random else self.by_gradients(step)
        if not (c.isfinite().all() and C.isfinite().all()):
            raise InvalidLosses("a loss or its gradient is not finite")
        self.now = c
        self.c = DECAY * self.c + (1 - DECAY) * c
        if not self.random:  # which gives a mean
            self.C = DECAY * self.C + (1 - DECAY) * C
            C = self.C / known
        return closed_form(self.c / known, C, self.primary, self.floor)

    def said(self) -> dict[str, Any]:
        return {EFFECTS: self.now}

    def by_gradients(self, step: Any) -> tuple[Tensor, Tensor]:
        """(c, C) of this step, T backward passes and those of b."""
        rows, b, scale = step.gradients(), step.problem().outer_gradient(), step.adam_scale()
        moved = [row if scale is None else row.divided_by(scale) for row in rows]
        return torch.stack([each.dots([b])[0] for each in moved]), torch.stack([each.dots(rows) for each in moved])

    def by_passes(self, step: Any, gramian: RandomGramian) -> tuple[Tensor, Tensor]:
        """(c, mean C): forward products along D b and along each draw, and the passes of b."""
        problem, scale = step.problem(), step.adam_scale()
        C = gramian(step, scale, lasting=scale is not None)  # before the optimiser's first step the metric is another
        b = problem.outer_gradient()
        along = problem.jvp(b if scale is None else b.divided_by(scale), consume=True).mean(0)
        return step.average([along])[0].double().cpu(), C

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"c": self.c, "C": self.C}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.c, self.C = state["c"], state["C"]


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
    u = solve_qp(
        (cosines + cosines.T) / 2 + RIDGE * np.eye(count), -gain, np.vstack([-np.eye(count), share]), np.zeros(count + 1), solver="quadprog"
    )
    if u is None or gain @ u < LEAST_GAIN:
        u = np.eye(count)[at]
    w[alive] = torch.from_numpy(np.maximum(u, 0)) / length[alive]
    return w * (C[primary, primary] / (w @ C @ w)).sqrt()
