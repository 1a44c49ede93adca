"""What a meta step costs beside double backward as published: time, peak memory and error, as ratios within one run.

    python benchmarks/meta_step.py                     # UniVL at base size: about 15 minutes on two quiet cores, 12 GB
    python benchmarks/meta_step.py --size tiny --quick # a minute, to see that it runs
    python benchmarks/meta_step.py --device cuda       # bfloat16 and fused attention
    python benchmarks/meta_step.py --size small --trust 40   # what checking costs once a module's products have been tested, and no more

Writes meta_step.json, meta_step.md and meta_step.png to --out; ends with 1 where a target is missed. Times of all ways
alternate in one process; peak memory is that of a process of its own each, above what it held before the step. A meta step's
time leaves out the inner forward that it shares with the inner step; its memory does not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor
from univl_case import Case, losses, make_batch, make_combiner, make_model, make_problem, published

from meltr_ray.combining.slopes import slopes
from meltr_ray.config import OptimizerConfig
from meltr_ray.hypergrad import ConjugateGradient, Identity, LossSpace, Neumann, Nystrom, hypergradient
from meltr_ray.hypergrad.combined import CombinedLosses
from meltr_ray.hypergrad.vectors import Vector
from meltr_ray.training import memory

WAYS = ("published", "one_sided", "central", "forward")
HESSIANS = ("one_sided", "central", "forward_over_reverse", "double_backward")
TARGETS = [  # (figure, at most)
    ("one_sided time", 0.30), ("one_sided memory", 0.50), ("one_sided error", 1e-2),
    ("forward time", 0.60), ("forward memory", 0.60), ("forward error", 1e-4),
    ("training with inner_steps=3", 1.20),
    ("cg one_sided per iteration", 1.7), ("cg one_sided error", 1e-2),
    ("cg exact per iteration", 2.5), ("cg memory, 4 iterations over 1", 1.05),
]  # fmt: skip


MOST_FOR_CHECKS = 1.02
"""Of a meta step that checks, over one that trusts."""


def hypergradient_by(way: str, case: Case) -> Callable[[], tuple[list[Tensor], float]]:
    """() -> (implicit term, seconds of the inner forward within)."""
    model, combiner = make_model(case, fused=way != "published"), make_combiner(case)
    if way == "published":
        return lambda: (published(case, model, combiner), 0.0)

    def step() -> tuple[list[Tensor], float]:
        problem, inner_seconds = make_problem(case, model, product=way), [0.0]
        forward = problem.inner

        def timed() -> Tensor:
            seconds, losses = measured(forward, case)
            inner_seconds[0] = seconds
            return losses

        problem.inner = timed
        return hypergradient(problem, combiner, keep_v=False).implicit, inner_seconds[0]

    return step


def measured(function: Callable[[], Any], case: Case) -> tuple[float, Any]:
    """(seconds, result)."""
    wait(case)
    start = time.perf_counter()
    result = function()
    wait(case)
    return time.perf_counter() - start, result


def wait(case: Case) -> None:
    if case.device == "cuda":
        torch.cuda.synchronize()


def meta_step_times(case: Case, repeats: int, ways: tuple[str, ...] = WAYS) -> dict[str, float]:
    """Seconds of a meta step without the inner forward, median over rounds in which the ways alternate."""
    steps = {way: hypergradient_by(way, case) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(repeats + 1):
        for way, step in steps.items():
            total, (_, inner) = measured(step, case)
            if round_:  # the first round warms up
                seconds[way].append(total - inner)
    return {way: statistics.median(values) for way, values in seconds.items()}


def peak_of(case: Case, function: Callable[[], Any]) -> int:
    """Bytes above those held before."""
    device = torch.device(case.device)
    memory.reset_peak(device)
    before = memory.peak_bytes(device)
    function()
    return memory.peak_bytes(device) - before


def exact(case: Case) -> dict[str, Any]:
    """Implicit term, and H u along u = d_w F, by double backward in float64."""
    wide = replace(case, dtype=torch.float64)
    model, combiner = make_model(wide, fused=False), make_combiner(wide)
    implicit = torch.cat([t.flatten() for t in published(wide, model, combiner)])
    problem = make_problem(wide, model, hessian_product="double_backward")
    u = problem.outer_gradient()
    H_u = problem.hessian(combiner)(u)
    return {"implicit": implicit, "H_u": [piece.float() for piece in H_u.pieces], "u": [piece.float() for piece in u.pieces]}


def error_of(way: str, case: Case, reference: dict[str, Any]) -> float:
    implicit, _ = hypergradient_by(way, case)()
    return relative_error([torch.cat([t.flatten() for t in implicit])], [reference["implicit"]])


def relative_error(got: list[Tensor], expected: list[Tensor]) -> float:
    difference = sum(float((a.double().cpu() - b.double()).pow(2).sum()) for a, b in zip(got, expected)) ** 0.5
    return difference / sum(float(b.double().pow(2).sum()) for b in expected) ** 0.5


def product_figures(case: Case, repeats: int, reference: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Each H u after the first of a solve: seconds over those of a plain backward pass of the same losses, and error."""
    fused, plain, combiner = make_model(case, True), make_model(case, False), make_combiner(case)
    batch, u = make_batch(case, 10), Vector(tuple(piece.to(case.device) for piece in reference["u"]))
    products = {name: make_problem(case, plain if name == "double_backward" else fused, hessian_product=name).hessian(combiner)
                for name in HESSIANS}  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in ("forward", "backward", *HESSIANS)}
    errors = {}
    for _ in range(repeats + 1):
        forward, losses = measured(lambda: fused(batch), case)
        _, a = slopes(combiner, losses)
        backward, _ = measured(lambda l=losses: torch.autograd.grad(a @ l, list(fused.parameters()), allow_unused=True), case)
        losses = None  # and its graph with it
        for name, value in (("forward", forward), ("backward", backward)):
            seconds[name].append(value)
        for name, product in products.items():
            spent, H_u = measured(lambda: product(u), case)
            seconds[name].append(spent)
            errors[name] = relative_error(list(H_u.pieces), reference["H_u"])
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {name: {"seconds": median[name], "over_backward": median[name] / median["backward"],
                   "over_forward_and_backward": median[name] / (median["forward"] + median["backward"]), "error": errors[name]}
            for name in HESSIANS} | {"plain": {"forward_seconds": median["forward"], "backward_seconds": median["backward"]}}  # fmt: skip


def solve_peak(case: Case, hessian_product: str, iterations: int) -> int:
    """Bytes of one CG solve above what the process held before."""
    model, combiner = make_model(case, hessian_product != "double_backward"), make_combiner(case)
    problem = make_problem(case, model, hessian_product=hessian_product)
    level = CombinedLosses(problem, combiner, 0.0, "phi_only")
    solver = ConjugateGradient(iterations, damping=1e4)  # enough to keep every curvature positive
    return peak_of(case, lambda: solver(level, level.outer_gradient()))


def training_ratio(case: Case, repeats: int, inner_steps: int = 3) -> dict[str, float]:
    """Seconds of `inner_steps` steps and a meta step over those of the steps alone: forward, backward and AdamW."""
    model, combiner = make_model(case, True), make_combiner(case)
    optimizer = torch.optim.AdamW(model.parameters(), OptimizerConfig().learning_rate * 1e-3, fused=True)
    batch, spent = make_batch(case, 10), {"plain": [], "ours": []}

    def inner_step(losses: Tensor) -> None:
        _, a = slopes(combiner, losses)
        (a @ losses).backward()
        optimizer.step()
        optimizer.zero_grad()

    def period(with_meta: bool) -> None:
        for step in range(inner_steps):
            if with_meta and step == inner_steps - 1:
                problem = make_problem(case, model, product="one_sided")
                hypergradient(problem, combiner, gamma=0.1, keep_v=False)
                inner_step(problem.losses()[0])
            else:
                inner_step(losses(model, batch))

    for _ in range(repeats + 1):
        for name in spent:
            spent[name].append(measured(lambda: period(name == "ours"), case)[0])
    plain, ours = (statistics.median(values[1:]) for values in spent.values())
    return {"plain_seconds": plain, "ours_seconds": ours, "ratio": ours / plain}


def checked_over_trusted(case: Case, pairs: int) -> dict[str, float]:
    """Processor time of a meta step that checks what it is given, over that of one that trusts it: the median over pairs.

    Both steps of a pair follow each other, each first in turn, so that what else the machine does falls on both. The products of the
    module are tested before, which happens once.
    """
    model, combiner = make_model(case, True), make_combiner(case)

    def step(trust: bool) -> float:
        wait(case)
        start = time.process_time()
        hypergradient(make_problem(case, model, trust=trust), combiner, gamma=0.1, keep_v=False)
        wait(case)
        return time.process_time() - start

    once = step(False)
    for trust in (True, False):
        step(trust)
    spent: dict[bool, list[float]] = {True: [], False: []}
    for number in range(pairs):
        for trust in (True, False) if number % 2 else (False, True):
            spent[trust].append(step(trust))
    ratios = [checked / trusted for checked, trusted in zip(spent[False], spent[True])]
    error = 1.25 * statistics.stdev(ratios) / len(ratios) ** 0.5  # of a median
    return {
        "trusted_seconds": statistics.median(spent[True]),
        "once_seconds": once,
        "ratio": statistics.median(ratios),
        "standard_error": error,
    }


def in_own_process(task: str, case: Case, *arguments: Any) -> Any:
    """Run one of `TASKS` in a fresh process, so that its peak memory is its own."""
    fields = asdict(case) | {"dtype": str(case.dtype).removeprefix("torch.")}
    spec = json.dumps({"task": task, "case": fields, "arguments": arguments, "threads": torch.get_num_threads()})
    done = subprocess.run([sys.executable, __file__, "--task", spec], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{task} {arguments}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def way_peak(case: Case, way: str) -> int:
    step = hypergradient_by(way, case)
    return peak_of(case, step)


def solver_peak(case: Case, name: str) -> int:
    """Bytes of one solve and J v with everything by one-sided differences."""
    solver = {"identity": Identity(), "neumann": Neumann(3, 1e-4), "cg": ConjugateGradient(3, damping=1e4),
              "cg, warm": ConjugateGradient(3, damping=1e4), "nystrom": Nystrom(3, 1e4), "loss space": LossSpace(1.0)}[name]  # fmt: skip
    model, combiner = make_model(case, True), make_combiner(case)
    problem = make_problem(case, model, product="one_sided", hessian_product="one_sided")
    start = problem.random(0) if name == "cg, warm" else None
    return peak_of(case, lambda: hypergradient(problem, combiner, solver, start=start, keep_v=False))


TASKS: dict[str, Callable[..., Any]] = {"way_peak": way_peak, "solve_peak": solve_peak, "solver_peak": solver_peak}
SOLVERS = ("identity", "neumann", "cg", "cg, warm", "nystrom", "loss space")


def run_task(spec: str) -> None:
    given = json.loads(spec)
    torch.set_num_threads(given["threads"])
    case = Case(**given["case"] | {"dtype": getattr(torch, given["case"]["dtype"])})
    print(json.dumps(TASKS[given["task"]](case, *given["arguments"])))


def compare(case: Case, repeats: int) -> dict[str, Any]:
    """All figures of one case."""
    reference = exact(replace(case, device="cpu"))
    found: dict[str, Any] = {"case": asdict(case) | {"dtype": str(case.dtype)}, "ways": {}}
    times = meta_step_times(case, repeats)
    peaks = {way: in_own_process("way_peak", case, way) for way in WAYS}
    for way in WAYS:
        found["ways"][way] = {
            "seconds": times[way], "time": times[way] / times["published"], "bytes": peaks[way],
            "memory": peaks[way] / peaks["published"], "error": error_of(way, case, reference),
        }  # fmt: skip
        print(f"  {way:10} {found['ways'][way]}", flush=True)
    found["products"] = product_figures(case, repeats, reference)
    if case.dropout == 0:  # masks are not kept apart, so dropout changes no vector
        found["solve_bytes"] = {name: [in_own_process("solve_peak", case, name, k) for k in (1, 4)] for name in HESSIANS}
        found["weights_bytes"] = 4 * sum(p.numel() for p in make_model(case, True).parameters())
        found["solver_bytes"] = {name: in_own_process("solver_peak", case, name) for name in SOLVERS}
    found["training"] = training_ratio(case, repeats)
    return found


def figures(found: dict[str, Any]) -> dict[str, float]:
    """The figures that targets are set for."""
    ways, products, peaks = found["ways"], found["products"], found.get("solve_bytes")
    exact_ones = [products[name]["over_backward"] for name in ("forward_over_reverse", "double_backward")]
    return (
        {f"{way} {what}": ways[way][what] for way in ("one_sided", "forward") for what in ("time", "memory", "error")}
        | {"training with inner_steps=3": found["training"]["ratio"]}
        | {"cg one_sided per iteration": products["one_sided"]["over_backward"], "cg one_sided error": products["one_sided"]["error"]}
        | {"cg exact per iteration": min(exact_ones)}
        | ({"cg memory, 4 iterations over 1": max(p[-1] / p[0] for p in peaks.values())} if peaks else {})
    )


def table(found: dict[str, Any]) -> str:
    case = found["case"]
    lines = [f"UniVL {case['size']}, batch {case['batch_size']}, {case['words']} words, {case['frames']} frames, dropout "
             f"{case['dropout']}, {case['dtype'].removeprefix('torch.')}, {case['device']}", "",
             "| J v | seconds | time / published | peak above the model (GB) | memory / published | relative error |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for way, row in found["ways"].items():
        lines.append(
            f"| {way} | {row['seconds']:.2f} | {row['time']:.2f} | {row['bytes'] / 1e9:.2f} | {row['memory']:.2f} | {row['error']:.1e} |"
        )
    lines += ["", "| H u | seconds | / backward | / (forward + backward) | relative error | peak of a solve, 1 and 4 iterations (GB) |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for name in HESSIANS:
        row, peaks = found["products"][name], [f"{b / 1e9:.2f}" for b in found.get("solve_bytes", {}).get(name, [])]
        lines.append(f"| {name} | {row['seconds']:.2f} | {row['over_backward']:.2f} | {row['over_forward_and_backward']:.2f} | "
                     f"{row['error']:.1e} | {', '.join(peaks)} |")  # fmt: skip
    if "solver_bytes" in found:
        lines += [
            "",
            "| solver, 3 iterations or rank 3 | peak of a meta step above the model, in vectors of the weights' size |",
            "|---|---|",
        ]
        lines += [f"| {name} | {found['solver_bytes'][name] / found['weights_bytes']:.1f} |" for name in SOLVERS]
    plain = found["products"]["plain"]
    lines += ["", f"Plain forward {plain['forward_seconds']:.2f} s, backward {plain['backward_seconds']:.2f} s. Training with a meta "
              f"step every third step: {found['training']['ratio']:.2f} x plain training.", ""]  # fmt: skip
    return "\n".join(lines)


def check(found: dict[str, Any]) -> list[str]:
    """One line for each target; those missed begin with MISSED."""
    have = figures(found)
    return [
        f"{'met   ' if have[name] <= most else 'MISSED'} {name}: {have[name]:.3g} (at most {most:g})"
        for name, most in TARGETS
        if name in have
    ]


def curves(case: Case, repeats: int) -> dict[str, Any]:
    """Seconds and peak memory over model size, sequence length and CG iterations, for the plot."""
    cases = {
        "size": {size: replace(case, size=size) for size in ("tiny", "small", case.size)},
        "length": {str(frames): replace(case, size="small", frames=frames) for frames in (24, 48, 96)},
    }
    ways = ("published", "one_sided", "forward")
    found: dict[str, Any] = {}
    for axis, points in cases.items():
        for label, point in points.items():
            times = meta_step_times(point, repeats, ways)
            found.setdefault(axis, {})[label] = {w: [times[w], in_own_process("way_peak", point, w)] for w in ways}
    small = replace(case, size="small")
    found["iterations"] = {str(k): {name: [solve_seconds(small, name, k), in_own_process("solve_peak", small, name, k)]
                                    for name in HESSIANS} for k in (1, 2, 4, 8)}  # fmt: skip
    return found


def solve_seconds(case: Case, hessian_product: str, iterations: int) -> float:
    model, combiner = make_model(case, hessian_product != "double_backward"), make_combiner(case)
    level = CombinedLosses(make_problem(case, model, hessian_product=hessian_product), combiner, 0.0, "phi_only")
    solver = ConjugateGradient(iterations, damping=1e4)
    b = level.outer_gradient()
    return min(measured(lambda: solver(level, b), case)[0] for _ in range(2))


def plot(found: dict[str, Any], path: Path) -> None:
    """Two rows, seconds and peak memory; a column for each axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {"size": "model size", "length": "frames (size small)", "iterations": "CG iterations (size small)"}
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), constrained_layout=True)
    for column, (axis, title) in enumerate(titles.items()):
        labels = list(found[axis])
        for row, (unit, scale) in enumerate((("seconds", 1.0), ("peak above the model (GB)", 1e-9))):
            ax = axes[row, column]
            for way in next(iter(found[axis].values())):
                ax.plot(labels, [found[axis][label][way][row] * scale for label in labels], marker="o", label=way.replace("_", " "))
            ax.set(yscale="log", xlabel=title, ylabel=unit)
            ax.grid(alpha=0.3, which="both")
            if row == 0:
                ax.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="one repeat and no curves")
    parser.add_argument("--trust", type=int, metavar="PAIRS", help="measure alone what checking costs, in so many pairs of meta steps")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        run_task(arguments.task)
        return 0
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("device=cuda: this machine has no GPU, so nothing was measured; run it where there is one, or use --device cpu")
        return 2
    torch.set_num_threads(arguments.threads)
    if arguments.trust:
        found = checked_over_trusted(Case(size=arguments.size, device=arguments.device), arguments.trust)
        print(f"checked over trusted: {found['ratio']:.3f}, standard error {found['standard_error']:.3f} (a trusted step {found['trusted_seconds']:.2f} s, the first, "
              f"which tests, {found['once_seconds']:.2f} s; at most {MOST_FOR_CHECKS})")  # fmt: skip
        return int(found["ratio"] > MOST_FOR_CHECKS)
    repeats = 1 if arguments.quick else arguments.repeats
    machine = {"machine": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine(),
               "cores": os.cpu_count(), "threads": arguments.threads, "torch": torch.__version__}  # fmt: skip
    case, results = Case(size=arguments.size, device=arguments.device), {"machine": machine, "cases": []}
    for dropout in (0.0, 0.1):
        print(f"dropout {dropout}", flush=True)
        results["cases"].append(compare(replace(case, dropout=dropout), repeats))
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.quick:
        results["curves"] = curves(case, repeats)
        plot(results["curves"], arguments.out / "meta_step.png")
    (arguments.out / "meta_step.json").write_text(json.dumps(results, indent=1))
    lines = [line for found in results["cases"] for line in check(found)]
    text = "\n".join(
        [
            *(table(found) for found in results["cases"]),
            "Machine: " + ", ".join(f"{k} {v}" for k, v in machine.items()),
            "" if arguments.device == "cuda" else "bfloat16 with fused attention on a GPU was not measured: run with --device cuda.",
            "",
        ]
    )
    (arguments.out / "meta_step.md").write_text(text)
    print(text, *lines, sep="\n")
    return int(any(line.startswith("MISSED") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
