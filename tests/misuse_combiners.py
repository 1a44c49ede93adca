"""Combiners that go wrong in silence elsewhere: rows as in misuse.py."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from meltr_ray import MELTR
from meltr_ray.hypergrad import Identity
from tests.misuse import CG, Setting, Use, changed


class Once(torch.autograd.Function):
    """exp(w) l, whose backward has no derivative."""

    @staticmethod
    def forward(ctx, w: Tensor, l: Tensor) -> Tensor:
        ctx.save_for_backward(w, l)
        return (w.exp() * l).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:
        w, l = ctx.saved_tensors
        return g * w.exp() * l, g * w.exp()


class Hidden(Once):
    """The same by numbers that autograd doesn't see."""

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            w, l = ctx.saved_tensors
            return g.detach() * w.exp() * l, g.detach() * w.exp()


class Own(nn.Module):
    """A combiner by a function of (itself, losses)."""

    def __init__(self, function: Callable[[Any, Tensor], Any], dtype: torch.dtype):
        super().__init__()
        self.w, self.function = nn.Parameter(torch.tensor([0.3, -0.2], dtype=dtype)), function
        self.register_buffer("mean", torch.ones(2, dtype=dtype))

    def forward(self, l: Tensor) -> Any:
        return self.function(self, l)


def combined(function: Callable[[Any, Tensor], Any]) -> Callable[[torch.dtype], Setting]:
    def change(setting: Setting) -> None:
        setting.combiner = Own(function, setting.module.head.weight.dtype)

    return changed(change)


def over_its_mean(self: Any, l: Tensor) -> Tensor:
    self.mean = 0.5 * self.mean + 0.5 * l.detach()
    return (self.w.exp() * (l / self.mean).square()).sum()


PLAIN = combined(lambda self, l: (self.w.exp() * l).sum())
COMBINERS: list[tuple[str, Callable[[Any, Tensor], Any], str]] = [
    ("once-differentiable", lambda self, l: Once.apply(self.w, l), "refused"),
    ("an unmarked backward", lambda self, l: Hidden.apply(self.w, l), "refused"),
    ("weights as numbers", lambda self, l: sum(float(w.detach()) * x for w, x in zip(self.w, l)), "refused"),
    ("detached weights", lambda self, l: (self.w.detach().exp() * l).sum(), "refused"),
    ("randomness of numpy", lambda self, l: (self.w.exp() * l).sum() * np.random.default_rng().uniform(0.5, 1.5), "refused"),
    ("losses changed in place", lambda self, l: l.mul_(self.w.exp()).sum(), "refused"),
    ("a clone changed in place", lambda self, l: l.clone().mul_(self.w.exp()).sum(), "right"),
    ("losses detached in part", lambda self, l: ((self.w * l.detach()).exp() * l).sum(), "right"),
    ("straight-through weights", lambda self, l: (((self.w > 0) + self.w - self.w.detach()) * l).sum(), "right"),
    ("straight-through, of detached losses", lambda self, l: (lambda s: ((s > 0.4) + s - s.detach()) @ l)((self.w * l.detach()).sigmoid()), "right"),
    ("a buffer that moves", over_its_mean, "right"),
]  # fmt: skip


def over_sizes(*sizes: float, inputs: str = "raw") -> Callable[[torch.dtype], Setting]:
    """Published MELTR over losses of these sizes."""

    def change(setting: Setting) -> None:
        torch.manual_seed(4)
        own, dtype = setting.losses, setting.module.head.weight.dtype
        setting.combiner = MELTR(len(sizes), 16, 8, 16, near_sum=False, inputs=inputs).to(dtype)
        setting.losses = lambda: own() * torch.tensor(sizes, dtype=dtype)

    return changed(change)


COMBINER_USES = [
    *(Use(f"a combiner with {name}, {kind}", combined(function), solver, PLAIN if name.startswith("a clone") else None, outcome=outcome)
      for name, function, outcome in COMBINERS for kind, solver in (("identity", Identity()), ("CG", CG))),
    *(Use(f"MELTR over losses of {sizes}, {inputs}", over_sizes(*sizes, inputs=inputs), outcome=outcome)
      for sizes, inputs, outcome in (((1.0, 1e4), "raw", "right"), ((1e9, 1.0), "raw", "refused"), ((1.0, 1e12), "raw", "refused"),
                                     ((1e12, 1e12), "raw", "right"), ((1e9, 1.0), "log", "right"), ((1e-6, 1e6), "log", "right"))),
]  # fmt: skip
