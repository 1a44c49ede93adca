"""What combines the losses: a combiner of one's own, and a meta step with products that not every model has."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from meltr_ray.combining.meta import Meta
from meltr_ray.combining.named import WAYS
from meltr_ray.config import Config
from meltr_ray.config.user_code import called
from meltr_ray.errors import check
from meltr_ray.hypergrad import ModuleProblem
from meltr_ray.hypergrad.named import SOLVERS
from meltr_ray.hypergrad.structure import InvalidLosses
from meltr_ray.training.loss_vector import LossVector
from meltr_ray.training.refused import refused_in_settings


def check_own_combiner(config: Config, model: nn.Module, batch: Any) -> None:
    """The combiner of a workload gives a scalar that depends on the losses."""
    way = called(config.workload, "combiner", lambda: WAYS["own"].of(config, config.workload))
    losses = model(batch).detach().requires_grad_()
    value = called(config.workload, "combiner", lambda: way.combiner(losses, *way.beside(batch)))
    check(
        isinstance(value, Tensor) and value.dim() == 0,
        "combiner.name",
        "own",
        f"gave {f'the shape {tuple(value.shape)}' if isinstance(value, Tensor) else f'a {type(value).__name__}'}; return a scalar",
    )
    check(reaches(value, losses), "combiner.name", "own", "gave what doesn't depend on the losses; combine them, without detach")
    losses = losses.detach()
    _, a = called(config.workload, "combiner", lambda: way.slopes(losses, batch))
    check(
        called(config.workload, "combiner", lambda: depends_on_phi(way.combiner, losses, way.beside(batch))),
        "combiner.name",
        "own",
        "has slopes that don't depend on its parameters, so it can't learn; let them weigh the losses",
    )
    check(
        bool(a.isfinite().all()) and bool(a.any()),
        "combiner.name",
        "own",
        "has slopes that are not finite or all zero, so nothing would train; start it near the plain sum",
    )


def reaches(value: Tensor, losses: Tensor) -> bool:
    """Whether a value depends on the losses."""
    return value.requires_grad and torch.autograd.grad(value, losses, retain_graph=True, allow_unused=True)[0] is not None


def depends_on_phi(combiner: nn.Module, losses: Tensor, beside: list[Any]) -> bool:
    """Whether a parameter of the combiner enters its slopes."""
    l = losses.detach().requires_grad_()
    (a,) = torch.autograd.grad(combiner(l, *beside), l, create_graph=True)
    phi = [p for p in combiner.parameters() if p.requires_grad]
    return a.requires_grad and any(g is not None for g in torch.autograd.grad(a.sum(), phi, allow_unused=True))


def may_be_refused(config: Config) -> bool:
    """Whether its meta steps take products that not every model has: one asked for by name, or with H."""
    learns = issubclass(WAYS[config.combiner.name], Meta)
    return learns and (config.aid.product != "auto" or config.aid.hessian_product != "auto" or SOLVERS[config.aid.solver].counts_decay)


def check_meta_step(config: Config, model: LossVector, batch: Any) -> None:
    """A product that is wrong for this model is refused here, not after the first steps of every trial."""
    short = copy.copy(config)
    short.aid = aid = dataclasses.replace(
        config.aid, iterations=1, rank=1, adam="ignore", warm_start=False, check_every=0
    )  # one product tells
    way = WAYS[config.combiner.name].of(short, config.workload)
    primary = (config.losses.primary,)
    problem = ModuleProblem(model, lambda: model(batch), lambda: model(batch, primary).mean(), product=aid.product,
                            hessian_product=aid.hessian_product, radius=aid.radius, accuracy=aid.accuracy,
                            differences=config.engine.zero_stage == 3)  # fmt: skip

    def step() -> None:
        with refused_in_settings(config), suppress(InvalidLosses):  # which end a run by the name of the loss
            way.step(problem, [batch])

    called(config.workload, "module", step)
