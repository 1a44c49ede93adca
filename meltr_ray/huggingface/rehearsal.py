"""One batch through a model on the driver: which losses it gives, and whether its forward leaves weights and ranks alone."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from meltr_ray.config.user_code import called
from meltr_ray.errors import ConfigError, check
from meltr_ray.huggingface.model import LIKE
from meltr_ray.huggingface.module import ModelLosses
from meltr_ray.training.splits import examples
from meltr_ray.training.tensors import tensors

if TYPE_CHECKING:
    from meltr_ray.huggingface.workload import HuggingFace

EXAMPLES = 4
"""Of the batch; fewer where there are fewer."""
SEED = 20230613
MEND = "change that on the model once it is made, in `special` (docs/huggingface.md)"


@dataclass(frozen=True)
class Found:
    """What a model gives."""

    giving: dict[str, tuple[str, ...]]
    """Call -> names of its losses."""
    dropped: tuple[str, ...]
    """What is no loss to train with, since no gradient reaches it."""
    drawn: tuple[str, ...]
    """Weights that the folder of a pretrained model lacks."""
    unnamed: tuple[str, ...] = ()
    """Arguments of a batch that the model's forward has no name for, and takes all the same."""


def rehearse(workload: HuggingFace) -> Found:
    """One training forward of each call.

    Raises:
        ConfigError: there is no loss, two calls give one of the same name, or a forward writes to weights or asks for ranks.
    """
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(SEED)
        module = called(workload, "module", workload.module).train()
        train = examples(workload, "train")
        check(len(train) > 0, "workload", workload.source, "has no train example; return some from examples('train')")
        some = [train[number] for number in range(min(EXAMPLES, len(train)))]
        batch = called(workload, "batch", lambda: workload.batch(some, np.random.default_rng(0)))
        double = next((name for name, x in tensors(batch) if x.dtype == torch.float64), None)
        check(
            double is None,
            "workload",
            workload.source,
            f"batch gives {double} in float64, where the model's weights are float32; give float32",
        )
        found = {
            call: called(workload, "forward", lambda call=call: one_call(module, workload, batch, call)) for call in workload.call_names()
        }
    giving = {call: tuple(name for name, loss in losses.items() if loss.requires_grad) for call, losses in found.items()}
    dropped = tuple(name for losses in found.values() for name, loss in losses.items() if not loss.requires_grad)
    unnamed = [name for call in found for name in unnamed_arguments(module.model, workload.arguments(batch, call), workload.source)]
    return Found(giving, dropped, tuple(module.drawn), tuple(dict.fromkeys(unnamed)))


def unnamed_arguments(model: nn.Module, arguments: Mapping[str, Any], source: str) -> list[str]:
    """Arguments that go into the `**kwargs` of a model's forward.

    Raises:
        ConfigError: one is nearly the name of another.
    """
    parameters = inspect.signature(model.forward).parameters
    names = [name for name, each in parameters.items() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(names) == len(parameters):
        return []  # the call itself refuses it
    unnamed = [name for name in arguments if name not in names]
    for name in unnamed:
        near = difflib.get_close_matches(name, [each for each in names if each not in arguments], 1, LIKE)
        check(
            not near,
            "workload",
            source,
            f"batch gives {name}, which the forward of {type(model).__name__} has no name for; did you mean {near[:1] and near[0]}",
        )
    return unnamed


def one_call(module: ModelLosses, workload: HuggingFace, batch: Any, call: str) -> dict[str, Tensor]:
    """Its losses, those without a graph, too."""
    with leaves_weights_alone(module.model, workload.source), asks_for_no_ranks(module.model, workload.source):
        outputs, arguments = module.call(batch, call)
    losses = called(workload, "losses_of", lambda: workload.losses_of(outputs, arguments, call))
    for name, loss in losses.items() if isinstance(losses, Mapping) else [("", losses)]:
        check(isinstance(loss, Tensor) and bool(name), "workload", workload.source,
              f"losses_of gave a {type(loss).__name__}{name and f' for {name}'}; return a dictionary, loss name -> scalar tensor")  # fmt: skip
    where = f" in the call {call}" if call else ""
    check(
        bool(losses),
        "workload",
        workload.source,
        f"{type(module.model).__name__} gave no loss{where}, but {', '.join(outputs)}; give it labels in the batch, or write losses_of",
    )
    return losses


@contextmanager
def leaves_weights_alone(model: nn.Module, source: str) -> Iterator[None]:
    """Raises ConfigError where an operator inside writes to the memory of a weight, whether it changes a value or not."""
    names = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            for argument, value in zip(function._schema.arguments, args):
                if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                    name = names.get(value.untyped_storage().data_ptr())
                    if name is not None:
                        raise ConfigError(f"workload={source}: the forward of {type(model).__name__} writes to {name}, so that a meta "
                                          f"step would see moving weights; {MEND}")  # fmt: skip
            return function(*args, **(kwargs or {}))

    with Watch():
        yield


@contextmanager
def asks_for_no_ranks(model: nn.Module, source: str) -> Iterator[None]:
    """Raises ConfigError where code of the model asks inside whether there are other ranks, to reach over them."""
    modules = {type(each).__module__ for each in model.modules() if not type(each).__module__.startswith("torch.")}
    real = torch.distributed.is_initialized
    asked: list[str] = []

    def is_initialized() -> bool:
        caller = sys._getframe(1)
        if caller.f_globals.get("__name__") in modules:
            asked.append(caller.f_code.co_qualname)
        return real()

    torch.distributed.is_initialized = is_initialized
    try:
        yield
    finally:
        torch.distributed.is_initialized = real
    if asked:
        raise ConfigError(f"workload={source}: {asked[0]} asks for other workers, and a loss that reaches over them has no "
                          f"hypergradient on each; {MEND}")  # fmt: skip
