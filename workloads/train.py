"""One run: train one configuration, with validation scores, checkpoints and the best weights in its folder.

python workloads/train.py train.steps=300 aid.solver=cg
python workloads/train.py workload=my_losses.py:Primes workload.width=64
python workloads/train.py train.num_workers=2 engine.zero_stage=3
python workloads/train.py resume=outputs/runs/digits
"""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from pathlib import Path

from meltr_ray.config import Config
from meltr_ray.config import file as config_file
from meltr_ray.config.used import check_given
from meltr_ray.config.workload_file import keep_text
from meltr_ray.errors import ConfigError, check
from meltr_ray.results import table as results
from meltr_ray.results.numbers import measured
from meltr_ray.storage import sealed
from meltr_ray.storage.disk import check_files
from meltr_ray.storage.writers import only_writer
from workloads import checks, cli, remote
from workloads.ending import as_process

WRITTEN = ("config.yaml", "results.parquet", "best.safetensors", "log.txt", "error.txt", ".attempt", ".lock", ".stop", ".writer.json")
"""Files of a run, each replaced as it goes on."""
OF_RAY = ("train.cpus_per_worker", "train.accelerator", "train.resources")
"""Settings of workers alone, where there is no sweep."""


def train(request: cli.Request) -> int:
    """Run to the end, or go on from `resume`. Returns the exit code."""
    cli.check_taken(request, "train.py", ("name", "output", "working_folder", "resume", "cluster", "loggers"))
    config = request.config
    if config.resume:
        folder = Path(config.resume).absolute()
        for key in ("name", "output", "working_folder"):
            check(
                key not in request.given, key, request.given.get(key), "a resumed run stays in its folder; leave it out, or start a new run"
            )
        if not sealed.there(folder / "config.yaml"):
            raise ConfigError(f"resume={config.resume}: no run was started there; give a folder under outputs/runs")
        check_files("resume", folder, WRITTEN)
        config = config_file.read(
            sealed.whole_of(folder / "config.yaml"), [f"{key}={value}" for key, value in request.given.items() if key != "resume"]
        )
    else:
        remote.check_working_folder(request.given, config)
        folder = checks.new_folder(config, "runs", chosen="name" in request.given)
    for key, value in request.given.items():
        check(not key.startswith("sweep."), key, value, "one run makes nothing of it; leave it out, or use sweep.py")
    for key in OF_RAY if not config.train.num_workers else ():
        check(
            key not in request.given,
            key,
            request.given.get(key),
            "one run without workers asks Ray for nothing; leave it out, or give train.num_workers",
        )
    check_given(request.given, config, [config])
    checks.check_machine(config)
    checks.check_cluster(config)
    checks.check_loggers(config)
    checks.make_paths_absolute(config)
    checks.prepare(config)
    from meltr_ray.training import checkpoint
    from meltr_ray.training.rehearsal import check_all

    checkpoint.check_same(config, folder / "checkpoints")
    check_all([config])
    from meltr_ray.cluster.left import check_left
    from meltr_ray.cluster.mirror import mirrored

    twin = remote.twin_of(config, "runs", folder)
    remote.told(twin)
    with only_writer(folder), mirrored(folder, twin) as mirror:
        results.set_aside(folder)
        check_left(folder, config)
        keep_text(config.workload, folder / "workload")
        config_file.write(folder / "config.yaml", config)
        if mirror:
            mirror.begin()
        return run(folder, config, remote.place_of(folder, twin))


def run(folder: Path, config: Config, place: str) -> int:
    """Train in `folder`, which no other process writes; at `place` it is gone on with."""
    trial = {"name": folder.name, "folder": str(folder), "arm": "single", "phase": "single", "test": False, "stop": str(folder)}
    with cli.chatter_to(folder / "log.txt") as terminal:
        from meltr_ray.cluster.connection import connected
        from meltr_ray.cluster.interruption import Interruption
        from meltr_ray.cluster.machines import check_machines
        from meltr_ray.cluster.placement import check_holds
        from meltr_ray.cluster.terminal import tell
        from meltr_ray.cluster.trial import record_failure, run_trial
        from meltr_ray.combining.named import WAYS
        from meltr_ray.loggers.named import begin
        from meltr_ray.training.stopping import End

        begin(config.loggers, folder)
        name, metric = next(iter(config.workload.metrics.items()))

        def show(row: dict) -> None:
            shown = measured(metric, metric.score(row["score"]))  # the metric itself, whose negative is the score where lower is better
            tell(terminal.fileno(), f"step {row['step']}/{config.train.steps}  {name} {shown}\n")

        if (line := WAYS[config.combiner.name].beforehand(config)) and not results.read_trial(folder):
            tell(terminal.fileno(), f"{line}\n")

        def attempt() -> End:
            try:
                return run_trial(trial, show)
            except Exception as error:
                record_failure(trial, error)
                return End.FINISHED

        with Interruption(folder, config.train.grace, terminal) as interruption:
            try:
                with connected(config) if config.train.num_workers else nullcontext():
                    if config.train.num_workers:
                        check_machines(config, folder)
                        check_holds(config)
                    end = attempt()
            except KeyboardInterrupt:  # a second signal, or the end of the grace
                end = End.ASKED
    if end is not End.FINISHED:
        results.stop(folder)
        print(f"stopped; go on with: python workloads/train.py resume={place}")
        return interruption.code
    return finish(folder, config)


def switched_off(row: dict, config: Config) -> list[str]:
    """Losses to which a way that learns gave slope 0 since the last row but this."""
    return [loss for loss in config.losses.set if config.combiner.name != "fixed" and row.get(f"slope.{loss}") == 0]


def finish(folder: Path, config: Config) -> int:
    """Print how the run in `folder` ended; exit code 1 if badly."""
    rows = results.read_trial(folder)
    if not rows or rows[-1]["status"] != "finished":
        where = next((name for name in ("error.txt", "log.txt") if (folder / name).exists()), "log.txt")
        print(f"error: {rows[-1]['error'] if rows else 'nothing was trained'}; see {folder}/{where}", file=sys.stderr)
        return 1
    name, metric = next(iter(config.workload.metrics.items()))
    best = max(rows, key=lambda row: row["score"] if math.isfinite(row["score"]) else -math.inf)
    if bad := [row["step"] for row in rows if not math.isfinite(row["score"])]:
        print(f"note: {name} was not a finite number in {len(bad)} of {len(rows)} evaluations, first at step {bad[0]}", file=sys.stderr)
    if off := switched_off(rows[-1], config):
        print(f"losses that were switched off at the end: {', '.join(off)}")
    print(f"best validation {name} {measured(metric, best[f'metric.{name}'])} at step {best['step']} -> {folder}")
    return 0


def main() -> None:
    cli.main(train, __doc__)


if __name__ == "__main__":
    as_process(main)
