"""Assembly of one run: workload, engine, way of combining and checkpoints, and then the loop."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Callable

import torch

from meltr_ray.combining.named import WAYS
from meltr_ray.combining.way import Way
from meltr_ray.config import Config
from meltr_ray.config.user_code import called
from meltr_ray.results.table import RunningMeans
from meltr_ray.storage.writers import Attempt
from meltr_ray.training import checkpoint, memory
from meltr_ray.training.batches import Batches, MetaBatches
from meltr_ray.training.engine import Engine, opened
from meltr_ray.training.evaluation import Measured, measured, measured_saved, saved_module
from meltr_ray.training.loader import Loader
from meltr_ray.training.loop import Progress, train
from meltr_ray.training.loss_vector import LossVector
from meltr_ray.training.origin import check_alike, checksum, origin
from meltr_ray.training.refused import refused_in_settings
from meltr_ray.training.splits import examples
from meltr_ray.training.state import RunState, restore_weights
from meltr_ray.training.stopping import End, Stop
from meltr_ray.training.tuning import merge, prepare_for_tuning

Report = Callable[[dict[str, Any]], None]


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
        torch.manual_seed(config.seed * 1009 + engine.rank)  # dropout differs between ranks
        attempt = Attempt(folder) if engine.rank == 0 else None
        state = RunState(engine, way.to(device), Progress())
        facts = state.restore(found) if found else {}
        if found:
            checkpoint.check_facts(config, facts, folder / "checkpoints")
        progress = state.progress
        began -= progress.elapsed

        place = dict(batch_size=config.train.batch_size, seed=config.seed, rank=engine.rank, world_size=engine.world_size)
        batches = Batches(workload, "train", **place)
        started_from = origin(batches, validation) | first_weights
        check_alike(workload, started_from, engine, facts.get("origin"))
        held_out = Batches(workload, "meta", **place) if config.draws_from_meta else None
        known = {"trial": folder.name, "arm": arm, "phase": phase}

        def check_ours() -> None:
            if attempt:
                attempt.check()

        def evaluate() -> None:
            found = measured(workload, module, validation, device)
            (score,) = engine.average(
                [torch.tensor(workload.score(found.metrics), dtype=torch.float64, device=device).nan_to_num(nan=-torch.inf)]
            )
            if score > progress.best_score or progress.best_step == 0:  # alike on all ranks: what follows waits for each
                progress.best_score, progress.best_step = score.item(), progress.step
                weights = engine.weights()
                check_ours()
                if engine.rank == 0:
                    checkpoint.save_weights(
                        folder / "best.safetensors",
                        weights,
                        found.metrics | {"trial": folder.name, "step": progress.step, "checksums": fingerprint},
                    )
            last, progress.elapsed = progress.step == config.train.steps and not test, time.perf_counter() - began
            check_ours()
            report(_row(config, known, engine, way, progress, "validation", "finished" if last else "running", found))
            progress.means = RunningMeans()

        def save() -> None:
            check_ours()
            progress.elapsed = time.perf_counter() - began
            state.save(folder / "checkpoints", {"settings": checkpoint.settings(config), "fingerprint": fingerprint, "origin": started_from},
                       config.train.checkpoints_kept)  # fmt: skip

        meta_batches = MetaBatches(
            config.aid.meta_batch, batches, held_out, config.engine.gradient_accumulation, config.aid.num_meta_batches
        )
        loader = Loader(meta_batches, lambda step: way.beside_step(step, meta_batches), progress.step, config.train.steps, config.num_loaders,
                        config.train.prefetch, workload.preloaded, {("train", 0): started_from["batch"]} if engine.rank == 0 else {})  # fmt: skip
        with refused_in_settings(config):
            end = train(config, engine, way, loader, progress, evaluate, save, stop)
        if test and end is End.FINISHED:
            checkpoint.check_weights_of(folder.name, folder / "best.safetensors")
            found = measured_saved(config, folder / "best.safetensors", "test", device)
            progress.elapsed = time.perf_counter() - began
            check_ours()
            report(_row(config, known, engine, way, progress, "test", "finished", found))
        if phase == "single" and end is End.FINISHED and engine.rank == 0 and workload.defines("keep"):
            best = saved_module(config, folder / "best.safetensors")
            merge(best)
            called(workload, "keep", lambda: workload.keep(best, folder))
        return end


def _row(config: Config, known: dict[str, str], engine: Engine, way: Way, progress: Progress, split: str, status: str,
         found: Measured) -> dict[str, Any]:  # fmt: skip
    """A row of the results table, but for the settings."""
    return (
        known
        | {"split": split, "status": status, "step": progress.step, "best_step": progress.best_step}
        | {"time": datetime.now(UTC), "seconds": progress.seconds, "meta_seconds": progress.meta_seconds}
        | {"elapsed": progress.elapsed}
        | {"peak_memory_bytes": memory.peak_bytes(engine.device), "meta_steps": way.num_steps}
        | {"learning_rate": engine.learning_rate(progress.step - 1)}
        | progress.means.values()
        | {"score": config.workload.score(found.metrics), "resampled": found.resampled}
        | {f"metric.{name}": found.metrics[name] for name in config.workload.metrics}
    )
