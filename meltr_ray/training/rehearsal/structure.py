"""`structure()` beside `module()`: what is trained as the one is scored, at the end, as the other."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from meltr_ray.config import Config
from meltr_ray.config.user_code import called
from meltr_ray.errors import check
from meltr_ray.training.loss_vector import LossVector
from meltr_ray.training.rehearsal.evaluation import CLOSE, metrics_of, some_of
from meltr_ray.training.splits import examples
from meltr_ray.training.tuning import prepare_for_tuning


def check_structure(config: Config, module: nn.Module, batch: Any, metrics: dict[str, float]) -> None:
    """It has the names, shapes and types of `module`, and with its weights the losses of `batch` and the `metrics` that `module` has."""
    workload = config.workload
    if not workload.defines("structure"):
        return
    found = called(workload, "structure", workload.structure)
    check(isinstance(found, nn.Module), "workload", workload.source, f"structure() gave a {type(found).__name__}; return a torch.nn.Module")
    prepare_for_tuning(found, config)
    state, wanted = state_of(found), state_of(module)
    other = sorted(name for name in state.keys() | wanted.keys() if kind_of(state, name) != kind_of(wanted, name))
    check(
        not other,
        "workload",
        workload.source,
        f"structure() and module() differ in {other[:1] and other[0]}; give both the same names, shapes and types",
    )
    with torch.no_grad():
        for name, there in state.items():
            there.copy_(wanted[name])
    generator = torch.get_rng_state()

    def losses_of(each: nn.Module) -> list[float]:
        torch.set_rng_state(generator)
        return called(workload, "module", lambda: LossVector(each, workload).train()(batch).tolist())

    again = metrics_of(workload, found, some_of(examples(workload, "validation")), torch.device("cpu"))
    pairs = [(name, metrics[name], again[name]) for name in workload.metrics]
    with torch.no_grad():
        pairs += [("its losses", a, b) for a, b in zip(losses_of(module), losses_of(found))]
    for name, a, b in pairs:
        check(math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE * CLOSE), "workload", workload.source,
              f"structure() with the weights of module() gives {b:g} for {name}, where module() gives {a:g}; let both compute the same")  # fmt: skip


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, which a run saves."""
    return {name: x.detach() for name, x in [*module.named_parameters(), *module.named_buffers()]}


def kind_of(state: dict[str, Tensor], name: str) -> tuple[Any, ...] | None:
    return (state[name].shape, state[name].dtype, state[name].is_meta) if name in state else None
