"""Which horizon foresees what a loss does in the end? One step, look-aheads of several lengths and the gradient through training, as one table.

    python -m benchmarks.horizon                                            experiment=which_losses, three seeds
    python -m benchmarks.horizon experiment=digits num_seeds=6 oracle_steps=0
    python -m benchmarks.horizon screening=outputs/sweeps/which_losses      with Kendall's tau against that screening's final effects
    python -m benchmarks.horizon measured=outputs/horizon/which_losses screening=<folder>     the table again, of what was measured

Trains each seed by uniform weights and, at some steps, measures every loss beside the primary alone and taken out of all losses
(horizon_measures.py). Writes gains.csv, losses.csv, agreement.csv, overall.csv, notes.txt and horizon.md to <output>/horizon/<name>.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, TextIO

import pandas as pd

from analysis import horizon
from meltr_ray.bounds import bounded, check_settings
from meltr_ray.config import Config
from meltr_ray.errors import check
from workloads import checks, cli


@dataclass
class Own:
    """Settings of this command alone."""

    num_seeds: int = bounded(3, 1, 100)
    """Runs, with seeds from `seed` on."""
    points: list[float] = bounded([0.1, 0.33, 0.67], 0, 0.999)
    """Shares of training at which losses are measured."""
    horizons: list[int] = bounded([3, 10, 30], 1, 10**6)
    """Steps of the look-aheads."""
    held_out_batches: Optional[int] = bounded(None, 1, 10**6)
    """Batches of the meta split that the outer loss is the mean over; default: the whole split."""
    oracle_steps: int = bounded(10, 0, 10**6)
    """Steps that the oracle differentiates; 0: none."""
    oracle_segments: Optional[int] = bounded(None, 1, 10**6)
    """Segments of its checkpoints; default: as many as steps, which takes the least memory."""
    oracle_bytes: int = bounded(4_000_000_000, 1, 10**15)
    """Most memory of the oracle; where it needs more it is left out, and the bytes are said."""
    screening: Optional[str] = None
    """Folder of a finished screening, whose final effects the measures are held against."""
    measured: Optional[str] = None
    """Folder with the gains.csv of an earlier call: nothing is trained."""

    def __post_init__(self):
        check_settings("", self)
        for name, usual in dict(points="[0.1,0.33,0.67]", horizons="[3,10,30]").items():
            values = getattr(self, name)
            check(len(values) > 0 and values == sorted(set(values)), name, values, f"must be numbers that rise; usual: {usual}")
        segments = self.oracle_segments or 1
        check(
            segments <= max(self.oracle_steps, 1),
            "oracle_segments",
            segments,
            f"has oracle_steps={self.oracle_steps}; give as many at most",
        )


def main(request: cli.Request) -> int:
    own: Own = request.own or Own()
    effects = horizon.final_effects(own.screening) if own.screening else None  # read first: what is measured takes long
    folder = Path(own.measured) if own.measured else measure(request, own)
    check((folder / "gains.csv").is_file(), "measured", own.measured, "has no gains.csv; name a folder that this command wrote")
    write_tables(folder, effects)
    print((folder / "horizon.md").read_text())
    return 0


def measure(request: cli.Request, own: Own) -> Path:
    """Measure every seed, in this process; a seed that is done is kept at once."""
    train, chosen = request.config.train, request.config.losses
    check(train.num_workers <= 1, "train.num_workers", train.num_workers, "one process measures; leave it out")
    check(len(chosen.set) > 1, "losses.set", chosen.set, "has no auxiliary loss to measure; add one")
    for point in own.points:
        last = step_of(point, request.config) + max(*own.horizons, own.oracle_steps)
        check(last <= train.steps, "points", point,
              f"looks to step {last} of train.steps={train.steps}; lower it, or horizons and oracle_steps")  # fmt: skip
    folder = checks.new_folder(request.config, "horizon", chosen="name" in request.given)
    checks.check_machine(request.config)
    checks.prepare(request.config)
    folder.mkdir(parents=True)
    records: list[dict[str, Any]] = []
    notes: list[str] = []
    for seed in range(request.config.seed, request.config.seed + own.num_seeds):
        config = cli.configure([f"{key}={value}" for key, value in (request.given | {"seed": str(seed)}).items()], Own).config
        with cli.chatter_to(folder / "log.txt") as terminal:
            for record in of_seed(config, own, notes, terminal):
                records.append({"seed": seed} | record)
        pd.DataFrame(records).to_csv(folder / "gains.csv", index=False)
        (folder / "notes.txt").write_text("".join(f"{note}\n" for note in dict.fromkeys(notes)))
    return folder


def step_of(point: float, config: Config) -> int:
    return round(point * config.train.steps)


def of_seed(config: Config, own: Own, notes: list[str], terminal: TextIO) -> Iterator[dict[str, Any]]:
    """Train by uniform weights; a row for each step, base, measure and auxiliary loss. What can't be measured is noted."""
    import torch

    from benchmarks.horizon_measures import Fork
    from meltr_ray.training.batches import Batches, to_device
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.loss_vector import LossVector
    from meltr_ray.training.tuning import prepare_for_tuning

    torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if config.train.use_gpu else "cpu")
    module = config.workload.module()
    prepare_for_tuning(module, config)
    engine = Engine(LossVector(module, config.workload), config, device)
    torch.manual_seed(config.seed * 1009)  # as meltr_ray/training/run.py

    train, held_out = (Batches(config.workload, split, config.train.batch_size, config.seed) for split in ("train", "meta"))
    micro, points = config.engine.gradient_accumulation, [step_of(point, config) for point in own.points]
    count = own.held_out_batches or held_out.per_epoch
    check(count <= held_out.per_epoch, "held_out_batches", count, f"the meta split has {held_out.per_epoch}; give as many at most")
    judged = to_device([held_out[number] for number in range(count)], device)
    for number in range(max(points) + 1):
        if number in points:
            count = max(*own.horizons, own.oracle_steps)
            ahead = to_device([train[index] for index in range(number * micro, (number + count) * micro)], device)
            print(f"seed {config.seed}: step {number} of {config.train.steps}", file=terminal)
            yield from ({"step": number} | record for record in of_fork(Fork(engine, number, ahead, judged), own, notes))
        for batch in to_device([train[index] for index in range(number * micro, (number + 1) * micro)], device):
            engine.backward(engine.losses(batch).sum())
            engine.step(number)


def of_fork(fork: Any, own: Own, notes: list[str]) -> Iterator[dict[str, Any]]:
    from benchmarks.horizon_measures import ONE_STEP, look_ahead, one_step, oracle

    auxiliary = [(t, name) for t, name in enumerate(fork.names) if t != fork.primary]
    for base, a in fork.bases.items():
        for solver in ONE_STEP:
            gains = one_step(fork, solver, a)
            yield from ({"base": base, "measure": solver, "loss": name, "gain": gains[t]} for t, name in auxiliary)
        for name, gains in look_ahead(fork, base, own.horizons).items():
            yield from ({"base": base, "measure": f"ahead_{K}", "loss": name, "gain": gain} for K, gain in zip(own.horizons, gains))
        if own.oracle_steps:
            try:
                gains = oracle(fork, a, own.oracle_steps, own.oracle_segments or own.oracle_steps, own.oracle_bytes)
            except ValueError as error:
                notes.append(f"No oracle: {error}")
                continue
            yield from ({"base": base, "measure": f"oracle_{own.oracle_steps}", "loss": name, "gain": gains[t]} for t, name in auxiliary)


def write_tables(folder: Path, effects: Optional[dict[str, pd.DataFrame]]) -> None:
    rows = pd.read_csv(folder / "gains.csv")
    losses = horizon.by_loss(rows)
    measures = horizon.by_measure(rows, effects) if effects else None
    losses.to_csv(folder / "losses.csv", index=False)
    overall = ""
    if measures is not None:
        measures.to_csv(folder / "agreement.csv", index=False)
        over_places = horizon.over_places(rows, effects)
        over_places.to_csv(folder / "overall.csv", index=False)
        overall = f"Mean over steps and bases.\n\n{horizon.markdown_over_places(over_places)}\n"
    notes = (folder / "notes.txt").read_text().splitlines()
    about = (
        "\n".join([f"{rows.seed.nunique()} seeds. In brackets: rank (1 helps most), and seeds with the sign of the mean.", *notes]) + "\n\n"
    )
    (folder / "horizon.md").write_text(about + overall + horizon.markdown(losses, measures, effects))


if __name__ == "__main__":
    cli.main(main, __doc__, sys.argv[1:], own=Own, experiment="which_losses")
