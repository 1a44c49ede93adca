"""What a sweep costs beyond the training of its trials: the fixed cost of a trial, how well trials are packed, the driver's memory.

    python -m benchmarks.sweep                     # 300 trials of about a second on two cores, then nested ones: 10 minutes
    python -m benchmarks.sweep --seeds 20 --nested 0

Trials are `Primes` with a linear way to combine (fixed weights) on three sets of losses, one process each, two at a time; nested ones have
two Ray Train workers. The machine should do nothing else. Ends with 1 where a figure misses its target.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from meltr_ray.results.table import load

ROOT = Path(__file__).parents[1]
SLOTS = 2
SAMPLED = 0.5
"""Seconds between two looks at the processes."""
TARGETS = {"fixed cost of a trial, s": 1.0, "packing, over ideal": 1.15, "last third over first": 1.05, "driver's memory, second half over first": 1.05,
           "nested trial, CPU-s": 12.0}  # fmt: skip
"""At most."""


@dataclass
class Watched:
    """A command that has ended, and what was seen of its processes."""

    folder: Path
    seconds: float
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Of the driver: seconds since the epoch, and bytes."""
    cpu: dict[int, float] = field(default_factory=dict)
    """Process -> CPU-seconds at the last look."""


def sweep(folder: Path, *settings: str) -> Watched:
    """Run a sweep to its end."""
    command = [sys.executable, str(ROOT / "workloads/sweep.py"), f"workload={ROOT}/workloads/examples/primes.py:Primes", "experiment=compare",
               "losses.set=[prime,digit,norm]", "combiner.name=fixed", "sweep.leave_one_out=false", "sweep.learning_rates=[]", "name=measured",
               *settings]  # fmt: skip
    started = time.perf_counter()
    with open(folder / "out.txt", "wb") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)
    found, driver = Watched(folder / "outputs/sweeps/measured", 0.0), psutil.Process(process.pid)

    def watch() -> None:
        while process.poll() is None:
            try:
                found.memory.append((time.time(), driver.memory_info().rss))
                for each in [driver, *driver.children(recursive=True)]:
                    times = each.cpu_times()
                    found.cpu[each.pid] = times.user + times.system
            except psutil.NoSuchProcess:
                pass
            time.sleep(SAMPLED)

    thread = threading.Thread(target=watch)
    thread.start()
    if process.wait():
        sys.exit((folder / "out.txt").read_text())
    thread.join()
    found.seconds = time.perf_counter() - started
    return found


def of_many(watched: Watched) -> dict[str, float]:
    """Figures of a sweep of many short trials."""
    rows = load(watched.folder / "results.parquet").to_pandas().sort_values("time")
    trials = rows.groupby("trial").agg(end=("time", "max"), elapsed=("elapsed", "max"), training=("seconds", "max")).sort_values("end")
    ends = np.array([end.timestamp() for end in trials.end])
    seen = [size for moment, size in watched.memory if ends[0] <= moment <= ends[-1]]  # the report, which comes after, draws plots
    third, half = len(trials) // 3, len(seen) // 2
    span = ends[-1] - ends[0] + trials.elapsed.iloc[0]
    return {
        "trials": len(trials),
        "training of a trial, s": trials.training.mean(),
        "fixed cost of a trial, s": (SLOTS * span - trials.training.sum()) / len(trials),
        "packing, over ideal": SLOTS * span / trials.elapsed.sum(),
        "last third over first": (ends[-1] - ends[-1 - third]) / (ends[third] - ends[0]),
        "driver's memory, second half over first": max(seen[half:]) / max(seen[:half]),
        "sweep, start and report included, s": watched.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="a third of the trials")
    parser.add_argument("--steps", type=int, default=250, help="of a trial: about a second of training")
    parser.add_argument("--nested", type=int, default=6, help="trials with two workers; 0: none")
    chosen, found = parser.parse_args(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as scratch:
        steps = [f"train.steps={chosen.steps}", f"train.evaluate_every={chosen.steps}", f"train.checkpoint_every={chosen.steps}"]
        many = Path(scratch, "many")
        many.mkdir()
        found |= of_many(
            sweep(many, f"sweep.seeds={chosen.seeds}", f"sweep.other_seeds={chosen.seeds}", f"sweep.max_concurrent={SLOTS}", *steps)
        )
        costs = []
        for seeds in (1, 1 + chosen.nested // 3) if chosen.nested else ():  # what starts once a sweep falls out of the difference
            few = Path(scratch, f"nested{seeds}")
            few.mkdir()
            watched = sweep(
                few, f"sweep.seeds={seeds}", f"sweep.other_seeds={seeds}", "train.num_workers=2", "sweep.max_concurrent=1", *steps
            )
            costs.append((3 * seeds, sum(watched.cpu.values())))
        if costs:
            (few_trials, less), (more_trials, more) = costs
            found["nested trial, CPU-s"] = (more - less) / (more_trials - few_trials)
    missed = [name for name, most in TARGETS.items() if name in found and found[name] > most]
    print("| | | at most |\n|---|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.3g} | {TARGETS.get(name, '')} |")
    print(json.dumps(found))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
