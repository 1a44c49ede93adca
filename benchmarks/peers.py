"""Hypergradients side by side: meltr_ray, betty-ml, torchopt and jaxopt on problems whose right answer is known.

    python benchmarks/peers.py [--quick] [--out FOLDER]

Writes peers.json, peers.md and peers.png. Exits with 1 if at equal error some peer is faster than our fastest method, and says where.
A peer that is not installed is named and left out. In full about ten minutes, with --quick one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from peers_problems import PROBLEMS, QUICK_PROBLEMS, Problem
from peers_report import Point, compare, describe_slower, markdown, plot, slower
from peers_worker import LIBRARIES, Case, Failed, Library, Worker


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    problems: tuple[str, ...]
    iterations: tuple[int, ...]
    ranks: tuple[int, ...]
    rounds: int
    budget: float  # seconds for one case in one round
    memory_of: str | None  # measure peak memory of this method only; None: of all
    memory_size: int = 32


FULL = Plan(tuple(PROBLEMS), (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128), (4, 16, 48, 96), 5, 0.05, None)
QUICK = Plan(QUICK_PROBLEMS, (16, 64), (16,), 2, 0.02, "cg")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two problems, few settings: under a minute")
    parser.add_argument("--out", type=Path, default=Path("outputs/peers"), metavar="FOLDER")
    parser.add_argument("--libraries", nargs="+", default=[library.name for library in LIBRARIES], metavar="NAME")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL

    wanted = [library for library in LIBRARIES if library.name in arguments.libraries]
    libraries = [library for library in wanted if library.installed]
    missing = [f"{library.name}: not installed ({library.install})" for library in wanted if not library.installed]
    problems = {name: PROBLEMS[name](name) for name in plan.problems}
    points, failures = measure_times(libraries, list(problems.values()), plan)
    memory = measure_memory(libraries, list(problems.values()), plan)
    facts = {"machine": machine_facts(libraries), "problems": {name: problem.facts for name, problem in problems.items()}}

    arguments.out.mkdir(parents=True, exist_ok=True)
    report = markdown(points, memory, facts, missing, failures)
    (arguments.out / "peers.md").write_text(report)
    (arguments.out / "peers.json").write_text(json.dumps(as_json(points, memory, facts, missing, failures), indent=1))
    plot(points, arguments.out / "peers.png")
    print(report)
    return 1 if slower(compare(points)) else 0


def measure_times(libraries: Sequence[Library], problems: Sequence[Problem], plan: Plan) -> tuple[list[Point], list[str]]:
    """Every case of every library in rounds, so that a noisy minute falls on all sides alike."""
    workers = {library.name: Worker(library) for library in libraries}
    firsts: dict[Case, dict[str, float]] = {}
    failures: list[str] = []
    for name, worker in workers.items():
        try:
            methods = worker.ask("methods")
        except Failed as failure:
            failures.append(f"{name}: does not import ({failure})")
            continue
        for problem in problems:
            worker.ask("add_problem", problem)
        for case in cases(name, methods, plan):
            try:
                firsts[case] = worker.ask("prepare", case)
            except Failed as failure:
                failures.append(f"{case.label}, {case.size}, on {case.problem}: {failure}")

    times: dict[Case, list[tuple[float, float]]] = {case: [] for case in firsts}
    for number in range(plan.rounds):
        print(f"round {number + 1} of {plan.rounds}", file=sys.stderr)
        # neighbours in time are the sides of one problem at one size
        for case in sorted(firsts, key=lambda case: (plan.problems.index(case.problem), case.size)):
            times[case] += workers[case.library].ask("times", case, plan.budget)
    for worker in workers.values():
        worker.close()
    return [summarise(case, first, times[case]) for case, first in firsts.items()], failures


def cases(library: str, methods: dict[str, str | None], plan: Plan) -> list[Case]:
    sizes = {"iterations": plan.iterations, "rank": plan.ranks, None: (0,)}
    return [Case(problem, library, method, size) for problem in plan.problems for method, kind in methods.items()
            for size in sizes[kind]]  # fmt: skip


def summarise(case: Case, first: dict[str, float], times: Sequence[tuple[float, float]]) -> Point:
    processor, wall = zip(*times)
    low, median, high = statistics.quantiles(processor, n=4)
    return Point(case, first["error"], median, low, high, statistics.median(wall), first["first_call_seconds"])


def measure_memory(libraries: Sequence[Library], problems: Sequence[Problem], plan: Plan) -> dict[tuple[str, str], int | None]:
    """(problem, label) -> peak bytes of one call; a fresh process for each method."""
    memory: dict[tuple[str, str], int | None] = {}
    for library in libraries:
        with Worker(library) as worker:
            try:
                methods = worker.ask("methods")
            except Failed:
                continue
        for method, kind in methods.items():
            if plan.memory_of not in (None, method):
                continue
            with Worker(library) as worker:
                for problem in problems:
                    case = Case(problem.name, library.name, method, plan.memory_size if kind else 0)
                    worker.ask("add_problem", problem)
                    try:
                        memory[problem.name, case.label] = worker.ask("peak_memory", case)
                    except Failed:
                        memory[problem.name, case.label] = None
    return memory


def machine_facts(libraries: Sequence[Library]) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in libraries:
        versions |= library.versions
    return {
        "processor": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}; every side on one core, one thread",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def as_json(points: Sequence[Point], memory: dict[tuple[str, str], int | None], facts: dict[str, dict[str, str]],
            missing: Sequence[str], failures: Sequence[str]) -> dict[str, object]:  # fmt: skip
    comparisons = compare(points)
    return {
        "facts": facts,
        "missing": list(missing),
        "failures": list(failures),
        "points": [point.record() for point in points],
        "peak_memory": [{"problem": problem, "label": label, "bytes": count} for (problem, label), count in memory.items()],
        "equal_error": [{**vars(c), "ratio": c.ratio} for c in comparisons],
        "slower": [describe_slower(c) for c in slower(comparisons)],
    }


if __name__ == "__main__":
    sys.exit(main())
