"""The losses of a module, and what combines them."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from meltr_ray.combining.meta import Meta
from meltr_ray.combining.named import WAYS
from meltr_ray.combining.way import check_positive
from meltr_ray.config import Config
from meltr_ray.config.user_code import called
from meltr_ray.errors import check
from meltr_ray.hypergrad import ModuleProblem
from meltr_ray.hypergrad.named import SOLVERS
from meltr_ray.hypergrad.structure import InvalidLosses
from meltr_ray.training.batches import Batches
from meltr_ray.training.difference import difference
from meltr_ray.training.loss_vector import LossVector, WithControl
from meltr_ray.training.refused import refused_in_settings
from meltr_ray.training.rehearsal.seeds import seeded_by_the_run

TRIED = 5
"""Batches on which a loss may have no gradient before it counts as one that has none."""


def check_losses(config: Config, model: LossVector, batch: Any) -> list[str]:
    """Names, shapes and values; each depends on w; the same again with the same generators; one alone as among the others.

    Returns those whose gradient is 0 everywhere.
    """
    workload, names = config.workload, config.losses.set
    count = len(names) if not workload.per_example else config.train.batch_size
    start, before = torch.get_rng_state(), copy.deepcopy(batch)
    losses = seeded_by_the_run(workload, "forward", lambda: model(batch))
    where = difference(before, batch)
    check(where is None, "workload", workload.source, f"forward changes its batch, in {where}; change a copy")
    check(len(losses) == count, "losses.set", names, f"gave {len(losses)} numbers for {count} examples; return one for each")
    for index, loss in enumerate(losses):
        name = names[0] if workload.per_example else names[index]
        check(bool(loss.isfinite()), "losses.set", name, f"is {loss.item()} on the first batch; mend it, or leave it out")
    if WAYS[config.combiner.name].positive:
        check_positive(losses, names)
    torch.set_rng_state(start)
    check(
        torch.equal(losses, model(batch)),
        "workload",
        workload.source,
        "two passes over one batch with the same generators differ; draw dropout and masks from torch's own generator",
    )
    parameters, flat = [p for p in model.parameters() if p.requires_grad], []
    own = tuple(name for name in names if name in workload.losses and name not in workload.planted())
    for name, loss in model.named(batch[0] if isinstance(batch, WithControl) else batch, own).items():
        check(loss.dtype != torch.float64, "losses.set", name, "is float64; compute it in float32, as the weights are")
        found = torch.autograd.grad(loss.sum(), parameters, retain_graph=True, allow_unused=True) if loss.requires_grad else []
        check(
            any(g is not None for g in found),
            "losses.set",
            name,
            "doesn't depend on the module's weights; compute it with the module, without detach, or name it in `controls`",
        )
        if not any(bool(g.any()) for g in found if g is not None):
            flat.append(name)
    torch.set_rng_state(start)
    called(workload, "module", lambda: model(batch, (workload.primary,)))
    return flat


def check_flat(config: Config, model: LossVector, flat: list[str]) -> None:
    """Losses whose gradient is 0 on the first batch, such as one of masked words where none was masked, have another on one of the next."""
    workload = config.workload
    batches = Batches(workload, "train", config.train.batch_size, config.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for number in range(1, min(TRIED, batches.per_epoch) if flat else 0):
        batch = batches[number]
        for name, loss in model.named(batch[0] if isinstance(batch, WithControl) else batch, tuple(flat)).items():
            found = torch.autograd.grad(loss.sum(), parameters, retain_graph=True, allow_unused=True)
            if any(bool(g.any()) for g in found if g is not None):
                flat = [other for other in flat if other != name]
        if not flat:
            return
    check(not flat, "losses.set", flat[:1] and flat[0], f"has the gradient 0 for every weight on each of the first {min(TRIED, batches.per_epoch)} batches, so it "
          "trains nothing; mend it, or name it in `controls`")  # fmt: skip


def check_own_combiner(config: Config, model: nn.Module, batch: Any) -> None:
    """The combiner of a workload gives a scalar that depends on the losses."""
    way = called(config.workload, "combiner", lambda: WAYS["own"].of(config, config.workload))
    losses = model(batch).detach()
    value = called(config.workload, "combiner", lambda: way.combiner(losses, *way.beside(batch)))
    check(
        isinstance(value, Tensor) and value.dim() == 0,
        "combiner.name",
        "own",
        f"gave {f'the shape {tuple(value.shape)}' if isinstance(value, Tensor) else f'a {type(value).__name__}'}; return a scalar",
    )
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
                            hessian_product=aid.hessian_product, radius=aid.radius, accuracy=aid.accuracy)  # fmt: skip

    def step() -> None:
        with refused_in_settings(config), suppress(InvalidLosses):  # which end a run by the name of the loss
            way.step(problem, [batch])

    called(config.workload, "module", step)
