"""How far a way to combine losses is from the best fixed weights, over several tasks, in units of each task's margin.

    python -m analysis.regret outputs/sweeps/tryout outputs/sweeps/tryout_mosi ...

Of each sweep: which of its arms with fixed weights and as many steps is the best on validation, and how much better than it `ours` is on test,
paired by seed. Over the tasks: the mean, its error from those of the tasks (their seeds are independent), degrees of freedom by Welch and
Satterthwaite.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis import cells, statistics, tables
from analysis.records import Sweep, arm_trials, load_all
from meltr_ray.errors import ConfigError, check

RIVALS = ("screened", "tuned", "uniform", "primary_only")
"""Arms with fixed weights; those that a sweep compares."""
TARGET = -1.0
"""The lower bound of the mean that says `no worse than the best fixed weights`: a margin."""


@dataclass(frozen=True)
class Task:
    """Of one sweep."""

    name: str
    rival: str
    """The best on validation."""
    differences: np.ndarray
    """(seeds,): `ours` minus the rival on test, in margins, above 0: better."""

    @property
    def mean(self) -> float:
        return float(self.differences.mean())

    @property
    def variance(self) -> float:
        """Of the mean."""
        return float(self.differences.var(ddof=1) / len(self.differences))


def of_sweep(sweep: Sweep, name: str) -> Task:
    """Raises ConfigError where nothing can be compared."""
    rivals = [arm for arm in sweep.compared if arm in RIVALS]
    check(len(rivals) > 0, "sweep", name, f"compares none of {', '.join(RIVALS)}; name a sweep that does")
    trials = {arm: (mine := arm_trials(sweep, arm))[mine.status == "finished"] for arm in rivals}
    sign = 1 if sweep.metric.higher else -1
    rival = max((arm for arm in rivals if len(trials[arm])), key=lambda arm: sign * trials[arm].score.mean(), default=None)
    check(rival is not None, "sweep", name, "has no finished trial of these arms; let it go on")
    found = sign * tables.differences(tables.pairs(sweep, sweep.ours, rival, "test")) / sweep.margin
    check(len(found) >= 2, "sweep", name, f"has fewer than two pairs of {sweep.ours} and {rival} with a score on test; let it go on")
    return Task(name, rival, found.to_numpy())


def mean_over(tasks: Sequence[Task]) -> tuple[float, float, float]:
    """(mean over tasks, low, high), 95 %."""
    means, variances = (np.array([getattr(task, name) for task in tasks]) for name in ("mean", "variance"))
    error = np.sqrt(variances.sum()) / len(tasks)
    spread = (variances**2 / np.array([len(task.differences) - 1 for task in tasks])).sum()
    freedom = variances.sum() ** 2 / spread if spread > 0 else 1.0
    half = error * stats.t.ppf((1 + statistics.CONFIDENCE) / 2, freedom)
    return means.mean(), means.mean() - half, means.mean() + half


def markdown(tasks: Sequence[Task], ours: str) -> str:
    """A line a task, then the mean and what it says of the target."""
    lines = [f"| task | best on validation | {ours} minus it on test, margins | 95 % | seeds |", "|---|---|---|---|---|"]
    for task in tasks:
        low, high = statistics.student_interval(task.differences)
        lines.append(
            f"| {task.name} | {cells.plain_name(task.rival)} | {task.mean:+.2f} | [{low:+.2f}, {high:+.2f}] | {len(task.differences)} |"
        )
    mean, low, high = mean_over(tasks)
    worse = [task.name for task in tasks if statistics.student_interval(task.differences)[1] < 0]
    lines += [
        f"| mean over {len(tasks)} | | {mean:+.2f} | [{low:+.2f}, {high:+.2f}] | |",
        "",
        f"Lower bound above {TARGET:g}: {'yes' if low > TARGET else 'no'}. Significantly worse than the best on: {', '.join(worse) or 'no task'}.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        sweeps = load_all(arguments)
        print(markdown([of_sweep(sweep, name) for name, sweep in sweeps.items()], next(iter(sweeps.values())).ours))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
