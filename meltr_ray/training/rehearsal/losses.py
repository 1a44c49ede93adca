"""The losses of a module."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from meltr_ray.combining.named import WAYS
from meltr_ray.combining.way import check_positive
from meltr_ray.config import Config
from meltr_ray.config.user_code import called, in_words
from meltr_ray.errors import ConfigError, check
from meltr_ray.hypergrad.graph import graph_of
from meltr_ray.training.batches import Batches
from meltr_ray.training.difference import copied, difference
from meltr_ray.training.loss_vector import LossVector, WithControl
from meltr_ray.training.rehearsal.seeds import seeded_by_the_run
from meltr_ray.workload import Workload

TRIED = 5
"""Batches on which a loss may have no gradient before it counts as one that has none."""
CLOSE = 1e-5
"""Relative difference of two losses that are the same but for the order of their sums."""
AWAY = 0.1
"""Standard deviation by which weights are moved to tell two batches apart."""
SECONDS = 0.5
"""For how long further batches are tried."""


def check_losses(config: Config, model: LossVector, batch: Any) -> list[str]:
    """Names, shapes and values; each depends on w; the same again with the same generators and buffers; one alone as among the others.

    Returns those whose gradient is 0 everywhere.
    """
    workload, names = config.workload, config.losses.set
    count = len(names) if not workload.per_example else config.train.batch_size
    start, before = torch.get_rng_state(), copied(batch)
    buffers = [b.clone() for b in model.buffers()]
    losses = first_losses(config, model, batch)
    where = difference(before, batch)
    check(where is None, "workload", workload.source, f"forward changes its batch, in {where}; change a copy")
    check(len(losses) == count, "losses.set", names, f"gave {len(losses)} numbers for {count} examples; return one for each")
    for index, loss in enumerate(losses):
        name = names[0] if workload.per_example else names[index]
        check(bool(loss.isfinite()), "losses.set", name, f"is {loss.item()} on the first batch; mend it, or leave it out")
    if WAYS[config.combiner.name].positive:
        check_positive(losses, names)
    torch.set_rng_state(start)
    for buffer, here in zip(model.buffers(), buffers):  # a pass may move them, as of spectral normalisation: meta steps put them back
        buffer.data.copy_(here)
    check(
        torch.equal(losses, model(batch)),
        "workload",
        workload.source,
        "two passes over one batch with the same generators and buffers differ; draw dropout and masks from torch's own generator, and keep what a pass moves in a buffer",
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
    check_registered(workload, model, losses)
    torch.set_rng_state(start)
    called(workload, "module", lambda: model(batch, (workload.primary,)))
    return flat


def first_losses(config: Config, model: LossVector, batch: Any) -> Tensor:
    """Those of a first pass. What it raises is said of forward, of a loss that it doesn't know, or of the control's batch."""
    workload = config.workload
    try:
        return seeded_by_the_run(workload, "forward", lambda: model(batch))
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, KeyError) and cause.args[0] in config.losses.set:
            raise ConfigError(f"losses.set={cause.args[0]}: forward knows no such loss ({in_words(cause)}); compute it there, "
                              "or correct the names in `losses`") from error  # fmt: skip
        if cause is None or not isinstance(batch, WithControl):
            raise
        try:
            model.named(batch[0], (workload.primary,))
        except Exception:
            raise error from None
        raise ConfigError(
            f"workload={workload.source}: control gave a batch that forward fails on ({in_words(cause)}); give it the form of the other"
        ) from error


def check_registered(workload: Workload, model: LossVector, losses: Tensor) -> None:
    """They depend on no parameter that the module doesn't have: it would stay as it is."""
    known = {id(p) for p in model.parameters()}
    loose = [leaf for leaf in graph_of([losses]).leaves if isinstance(leaf, nn.Parameter) and id(leaf) not in known]
    check(not loose, "workload", workload.source,
          f"a loss depends on a parameter of shape {tuple(loose[0].shape) if loose else ()} that the module doesn't have, so it would never train; make what holds it "
          "an attribute of the module, lists of layers by nn.ModuleList, or freeze it")  # fmt: skip


def check_more_batches(config: Config, model: LossVector) -> None:
    """Some batches more: losses are finite on each, and the control's batch has another primary loss than the one it is made of."""
    batches, workload, started = (
        Batches(config.workload, "train", config.train.batch_size, config.seed),
        config.workload,
        time.perf_counter(),
    )
    tried, told_apart = min(TRIED, batches.per_epoch), not batches.with_control
    for number in range(1 if told_apart else 0, tried):  # the losses of the first are known
        if told_apart and time.perf_counter() - started > SECONDS:
            break
        batch = batches[number]
        losses = called(workload, "forward", lambda: model(batch))
        for name, loss in zip(config.losses.set * (len(losses) if workload.per_example else 1), losses):
            check(
                bool(loss.isfinite()),
                "losses.set",
                name,
                f"is {loss.item()} on batch {number + 1} of the first epoch; mend it, or leave it out",
            )
        told_apart = told_apart or differ(workload, model, batch)
    check(
        told_apart,
        "workload",
        workload.source,
        f"control's batch has the same {workload.primary} as the batch that it is made of; permute what that loss reads",
    )


def differ(workload: Workload, model: LossVector, batch: WithControl) -> bool:
    """Whether the primary loss of the control's batch is another one, without dropout; at weights a little away, where it isn't at these: a model
    that starts with the same prediction for all examples can't tell targets apart.
    """
    generator, parameters = torch.Generator().manual_seed(0), list(model.parameters())
    with torch._C.DisableTorchFunction():  # whoever watches the model's passes (owners.py) needn't see this
        held = [p.data for p in parameters]
    try:
        model.eval()
        for step in (0.0, AWAY):
            if step:
                with torch._C.DisableTorchFunction():
                    for p, here in zip(parameters, held):
                        p.data = here + step * torch.randn(here.shape, generator=generator).to(here)
            one, other = (model.named(each, (workload.primary,))[workload.primary] for each in batch)
            if not torch.allclose(one, other, rtol=CLOSE):
                return True
    except Exception:  # a module that has losses in training alone
        return True
    finally:
        with torch._C.DisableTorchFunction():
            for p, here in zip(parameters, held):
                p.data = here
        model.train()
    return False


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
