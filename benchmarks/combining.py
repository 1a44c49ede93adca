"""What each way to combine losses costs over plain training with fixed weights: time of a step and peak memory, as ratios within one run.

    python benchmarks/combining.py                     # UniVL at base size, eight losses: about half an hour on two quiet cores, 12 GB
    python benchmarks/combining.py --size tiny --quick # a minute, to see that it runs
    python benchmarks/combining.py --device cuda

Writes combining.json and combining.md to --out; ends with 1 where a target is missed. A step is forward, backward and AdamW; ways that look every so
many steps are timed over whole periods. All alternate in one process; peak memory is that of a process of its own each, above what it held before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from univl_case import PRIMARY, Case, losses, make_batch, make_model, make_problem

from meltr_ray.combining.named import OF_GRAMIAN, OF_LOSSES, WAYS
from meltr_ray.combining.way import Way
from meltr_ray.config import AidConfig, CombinerConfig
from meltr_ray.hypergrad.fixed_point import FixedPoint
from meltr_ray.training import memory
from meltr_ray.video.backbones.univl.settings import UNIVL_LOSSES
from meltr_ray.workload import Workload

PERIOD = 3
"""Steps between two looks at gradients or two meta steps."""
NAMES = ["fixed", *OF_LOSSES, *OF_GRAMIAN, "aligned", "meltr"]
TARGETS = {name: 1.02 for name in OF_LOSSES} | {"famo": 1.4, "meltr": 1.20}


class PlainStep:
    """`Step` of a plain module in one process."""

    def __init__(self, case: Case, model: Any, optimizer: torch.optim.Optimizer, number: int, batch: Any):
        self.case, self.model, self.optimizer, self.number, self.batches = case, model, optimizer, number, [batch]
        self._problem: Any = None

    def problem(self) -> Any:
        self._problem = self._problem or make_problem(self.case, self.model)
        return self._problem

    def gradients(self) -> list[Any]:
        return self.problem().loss_gradients()

    def gramian(self) -> Tensor:
        rows = self.gradients()
        return torch.stack([row.dots(rows) for row in rows])

    def adam_scale(self) -> Any:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        return FixedPoint.of(self.optimizer, parameters).scale

    def losses(self) -> Tensor:
        return losses(self.model, self.batches[0]) if self._problem is None else self._problem.losses()[0]

    def losses_again(self) -> Tensor:
        with torch.no_grad():
            return losses(self.model, self.batches[0])[None]

    def average(self, tensors: list[Tensor]) -> list[Tensor]:
        return list(tensors)


def way_of(name: str) -> Way:
    combiner = CombinerConfig(name=name, every=PERIOD if WAYS[name].every else None)
    chosen = SimpleNamespace(set=list(UNIVL_LOSSES), primary=PRIMARY)
    settings = SimpleNamespace(
        combiner=combiner, losses=chosen, seed=0, aid=AidConfig(inner_steps=PERIOD), optimizer=SimpleNamespace(learning_rate=1e-5)
    )
    return WAYS[name].of(settings, Workload())


class Training:
    """A model that is trained with one way; `period` takes its steps."""

    def __init__(self, case: Case, name: str, model: Any, optimizer: torch.optim.Optimizer):
        self.case, self.way, self.model, self.optimizer = case, way_of(name).to(torch.device(case.device)), model, optimizer
        self.batch = make_batch(case, 10)

    def period(self) -> None:
        for number in range(PERIOD):
            step = PlainStep(self.case, self.model, self.optimizer, number, self.batch)
            self.way.before(step)
            l = step.losses()
            _, a = self.way.slopes(l.detach(), self.batch)
            (a.detach() @ l).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.way.after(step)


def made(case: Case) -> tuple[Any, torch.optim.Optimizer]:
    model = make_model(case, True)
    return model, torch.optim.AdamW(model.parameters(), 1e-7, fused=True)


def times(case: Case, repeats: int) -> dict[str, float]:
    """Seconds of a step, median over rounds in which the ways alternate on one model."""
    model, optimizer = made(case)
    trainings = {name: Training(case, name, model, optimizer) for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for round_ in range(repeats + 1):
        for name, training in trainings.items():
            started = time.perf_counter()
            training.period()
            if case.device == "cuda":
                torch.cuda.synchronize()
            if round_:  # the first round warms up
                seconds[name].append((time.perf_counter() - started) / PERIOD)
    return {name: statistics.median(found) for name, found in seconds.items()}


def peak(case: Case, name: str) -> int:
    """Bytes of two periods above what the process held with the model and its optimiser."""
    model, optimizer = made(case)
    Training(case, "fixed", model, optimizer).period()  # moments and gradients are everybody's
    training, device = Training(case, name, model, optimizer), torch.device(case.device)
    memory.reset_peak(device)
    before = memory.peak_bytes(device)
    training.period()
    return memory.peak_bytes(device) - before


def peak_in_own_process(case: Case, name: str) -> int:
    fields = {key: value for key, value in asdict(case).items() if key != "dtype"}
    spec = json.dumps({"case": fields, "name": name, "threads": torch.get_num_threads()})
    done = subprocess.run([sys.executable, __file__, "--peak", spec], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr.strip()[-2000:]}")
    return int(done.stdout.strip().splitlines()[-1])


def table(found: dict[str, Any]) -> str:
    case = found["case"]
    lines = [f"UniVL {case['size']}, {len(UNIVL_LOSSES)} losses, batch {case['batch_size']}, {case['words']} words, {case['frames']} frames, {case['device']}; "
             f"looks and meta steps every {PERIOD} steps.", "", "| way | s / step | over fixed weights | target | peak (MB) |", "|---|---|---|---|---|"]  # fmt: skip
    for name, row in found["ways"].items():
        target = f"{TARGETS[name]:.2f}{' missed' if row['ratio'] > TARGETS[name] else ''}" if name in TARGETS else ""
        lines.append(f"| `{name}` | {row['seconds']:.3f} | {row['ratio']:.2f} | {target} | {row['bytes'] / 1e6:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--peak")
    given = parser.parse_args()
    if given.peak:
        spec = json.loads(given.peak)
        torch.set_num_threads(spec["threads"])
        print(peak(Case(**spec["case"]), spec["name"]))
        return 0
    case = Case(size=given.size, device=given.device)
    seconds = times(case, 1 if given.quick else 5)
    ways = {
        name: {"seconds": seconds[name], "ratio": seconds[name] / seconds["fixed"], "bytes": peak_in_own_process(case, name)}
        for name in NAMES
    }
    found = {
        "case": {key: value for key, value in asdict(case).items() if key != "dtype"},
        "threads": torch.get_num_threads(),
        "ways": ways,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "combining.json").write_text(json.dumps(found, indent=1))
    (given.out / "combining.md").write_text(table(found))
    print(table(found))
    return int(any(ways[name]["ratio"] > target for name, target in TARGETS.items()))


if __name__ == "__main__":
    sys.exit(main())
