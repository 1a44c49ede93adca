"""Every configuration of a command, and one batch through the module of each kind of them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from meltr_ray.config import Config, workload_settings
from meltr_ray.config.user_code import called
from meltr_ray.errors import check
from meltr_ray.storage.saying import say
from meltr_ray.training.batches import check_enough
from meltr_ray.training.deepspeed_settings import deepspeed_settings
from meltr_ray.training.fits import check_fits
from meltr_ray.training.loss_vector import LossVector
from meltr_ray.training.overlap import overlap
from meltr_ray.training.rehearsal.batches import check_batches
from meltr_ray.training.rehearsal.combiner import check_meta_step, check_own_combiner, may_be_refused
from meltr_ray.training.rehearsal.evaluation import check_evaluation
from meltr_ray.training.rehearsal.losses import check_flat, check_losses, check_more_batches
from meltr_ray.training.rehearsal.module import check_made_anew, check_module, check_unchanged
from meltr_ray.training.rehearsal.owners import used_by_their_owners
from meltr_ray.training.rehearsal.seeds import SEED, seeded_by_the_run
from meltr_ray.training.rehearsal.structure import check_structure
from meltr_ray.training.said import check_said
from meltr_ray.training.shapes import shapes_alone
from meltr_ray.training.splits import SPLITS, examples
from meltr_ray.training.tuning import check_tuning, prepare_for_tuning


def check_all(configs: Iterable[Config]) -> None:
    """Refuse what any of these configurations would fail on; on prepared data, each kind of them once.

    Raises:
        ConfigError: names the workload or the setting, and the mend.
    """
    seen: list[tuple[Any, frozenset[str]]] = []
    sizes: list[tuple[dict[str, Any], dict[str, int]]] = []
    for config in configs:
        settings = workload_settings(config)
        known = next((found for other, found in sizes if other == settings), None)
        if known is None:
            known = {split: len(examples(config.workload, split)) for split in SPLITS}
            sizes.append((settings, known))
            check(
                known["validation"] > 0,
                "workload",
                config.workload.source,
                "has no validation example; return some from examples('validation')",
            )
            check_said(config.workload)
            for line in overlap(config.workload):
                say(f"note: {line}")
        for split in ["train"] + ["meta"] * config.draws_from_meta:
            check_enough(config.workload, split, known[split], config.train.batch_size, max(1, config.train.num_workers))
        deepspeed_settings(config)
        products = (config.aid.solver, config.aid.product, config.aid.hessian_product) if may_be_refused(config) else None
        key = (settings, config.tuning, config.engine.zero_stage == 3, config.combiner.name, products)
        losses = frozenset(config.losses.set)
        if any(key == other and losses <= already for other, already in seen):
            continue
        seen.append((key, losses))
        if config.workload.rehearsed:
            rehearse(config)
        else:
            with shapes_alone():
                module = config.workload.structure()
                check_tuning(config, module)
            check_fits(config, sum(p.numel() for p in module.parameters()))


def rehearse(config: Config) -> None:
    """One batch through the module, and its losses checked; w, generators and files stay as they are."""
    workload = config.workload
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        module = seeded_by_the_run(workload, "module", workload.module)
        check(
            isinstance(module, nn.Module), "workload", workload.source, f"module() gave a {type(module).__name__}; return a torch.nn.Module"
        )
        check_module(workload, module)
        check_made_anew(config, module)
        prepare_for_tuning(module, config)
        before = {name: (p.requires_grad, p.detach().clone()) for name, p in module.named_parameters()}
        batch = check_batches(config)
        model = LossVector(module, workload).train()
        flat = check_losses(config, model, batch)
        check_flat(config, model, flat)
        if config.combiner.name == "own":
            check_own_combiner(config, model, batch)
        if may_be_refused(config):
            check_meta_step(config, model, batch)
        with torch.no_grad(), used_by_their_owners(model) if config.engine.zero_stage == 3 else nullcontext():
            called(workload, "module", lambda: model(batch))
            check_more_batches(config, model)
            metrics = check_evaluation(workload, module)
        check_unchanged(workload, module, before)
        check_structure(config, module, batch, metrics)
