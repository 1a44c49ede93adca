"""The module that is trained: a model of transformers that answers with its losses by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from meltr_ray.huggingface.workload import HuggingFace

T = TypeVar("T")


class Held(nn.Module):
    """Owns weights besides their own modules while a function runs: so ZeRO 3 keeps them gathered for the whole forward."""

    def __init__(self, weights: list[nn.Parameter]):
        super().__init__()
        for number, weight in enumerate(weights):
            self.register_parameter(str(number), weight)

    def forward(self, function: Callable[[], T]) -> T:
        return function()


class ModelLosses(nn.Module):
    """forward(batch, names=None) -> {name: scalar}, by the calls of the model that the names need.

    Args:
        model: of transformers. Its weights are `model.<their names>`; there are no others.
        workload: how a batch becomes calls, and outputs become losses.
    """

    def __init__(self, model: nn.Module, workload: HuggingFace):
        super().__init__()
        self.model = model  # before `held`: a weight goes by the first of its names
        self.held = Held(shared_weights(model, workload.special.held))
        self.workload = workload
        parameters = inspect.signature(model.forward).parameters
        self.always = {name: True for name in ("return_loss", "return_dict") if name in parameters}

    def forward(self, batch: Any, names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        return self.held(lambda: self._losses(batch, names))

    def call(self, batch: Any, call: str) -> tuple[Any, dict[str, Any]]:
        """(output, arguments) of one call of the model."""
        # copies, for models write into their labels (FLAVA)
        arguments = {name: value.clone() if isinstance(value, Tensor) else value
                     for name, value in self.workload.arguments(batch, call).items()}  # fmt: skip
        with self.workload.special.inside(self.model):
            return self.model(**self.always | arguments), arguments

    def outputs(self, **arguments: Any) -> Any:
        """What the model gives for these arguments, for `predict` and `evaluate`. Under ZeRO 3 it has the weights of layers that other modules use,
        which `module.model(...)` lacks.
        """
        with self.workload.special.inside(self.model):
            return self.held(lambda: self.model(**arguments))

    def _losses(self, batch: Any, names: tuple[str, ...] | None) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for call, gives in self.workload.giving().items():
            wanted = [name for name in gives if names is None or name in names]
            if wanted:
                losses = self.workload.losses_of(*self.call(batch, call), call)
                # all of them where one lacks, so that the message can say what there is
                found |= {name: losses[name] for name in wanted} if set(wanted) <= losses.keys() else losses
        return found


def shared_weights(model: nn.Module, also: tuple[str, ...]) -> list[nn.Parameter]:
    """Weights that a module owns beside submodules, such as a logit scale that another module reads, and those named `also`."""
    own = [p for module in model.modules() if next(module.children(), None) is not None for p in module.parameters(recurse=False)]
    named = [model.get_parameter(name) for name in also]
    return list({id(p): p for p in [*own, *named]}.values())
