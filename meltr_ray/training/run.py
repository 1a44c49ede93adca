"""Assembly of one run: data, model, engine, combiner, outer level and checkpoints, and then the loop."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable

import torch
from safetensors.torch import load_file

from meltr_ray.combining.combiners import make_combiner
from meltr_ray.config import Config
from meltr_ray.hypergrad.generators import get_generators, set_generators
from meltr_ray.results import table as results
from meltr_ray.results.table import RunningMeans
from meltr_ray.training import checkpoint, memory
from meltr_ray.training.batches import Batches, MetaBatches
from meltr_ray.training.engine import Engine
from meltr_ray.training.loader import Loader
from meltr_ray.training.loop import Progress, train
from meltr_ray.training.meta import Meta
from meltr_ray.training.model import load_weights, make_examples, make_inputs, make_model, predict, predict_saved, task_module
from meltr_ray.video.clips.folder import DataFolder

Report = Callable[[dict[str, Any]], None]


def run(config: Config, folder: Path, report: Report, phase: str = "single", arm: str = "single", test: bool = False) -> None:
    """Train one configuration, resuming from what `folder` holds; every rank calls it.

    Args:
        folder: where checkpoints and the best weights go; the same on every rank.
        report: takes a row of the results table at each evaluation, on every rank; only rank 0's row is to be kept.
        test: score the test split once, at the end, with the weights of the best validation score.

    Raises:
        Diverged: a loss was not finite.
    """
    torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.seed)
    device = torch.device("cuda", torch.cuda.current_device()) if config.train.use_gpu else torch.device("cpu")
    memory.reset_peak(device)
    data = DataFolder.open(config)
    inputs = make_inputs(config, data)
    examples = {split: make_examples(config, data, split) for split in ("train", "meta", "validation")}
    model = make_model(config, data)
    combiner = make_combiner(config.combiner, config.task.loss_set, config.task.primary)

    found = checkpoint.latest(folder / "checkpoints")
    if found:
        load_weights(model, _part(load_file(found / "shared.safetensors"), "weights"), found)
    engine = Engine(model, config, device)
    meta = Meta(combiner.to(device), config.aid)
    torch.manual_seed(config.seed * 1009 + engine.rank)  # dropout differs between ranks
    progress = Progress()
    if found:
        progress = _restore(found, engine, meta)

    place = dict(seed=config.seed, rank=engine.rank, world_size=engine.world_size)
    batches = Batches(examples["train"], inputs.batch, config.train.batch_size, **place)
    held_out = Batches(examples["meta"], inputs.batch, config.train.batch_size, **place) if config.draws_from_meta else None
    facts = {"trial": folder.name, "arm": arm, "phase": phase}

    def evaluate() -> None:
        metrics = task_module(config).metrics(predict(engine.module, config, examples["validation"], inputs, device))
        (score,) = engine.average([torch.tensor(metrics["score"], dtype=torch.float64, device=device).nan_to_num(nan=-torch.inf)])
        if score > progress.best_score or progress.best_step == 0:  # alike on all ranks: what follows waits for each
            progress.best_score, progress.best_step = score.item(), progress.step
            weights = engine.weights()
            if engine.rank == 0:
                checkpoint.save_weights(folder / "best.safetensors", weights, {"step": progress.step, "checksums": data.checksums} | metrics)
        last = progress.step == config.train.steps and not test
        report(_row(config, facts, engine, meta, progress, "validation", "finished" if last else "running", metrics))
        progress.means = RunningMeans()

    def save() -> None:
        state = {"weights": engine.weights(), "optimizer": engine.optimizer_state(), "meta": meta.state()}
        shared = {f"{part}/{name}": tensor for part, tensors in state.items() for name, tensor in tensors.items()}
        known = {"progress": asdict(progress), "settings": checkpoint.settings(config), "world_size": engine.world_size}
        own = get_generators(device) | meta.own_state()
        checkpoint.save(folder / "checkpoints", progress.step, engine.rank, shared, own, known, engine.barrier)

    meta_batches = MetaBatches(config.aid.meta_batch, batches, held_out, config.engine.gradient_accumulation, config.aid.num_meta_batches)
    loader = Loader(batches, meta_batches, meta.is_due, progress.step, config.train.steps, num_loader_workers(config), config.data.prefetch)
    train(config, engine, combiner, meta, loader, progress, evaluate, save)
    if test:
        metrics = task_module(config).metrics(predict_saved(config, folder / "best.safetensors", "test", device))
        report(_row(config, facts, engine, meta, progress, "test", "finished", metrics))


def num_loader_workers(config: Config) -> int:
    """Decoding takes longer than a step of a small model, and making batches of features next to nothing."""
    return int(config.backbone.reads_pixels) if config.data.loader_workers is None else config.data.loader_workers


def _restore(found: Path, engine: Engine, meta: Meta) -> Progress:
    shared, own, facts = checkpoint.load(found, engine.rank)
    progress = Progress(**facts["progress"] | {"means": RunningMeans(**facts["progress"]["means"])})
    engine.load_optimizer_state(_part(shared, "optimizer"), progress.step)
    meta.load_state(_part(shared, "meta"))
    last_v = [own[f"last_v/{i}"].to(engine.device) for i in range(len(_part(own, "last_v")))]
    meta.last_v = engine.w.hold(last_v) if last_v else None
    set_generators(own, engine.device)
    return progress


def _part(tensors: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(f"{part}/"): t for name, t in tensors.items() if name.startswith(f"{part}/")}


def _row(config: Config, facts: dict[str, str], engine: Engine, meta: Meta, progress: Progress, split: str, status: str,
         metrics: dict[str, float]) -> dict[str, Any]:  # fmt: skip
    """A row of the results table."""
    return (
        results.config_row(config)
        | facts
        | {"split": split, "status": status, "step": progress.step, "best_step": progress.best_step}
        | {"time": datetime.now(timezone.utc), "seconds": progress.seconds, "meta_seconds": progress.meta_seconds}
        | {"peak_memory_bytes": memory.peak_bytes(engine.device), "meta_steps": meta.num_steps}
        | {"learning_rate": engine.learning_rate(progress.step - 1)}
        | progress.means.values()
        | {name: value for name, value in metrics.items() if name in results.COLUMNS}
    )
