"""The module of a workload: its weights, made anew at each call, and its structure."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from meltr_ray.config import Config
from meltr_ray.config.user_code import called
from meltr_ray.errors import ConfigError, check
from meltr_ray.training.loss_vector import named_weights
from meltr_ray.training.rehearsal.seeds import SEED
from meltr_ray.training.tuning import prepare_for_tuning
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
        check(not p.is_meta, "workload", workload.source, f"{name} is on the meta device; give it a value")
        check(
            p.dtype == torch.float32,
            "workload",
            workload.source,
            f"{name} is {str(p.dtype).removeprefix('torch.')}; make it float32, engine.precision sees to the rest",
        )
    signature = inspect.signature(module.forward)
    try:
        signature.bind(None, ())
    except TypeError:
        raise ConfigError(f"workload={workload.source}: {type(module).__name__}.forward takes {signature}; "
                          "write forward(self, batch, names=None)") from None  # fmt: skip


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


def check_structure(config: Config, module: nn.Module) -> None:
    """`structure()` has the names and shapes of `module()`, whose weights are loaded into it."""
    workload = config.workload
    if not workload.defines("structure"):
        return
    found = called(workload, "structure", workload.structure)
    check(isinstance(found, nn.Module), "workload", workload.source, f"structure() gave a {type(found).__name__}; return a torch.nn.Module")
    prepare_for_tuning(found, config)
    shapes, wanted = ({name: tuple(p.shape) for name, p in named_weights(each)} for each in (found, module))
    other = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    check(
        not other,
        "workload",
        workload.source,
        f"structure() and module() differ in {other[:1] and other[0]}; give both the same names and shapes",
    )
