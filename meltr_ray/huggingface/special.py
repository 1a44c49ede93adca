"""What a model's own forward does that a bi-level step can't have, and what takes its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


def as_it_is(model: nn.Module) -> None:
    """No change."""


@dataclass(frozen=True)
class Special:
    """How one class of models differs from "losses are a function of weights, batch and torch's generators"."""

    adapt: Callable[[nn.Module], None] = as_it_is
    """Changes the model once it is made; names and shapes of its weights stay."""
    inside: Callable[[nn.Module], AbstractContextManager] = lambda model: nullcontext()
    """Entered for the time of each forward."""
    within: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Weight of the model -> least and greatest value, held after each optimiser step instead of inside a forward."""
    held: Sequence[str] = ()
    """Weights of layers that other modules use: ZeRO 3 gathers them for the whole forward."""


class ContrastOnTheRank(nn.Module):
    """Logits of the pairs of this rank's batch, as FLAVA's head gives them in a single process."""

    def forward(self, image: Tensor, text: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image, text (B, D) of length 1 -> logits (B, B) of images, of texts, and labels (B,)."""
        logits = logit_scale.exp() * image @ text.T
        return logits, logits.T, torch.arange(len(image), device=image.device)


def _flava(model: nn.Module) -> None:
    model.global_contrastive_head = ContrastOnTheRank()


@contextmanager
def _without_clamp(model: nn.Module) -> Iterator[None]:
    """FLAVA's outermost module asks whether it trains for nothing but to clamp `logit_scale.data`; its parts keep their modes."""
    mode, model.training = model.training, False
    try:
        yield
    finally:
        model.training = mode


SPECIAL: dict[str, Special] = {
    "DetrForObjectDetection": Special(held=("model.query_position_embeddings.weight",)),
    "FlavaForPreTraining": Special(_flava, _without_clamp, {"flava.logit_scale": (0.0, 4.6052)}),
}
"""Class of transformers -> what is special about it."""


def special_of(model: type | nn.Module) -> Special:
    """That of a model's class or of one that it is derived from."""
    cls = model if isinstance(model, type) else type(model)
    return next((SPECIAL[each.__name__] for each in cls.__mro__ if each.__name__ in SPECIAL), Special())
