"""What each way to combine losses costs over plain training with fixed weights: time of a step and peak memory, as ratios within one run.

    python benchmarks/combining.py                     # UniVL at base size, eight losses, all ways: about an hour of one core, 12 GB
    python benchmarks/combining.py --few               # one way that sees the Gramian in place of eleven, few repeats: a quarter of an hour
    python benchmarks/combining.py --few --ways famo,meltr --no-peaks
    python benchmarks/combining.py --size tiny --quick # a minute, to see that it runs
    python benchmarks/combining.py --device cuda

Writes combining.json and combining.md to --out; ends with 1 where a target is missed. A step is forward, backward and AdamW; ways that look every so
many steps are timed over whole periods. It may run beside other work: plain steps and those of a way alternate in one process, each ratio is to the
plain steps right before and after, of all repeats the median counts, and what is judged is processor time of one thread; wall time stands beside it. A way
that sees nothing but the losses adds no pass to a step, only its own work on T numbers: that is timed by itself, over hundreds of calls, and judged, as a
step's time is no steadier than some hundredths. Peak memory is that of a process of its own each, above what it held before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
NAMES = [*OF_LOSSES, "meltr", "aligned", *OF_GRAMIAN]
REPEATS = 7
FEW = {name: 3 for name in OF_LOSSES} | {"meltr": 3, "aligned": 2, "upgrad": 2}
"""Way -> repeats. Of the ways that see the Gramian one: they differ in what they make of (T, T) numbers."""
HEAVY = ("famo", "meltr", "aligned", "upgrad")
"""Of these, the ones that keep more than T numbers while they work: their peak memory is measured."""
NO_PASS = [name for name in OF_LOSSES if name != "famo"]
"""Ways whose steps have the passes of a plain one."""
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


@dataclass(frozen=True)
class Took:
    """Seconds."""

    cpu: float
    """Processor time of all threads."""
    wall: float


def took(case: Case, work: Callable[[], Any]) -> Took:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if case.device == "cuda":
        torch.cuda.synchronize()
    return Took(time.process_time() - cpu, time.perf_counter() - wall)


class Training:
    """A model that is trained with one way; `period` takes its steps."""

    def __init__(self, case: Case, name: str, model: Any, optimizer: torch.optim.Optimizer):
        self.case, self.way, self.model, self.optimizer = case, way_of(name).to(torch.device(case.device)), model, optimizer
        self.batch, self.steps = make_batch(case, 10), 1 if name == "fixed" or name in OF_LOSSES else PERIOD
        self.backward = Took(0.0, 0.0)
        """Of the last step."""

    def period(self) -> None:
        for number in range(self.steps):
            step = PlainStep(self.case, self.model, self.optimizer, number, self.batch)
            self.way.before(step)
            l = step.losses()
            _, a = self.way.slopes(l.detach(), self.batch)
            self.backward = took(self.case, (a.detach() @ l).backward)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.way.after(step)


def made(case: Case) -> tuple[Any, torch.optim.Optimizer]:
    model = make_model(case, True)
    return model, torch.optim.AdamW(model.parameters(), 1e-7, fused=True)


@dataclass
class Pairs:
    """A way beside plain steps, a number a repeat."""

    ratios: list[Took]
    """Time of its steps over that of the plain ones around them."""
    seconds: list[float]
    """Of a step; processor time."""


def pairs(case: Case, repeats: dict[str, int]) -> tuple[dict[str, Pairs], list[Took], list[Took]]:
    """Way -> its pairs; plain steps; their backward passes. `repeats`: way -> how often it is timed."""
    model, optimizer = made(case)
    plain, found = Training(case, "fixed", model, optimizer), {name: Pairs([], []) for name in repeats}
    plains, backwards = [], []

    def plain_step() -> Took:
        plains.append(took(case, plain.period))
        backwards.append(plain.backward)
        return plains[-1]

    for training in (plain, plain, Training(case, "meltr", model, optimizer)):  # the first steps of each are slow
        training.period()
    trainings = {name: Training(case, name, model, optimizer) for name in repeats}
    for round_ in range(max(repeats.values())):
        before = plain_step()
        for name, training in trainings.items():
            if round_ >= repeats[name]:
                continue
            own = took(case, training.period)
            after = plain_step()
            around = Took((before.cpu + after.cpu) / 2, (before.wall + after.wall) / 2)
            found[name].ratios.append(Took(own.cpu / training.steps / around.cpu, own.wall / training.steps / around.wall))
            found[name].seconds.append(own.cpu / training.steps)
            print(f"{round_ + 1}: {name} {found[name].ratios[-1].cpu:.3f}", file=sys.stderr, flush=True)
            before = after
    return found, plains, backwards


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


def alone(case: Case, name: str, calls: int = 300) -> float:
    """Seconds of processor time that a way takes for slopes of T losses, without any pass of the model."""
    way, device = way_of(name).to(torch.device(case.device)), torch.device(case.device)
    values = torch.rand(calls + 20, len(UNIVL_LOSSES), generator=torch.Generator().manual_seed(0)).add(0.5).to(device)

    def call(number: int) -> None:
        way.before(SimpleNamespace(number=number))
        way.slopes(values[number], None)

    for number in range(20):
        call(number)
    return took(case, lambda: [call(number) for number in range(20, len(values))]).cpu / calls


def judged(case: Case) -> str:
    """Whose ratio counts: what a graphics card does takes no processor time."""
    return "wall" if case.device == "cuda" else "cpu"


def row(case: Case, name: str, pairs: Pairs, plain: float, bytes_: int | None) -> dict[str, Any]:
    """`plain`: seconds of a plain step."""
    ratios = {kind: [getattr(one, kind) for one in pairs.ratios] for kind in ("cpu", "wall")}
    ratio, own = statistics.median(ratios[judged(case)]), alone(case, name) if name in NO_PASS else None
    reached = ratio if own is None else 1 + own / plain
    missed = {"missed": reached > TARGETS[name]} if name in TARGETS else {}
    return {
        "seconds": statistics.median(pairs.seconds),
        "ratio": ratio,
        "ratios": ratios,
        "alone": own,
        "reached": reached,
        "bytes": bytes_,
    } | missed


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def table(found: dict[str, Any]) -> str:
    case, plain = found["case"], found["plain"]
    lines = [
        f"UniVL {case['size']}, {len(UNIVL_LOSSES)} losses, batch {case['batch_size']}, {case['words']} words, {case['frames']} frames, {case['device']}, "
        f"{found['threads']} thread; looks and meta steps every {PERIOD} steps. Ratios to the plain steps around: median [least, greatest].",
        "",
        f"A plain step takes {plain['cpu']:.3f} s of processor time ({plain['wall']:.3f} s of wall time), its backward pass {plain['backward']:.3f} s: "
        f"{len(UNIVL_LOSSES)} backward passes every {PERIOD} steps would be {len(UNIVL_LOSSES) * plain['backward'] / PERIOD / plain[judged(Case(device=case['device']))]:.2f} of a plain step."
        + ("" if plain["bytes"] is None else f" Peak {plain['bytes'] / 1e6:.0f} MB."),
        "",
        "| way | repeats | s / step | processor time over fixed weights | wall time | its own work (ms) | judged | target | peak (MB) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found["ways"].items():
        target = f"{TARGETS[name]:.2f}{' missed' if one['missed'] else ''}" if name in TARGETS else ""
        peak_ = "" if one["bytes"] is None else f"{one['bytes'] / 1e6:.0f}"
        own = "" if one["alone"] is None else f"{1000 * one['alone']:.2f}"
        lines.append(f"| `{name}` | {len(one['ratios']['cpu'])} | {one['seconds']:.3f} | {spread(one['ratios']['cpu'])} | {spread(one['ratios']['wall'])} | {own} | {one['reached']:.3f} | {target} | {peak_} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--few", action="store_true")
    parser.add_argument("--ways", default=",".join(NAMES))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-peaks", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--peak")
    given = parser.parse_args()
    if given.peak:
        spec = json.loads(given.peak)
        torch.set_num_threads(spec["threads"])
        print(peak(Case(**spec["case"]), spec["name"]))
        return 0
    torch.set_num_threads(given.threads)
    case = Case(size=given.size, device=given.device)
    asked = given.ways.split(",")
    if unknown := set(asked) - set(NAMES):
        parser.error(f"--ways: {', '.join(sorted(unknown))} unknown; use some of {','.join(NAMES)}")
    repeats = {name: count for name, count in (FEW if given.few else dict.fromkeys(NAMES, REPEATS)).items() if name in asked}
    found, plains, backwards = pairs(case, dict.fromkeys(repeats, 1) if given.quick else repeats)
    heavy = () if given.no_peaks else HEAVY if given.few else NAMES
    plain = {kind: statistics.median(getattr(one, kind) for one in plains) for kind in ("cpu", "wall")}
    ways = {
        name: row(case, name, one, plain[judged(case)], peak_in_own_process(case, name) if name in heavy else None)
        for name, one in found.items()
    }
    said = {
        "case": {key: value for key, value in asdict(case).items() if key != "dtype"},
        "threads": given.threads,
        "plain": plain
        | {"backward": statistics.median(getattr(one, judged(case)) for one in backwards)}
        | {"bytes": None if given.no_peaks else peak_in_own_process(case, "fixed")},
        "ways": ways,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "combining.json").write_text(json.dumps(said, indent=1))
    (given.out / "combining.md").write_text(table(said))
    print(table(said))
    return int(any(one.get("missed") for one in ways.values()))


if __name__ == "__main__":
    sys.exit(main())
