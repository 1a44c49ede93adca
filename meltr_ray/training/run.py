"""Assembly of one run: workload, engine, way of combining and checkpoints, and then the loop."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from meltr_ray.combining.named import WAYS
from meltr_ray.config import Config
from meltr_ray.storage.writers import Attempt
from meltr_ray.training import checkpoint, memory
from meltr_ray.training.batches import Batches, MetaBatches
from meltr_ray.training.engine import opened
from meltr_ray.training.loader import Loader
from meltr_ray.training.loop import Progress, train
from meltr_ray.training.loss_vector import LossVector
from meltr_ray.training.origin import check_alike, checksum, origin
from meltr_ray.training.record import Record, Report
from meltr_ray.training.refused import refused_in_settings
from meltr_ray.training.splits import examples
from meltr_ray.training.state import RunState, restore_weights
from meltr_ray.training.stopping import End, Stop
from meltr_ray.training.tuning import prepare_for_tuning


def run(config: Config, folder: Path, report: Report, phase: str = "single", arm: str = "single", test: bool = False,
        stop: Stop | None = None) -> End:  # fmt: skip
    """Train one configuration, resuming from what `folder` holds; every rank calls it.

    Args:
        folder: where checkpoints and the best weights go; the same on every rank.
        report: takes a row of the results table at each evaluation, on every rank; only rank 0's row is to be kept.
        test: score the test split once, at the end, with the weights of the best validation score.
        stop: what may end it before, after any step; that step is saved.

    Raises:
        Diverged: a loss was not finite.
        ConfigError: a product that the meta steps need is wrong for this model.
    """
    began = time.perf_counter()
    torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.seed)
    device = torch.device("cuda", torch.cuda.current_device()) if config.train.use_gpu else torch.device("cpu")
    memory.reset_peak(device)
    workload, fingerprint = config.workload, config.workload.fingerprint()
    validation = examples(workload, "validation")
    module = workload.module()
    first_weights = {"weights": checksum(dict(module.named_parameters()))} if config.train.num_workers > 1 else {}
    prepare_for_tuning(module, config)
    way = WAYS[config.combiner.name].of(config, workload)

    model = LossVector(module, workload)
    found = checkpoint.latest(folder / "checkpoints")
    if found:
        restore_weights(found, model)
    with opened(model, config, device) as engine:
        checkpoint.check_alike_on_ranks(found, engine.gather, device)
        torch.manual_seed(config.seed * 1009 + engine.rank)  # dropout differs between ranks
        attempt = Attempt(folder) if engine.rank == 0 else None
        state = RunState(engine, way.to(device), Progress())
        facts = state.restore(found) if found else {}
        if found:
            checkpoint.check_facts(config, facts, folder / "checkpoints")
        progress = state.progress

        place = dict(batch_size=config.train.batch_size, seed=config.seed, rank=engine.rank, world_size=engine.world_size)
        batches = Batches(workload, "train", **place)
        started_from = origin(batches, validation) | first_weights
        check_alike(workload, started_from, engine, facts.get("origin"))
        held_out = Batches(workload, "meta", **place) if config.draws_from_meta else None
        meta_batches = MetaBatches(
            config.aid.meta_batch, batches, held_out, config.engine.gradient_accumulation, config.aid.num_meta_batches
        )
        loader = Loader(meta_batches, lambda step: way.beside_step(step, meta_batches), progress.step, config.train.steps, config.num_loaders,
                        config.train.prefetch, workload.preloaded, {("train", 0): started_from["batch"]} if engine.rank == 0 else {})  # fmt: skip
        kept = {"settings": checkpoint.settings(config), "fingerprint": fingerprint, "origin": started_from}
        known = {"trial": folder.name, "arm": arm, "phase": phase}
        record = Record(config, folder, report, known, state, module, validation, kept, attempt, began - progress.elapsed, test)
        with refused_in_settings(config):
            end = train(config, engine, way, loader, progress, record.evaluate, record.save, stop)
        if end is End.FINISHED:
            if test:
                record.test()
            if phase == "single":
                record.keep()
        return end
