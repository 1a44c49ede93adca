"""The losses of a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from meltr_ray.combining.named import WAYS
from meltr_ray.combining.way import check_positive
from meltr_ray.config import Config
from meltr_ray.config.user_code import called
from meltr_ray.errors import check
from meltr_ray.training.batches import Batches
from meltr_ray.training.difference import copied, difference
from meltr_ray.training.loss_vector import LossVector, WithControl
from meltr_ray.training.rehearsal.seeds import seeded_by_the_run

TRIED = 5
"""Batches on which a loss may have no gradient before it counts as one that has none."""


def check_losses(config: Config, model: LossVector, batch: Any) -> list[str]:
    """Names, shapes and values; each depends on w; the same again with the same generators; one alone as among the others.

    Returns those whose gradient is 0 everywhere.
    """
    workload, names = config.workload, config.losses.set
    count = len(names) if not workload.per_example else config.train.batch_size
    start, before = torch.get_rng_state(), copied(batch)
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
    if not flat:
        return
    batches = Batches(config.workload, "train", config.train.batch_size, config.seed)
    parameters, tried = [p for p in model.parameters() if p.requires_grad], min(TRIED, batches.per_epoch)
    for number in range(1, tried):
        batch = batches[number]
        losses = model.named(batch[0] if isinstance(batch, WithControl) else batch, tuple(flat))
        flat = [name for name in flat if not _has_gradient(losses[name], parameters)]
        if not flat:
            return
    where = "the first batch" if tried == 1 else f"each of the first {tried} batches"
    check(not flat, "losses.set", flat[:1] and flat[0], f"has the gradient 0 for every weight on {where}, so it trains nothing; mend it, "
          "or name it in `controls`")  # fmt: skip


def _has_gradient(loss: Tensor, parameters: list[Tensor]) -> bool:
    found = torch.autograd.grad(loss.sum(), parameters, retain_graph=True, allow_unused=True)
    return any(bool(g.any()) for g in found if g is not None)
