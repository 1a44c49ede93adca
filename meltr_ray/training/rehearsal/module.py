"""The module of a workload: its weights, made anew at each call, and its structure."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from meltr_ray.config import Config
from meltr_ray.config.user_code import called
from meltr_ray.errors import ConfigError, check
from meltr_ray.training.rehearsal.seeds import SEED
from meltr_ray.workload import Workload


def check_module(workload: Workload, module: nn.Module) -> None:
    """Its weights can be trained, and its forward takes what it is called with."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    check(
        bool(trained),
        "workload",
        workload.source,
        "none of the module's parameters requires a gradient; leave those that are to be trained unfrozen",
    )
    for name, p in trained:
        check(not isinstance(p, UninitializedParameter), "workload", workload.source,
              f"{name} has no shape before a first forward; take a layer that is given its input's size")  # fmt: skip
        check(not p.is_meta, "workload", workload.source, f"{name} is on the meta device; give it a value")
        check(bool(p.isfinite().all()), "workload", workload.source, f"{name} has a number that is not finite; give it others")
        check(
            p.dtype == torch.float32,
            "workload",
            workload.source,
            f"{name} is {str(p.dtype).removeprefix('torch.')}; make it float32, engine.precision sees to the rest",
        )
    check_within(workload, module)
    signature = inspect.signature(module.forward)
    try:
        signature.bind(None, ())
    except TypeError:
        raise ConfigError(f"workload={workload.source}: {type(module).__name__}.forward takes {signature}; "
                          "write forward(self, batch, names=None)") from None  # fmt: skip


def check_within(workload: Workload, module: nn.Module) -> None:
    """`within` bounds weights that are there, by a least and a greatest value."""
    within, weights = called(workload, "within", lambda: workload.within), dict(module.named_parameters())
    check(isinstance(within, Mapping), "workload", workload.source, f"within is a {type(within).__name__}; give name -> (least, greatest)")
    for name, pair in within.items():
        check(name in weights, "workload", workload.source, f"within names {name}, which is no weight of the module; correct it")
        good = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(end, (int, float)) for end in pair)
        check(good and pair[0] <= pair[1], "workload", workload.source, f"within of {name} is {pair}; give (least, greatest)")


def check_made_anew(config: Config, module: nn.Module) -> None:
    """module() makes another object at each call, and its weights hang on torch's generator alone."""
    workload = config.workload
    torch.manual_seed(SEED)
    again = called(workload, "module", workload.module)
    check(
        again is not module,
        "workload",
        workload.source,
        "module() gave one object twice; make a new one at each call, or runs would share weights",
    )
    for (name, a), b in zip(module.named_parameters(), again.parameters()):
        check(
            a.shape == b.shape and (a.is_meta or torch.equal(a, b)),
            "workload",
            workload.source,
            f"two calls of module() with the same seed give other weights in {name}; draw them from torch's own generator",
        )


def check_unchanged(workload: Workload, module: nn.Module, before: dict[str, tuple[bool, Tensor]]) -> None:
    """Its weights are those of `before`, by name (whether it trains, value)."""
    weights = dict(module.named_parameters())
    left = next((name for name, p in weights.items() if p.grad is not None), None)
    check(left is None, "workload", workload.source,
          f"a forward or an evaluation leaves a gradient on {left}; call backward nowhere, training sees to it")  # fmt: skip
    other = sorted(name for name in weights.keys() | before.keys()
                   if name not in weights or name not in before or weights[name].requires_grad != before[name][0]
                   or not torch.equal(weights[name], before[name][1]))  # fmt: skip
    check(
        not other,
        "workload",
        workload.source,
        f"an evaluation or a forward changes the module's weights ({other[:1] and other[0]}) or which of them train; leave them as they are",
    )
