"""One step of AdamW as a function of w, its moments and the gradient, that autograd can differentiate.

Legend: g gradient, m and v its moments, w weights. Source: Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1; Loshchilov and Hutter 2019
(1711.05101), algorithm 2, with the schedule on the decay too, as `torch.optim.AdamW` has it:

    m' = b1 m + (1 - b1) g,   v' = b2 v + (1 - b2) g^2,   w' = (1 - r decay) w - r m' / (1 - b1^n) / (sqrt(v' / (1 - b2^n)) + epsilon)

Where v' = 0 the root has no derivative, but the step has one: v' = 0 says that every gradient so far was 0, so m' = 0, and a small g moves
w by r m' / epsilon but for terms of g^2. So d sqrt(v') = 0 there is no convention but exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional, Sequence

import torch
from torch import Tensor

from meltr_ray.errors import check
from meltr_ray.hypergrad.arguments import check_count, check_number


@dataclass(frozen=True)
class AdamState:
    """What steps change. A piece is a parameter: w, m and v have one each, and `counts` the steps that it has had, n."""

    w: Sequence[Tensor]
    m: Sequence[Tensor]
    v: Sequence[Tensor]
    counts: Sequence[int]

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.w, *self.m, *self.v]

    def leaves(self) -> AdamState:
        """The same numbers, where a graph starts."""
        w, m, v = ([x.detach().requires_grad_() for x in xs] for xs in (self.w, self.m, self.v))
        return AdamState(w, m, v, self.counts)

    @property
    def num_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self.tensors)


@dataclass(frozen=True)
class AdamRule:
    """AdamW over whole parameters, from the moments that it has.

    Args:
        m, v, counts: a piece a parameter.
        rates: learning rate of each parameter, times `schedule`.
        decay: decoupled weight decay of each.
        schedule: step of those to come, counted from 0 -> factor of the rates.
        clip: largest norm of the whole gradient, as `torch.nn.utils.clip_grad_norm_` has it; 0: none.
        corrected: whether the moments' bias is corrected; False: BertAdam.

    Raises:
        ValueError: a number out of range (epsilon has to be positive, or a weight without gradient would move by 0 / 0), or lists that differ in length.
    """

    m: Sequence[Tensor]
    v: Sequence[Tensor]
    counts: Sequence[int]
    rates: Sequence[float]
    decay: Sequence[float]
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    schedule: Callable[[int], float] = lambda step: 1.0
    clip: float = 0.0
    corrected: bool = True

    def __post_init__(self) -> None:
        check_number("epsilon", self.epsilon, above=True)  # a weight without gradient would move by 0 / 0
        check_number("clip", self.clip)
        for name, beta in zip(("betas[0]", "betas[1]"), self.betas):
            check_number(name, beta, high=1 - 1e-9)
        count = len(self.m)
        for name in ("v", "counts", "rates", "decay"):
            check(
                len(getattr(self, name)) == count,
                name,
                f"{len(getattr(self, name))} of them",
                f"m has {count}; give one for each parameter",
            )
        for m, v in zip(self.m, self.v):
            check(m.shape == v.shape, "v", tuple(v.shape), f"m has {tuple(m.shape)}; give both the parameter's shape")
        for n, rate, decay in zip(self.counts, self.rates, self.decay):
            check_count("counts", n, 0)
            check_number("rates", rate)
            check_number("decay", decay)
        check(callable(self.schedule), "schedule", self.schedule, "is no function; give one of the step")

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], schedule: Callable[[int], float] = lambda step: 1.0,
           clip: float = 0.0) -> AdamRule:  # fmt: skip
        """What torch's AdamW would do next with whole `parameters`, at the learning rates that its groups have now times `schedule`.

        Raises:
            ValueError: another optimiser, an option of AdamW that the rule doesn't have, or a parameter that it doesn't train.
        """
        if not isinstance(optimizer, torch.optim.AdamW):
            raise ValueError(
                f"optimizer={type(optimizer).__name__}: the rule of torch.optim.AdamW is known; take that, or make an AdamRule by hand"
            )
        group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
        if any(p not in group_of for p in parameters):
            raise ValueError("optimizer=AdamW: lacks a parameter that requires a gradient; give it all of them, or freeze that one")
        groups = [group_of[p] for p in parameters]
        for name in ("amsgrad", "maximize"):
            if any(group[name] for group in groups):
                raise ValueError(f"optimizer={name}: the rule doesn't have it; leave it out")
        if len({(tuple(group["betas"]), group["eps"]) for group in groups}) > 1:
            raise ValueError("optimizer=AdamW: its groups differ in betas or eps; give all the same")
        states = [optimizer.state.get(p, {}) for p in parameters]
        m, v = ([state[key].detach().clone() if key in state else torch.zeros_like(p) for p, state in zip(parameters, states)]
                for key in ("exp_avg", "exp_avg_sq"))  # fmt: skip
        return cls(m, v, [int(state.get("step", 0)) for state in states], [float(group["lr"]) for group in groups],
                   [group["weight_decay"] for group in groups], tuple(groups[0]["betas"]), groups[0]["eps"], schedule, clip)  # fmt: skip

    def start(self, w: Sequence[Tensor]) -> AdamState:
        """The state at w.

        Raises:
            ValueError: w is of other shapes than the moments.
        """
        shapes = [tuple(x.shape) for x in w], [tuple(x.shape) for x in self.m]
        check(
            shapes[0] == shapes[1],
            "m",
            shapes[1],
            f"the weights have {shapes[0]}; give moments of the module's own parameters, in their order",
        )
        return AdamState([x.detach().clone() for x in w], self.m, self.v, self.counts)

    def step(self, state: AdamState, gradients: Sequence[Optional[Tensor]], number: int) -> AdamState:
        """The state after step `number`. A parameter without a gradient (None) keeps its value, its moments and its count, as in torch."""
        factor, moved = self.schedule(number), []
        pieces = zip(state.w, state.m, state.v, state.counts, self.clipped(gradients), self.rates, self.decay)
        for old_w, old_m, old_v, count, g, rate, decay in pieces:
            kept = (old_w, old_m, old_v, count)
            moved.append(kept if g is None else self._moved(old_w, old_m, old_v, count + 1, g, rate * factor, decay))
        w, m, v, counts = map(list, zip(*moved))
        return AdamState(w, m, v, counts)

    def clipped(self, gradients: Sequence[Optional[Tensor]]) -> Sequence[Optional[Tensor]]:
        """All scaled alike, down to the norm `clip`."""
        there = [g for g in gradients if g is not None]
        if not self.clip or not there:
            return gradients
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in there]))
        scale = (self.clip / (norm + 1e-6)).clamp(max=1.0)
        return [None if g is None else g * scale for g in gradients]

    def _moved(self, w: Tensor, m: Tensor, v: Tensor, n: int, g: Tensor, rate: float, decay: float) -> tuple[Tensor, Tensor, Tensor, int]:
        b1, b2 = self.betas
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        first, second = (1 - b1**n, 1 - b2**n) if self.corrected else (1.0, 1.0)
        scale = _root(v) / second**0.5 + self.epsilon
        return w * (1 - rate * decay) - rate / first * m / scale, m, v, n


def _root(v: Tensor) -> Tensor:
    """sqrt(v), its derivative 0 where v is."""
    there = v > 0
    return torch.where(there, torch.where(there, v, 1.0).sqrt(), 0.0)
