"""Time at equal error, the tables and the picture of benchmarks/peers.py."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from peers_worker import Case

TARGETS = (1e-2, 1e-4, 1e-6)
ROUNDING = 1e-12  # errors below are equal
NOISE = 0.97  # ratios between this and 1 change sides from run to run
COMPILATION = 0.1  # seconds: a longer first call is worth naming
COLOURS = {"ours": "tab:blue", "betty": "tab:orange", "torchopt": "tab:green", "jaxopt": "tab:red"}
MARKERS = "osD^v<>PX*"


@dataclass(frozen=True)
class Point:
    """One measured case."""

    case: Case
    error: float  # relative error of the hypergradient
    seconds: float  # processor time, all threads, median
    low: float  # its quartiles
    high: float
    wall_seconds: float  # median
    first_call_seconds: float

    def record(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name != "case"}
        return {**vars(self.case), **values}


@dataclass(frozen=True)
class Comparison:
    """The fastest setting of one method that reaches an error, against our fastest that does."""

    problem: str
    label: str
    target: float
    seconds: float | None  # None: not reached
    ours: float | None
    first_call_seconds: float  # with set-up and, for jaxopt, compilation

    @property
    def ratio(self) -> float | None:
        """Its time over ours, more than one where ours is faster; 0 where only ours does not reach the error."""
        if self.seconds is None:
            return None
        return 0.0 if self.ours is None else self.seconds / self.ours


def fastest(points: Sequence[Point], target: float) -> float | None:
    reached = [point.seconds for point in points if point.error <= max(target, ROUNDING)]
    return min(reached, default=None)


def first_call(points: Sequence[Point]) -> float:
    """Median over the settings of one method, since the process's very first call also loads parts of the library."""
    return statistics.median(point.first_call_seconds for point in points)


def compare(points: Sequence[Point]) -> list[Comparison]:
    """Every method at every target; one that reaches none of them is also compared at the lowest error that it has."""
    comparisons = []
    for problem in _ordered(point.case.problem for point in points):
        here = [point for point in points if point.case.problem == problem]
        ours = [point for point in here if point.case.library == "ours"]
        for label in _ordered(point.case.label for point in here):
            of_method = [point for point in here if point.case.label == label]
            first = first_call(of_method)
            targets = list(TARGETS)
            lowest = min(point.error for point in of_method)
            if TARGETS[0] < lowest < float("inf"):
                targets.append(1.01 * lowest)  # the same formula may round differently on our side
            for target in targets:
                comparisons.append(Comparison(problem, label, target, fastest(of_method, target), fastest(ours, target), first))
    return comparisons


def slower(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Where a peer is faster than our fastest at equal error, by more than noise."""
    return [c for c in comparisons if not c.label.startswith("ours ") and c.ratio is not None and c.ratio < NOISE]


def describe_slower(comparison: Comparison) -> str:
    where = f"{comparison.problem}, error {comparison.target:.2g}: {comparison.label} takes {_milliseconds(comparison.seconds)}"
    if comparison.ours is None:
        return f"{where}, ours does not reach it"
    both = f"{where}, ours {_milliseconds(comparison.ours)}, {1 / comparison.ratio:.2f} times as long"
    if comparison.first_call_seconds < COMPILATION:
        return both
    calls = math.ceil(comparison.first_call_seconds / (comparison.ours - comparison.seconds))
    return f"{both}; its first call takes {comparison.first_call_seconds:.2g} s, which {calls:,} hypergradients pay back"


def markdown(points: Sequence[Point], memory: dict[tuple[str, str], int | None], facts: dict[str, dict[str, str]],
             missing: Sequence[str], failures: Sequence[str]) -> str:  # fmt: skip
    """The whole report; `facts` holds each problem's description and the machine's."""
    comparisons = compare(points)
    lines = ["# Hypergradients side by side", ""]
    lines += [f"- {name}: {value}" for name, value in facts["machine"].items()]
    lines += [f"- {note}" for note in (*missing, *failures)]
    lines += ["", "Median processor time of one hypergradient, float64, one core, in the fastest setting that reaches the relative error;",
              "in brackets its ratio to our fastest method at that error: above 1 ours is faster, below 1 it is slower.",
        "Processor time stands for wall time, which on a shared machine grows for long calls and not for short ones."]  # fmt: skip
    for problem in _ordered(point.case.problem for point in points):
        lines += ["", f"## {problem}", "", facts["problems"][problem], ""]
        lines += _table(problem, points, comparisons, memory)
    lines += ["", "## Where ours is not the fastest", ""]
    lines += [f"- {describe_slower(c)}" for c in slower(comparisons)] or ["Nowhere."]
    return "\n".join(lines) + "\n"


def _table(problem: str, points: Sequence[Point], comparisons: Sequence[Comparison],
           memory: dict[tuple[str, str], int | None]) -> list[str]:  # fmt: skip
    heads = [
        "method",
        *(f"error {target:.0e}" for target in TARGETS),
        "lowest error",
        "at that error",
        "peak memory",
        "first call",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for label in _ordered(point.case.label for point in points if point.case.problem == problem):
        of_method = [point for point in points if point.case.problem == problem and point.case.label == label]
        rows = {c.target: c for c in comparisons if c.problem == problem and c.label == label}
        own = [c for target, c in rows.items() if target not in TARGETS]
        cells = [label, *(_cell(rows[target]) for target in TARGETS), f"{min(p.error for p in of_method):.1e}",
                 _cell(own[0]) if own else "", _megabytes(memory.get((problem, label))),
                 f"{first_call(of_method):.2g} s"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(comparison: Comparison) -> str:
    if comparison.seconds is None:
        return "not reached"
    if comparison.ours is None:
        return f"{_milliseconds(comparison.seconds)} (ours: not reached)"
    return f"{_milliseconds(comparison.seconds)} ({comparison.ratio:.2f} x)"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f} MB"


def _ordered(values: Any) -> list[str]:
    """Distinct values in order of appearance."""
    return list(dict.fromkeys(values))


def plot(points: Sequence[Point], path: Path) -> None:
    """Error against time, one panel a problem, one line a method; the best method ends in the lower left."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    problems = _ordered(point.case.problem for point in points)
    labels = _ordered(point.case.label for point in points)
    num_rows = (len(problems) + 1) // 2
    figure, axes = pyplot.subplots(num_rows, 2, figsize=(13, 5 * num_rows + 1.5), squeeze=False, layout="constrained")
    for axis, problem in zip(axes.flat, problems):
        for label in labels:
            of_method = [p for p in points if p.case.problem == problem and p.case.label == label and p.error < 10]
            if of_method:
                _draw(axis, label, of_method, labels)
        axis.set(xscale="log", yscale="log", title=problem, xlabel="processor milliseconds of one hypergradient (median)",
                 ylabel="relative error of the hypergradient")  # fmt: skip
        axis.grid(True, which="major", alpha=0.3)
    for axis in axes.flat[len(problems) :]:
        axis.set_axis_off()
    handles = {handle.get_label(): handle for axis in axes.flat for handle in axis.get_lines()}
    figure.legend([handles[label] for label in labels if label in handles], [label for label in labels if label in handles],
                  loc="outside lower center", ncols=5, fontsize=9)  # fmt: skip
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw(axis: Any, label: str, points: Sequence[Point], labels: Sequence[str]) -> None:
    """Colour tells the library, marker the method in it; ours solid, peers dashed."""
    library = points[0].case.library
    number = [other for other in labels if other.startswith(library + " ")].index(label)
    axis.plot(
        [1e3 * point.seconds for point in points],
        [max(point.error, 1e-15) for point in points],
        color=COLOURS[library],
        marker=MARKERS[number],
        linestyle="-" if library == "ours" else "--",
        linewidth=1.2,
        markersize=5,
        label=label,
    )
