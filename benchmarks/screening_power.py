"""How often a screening decides, printed as the table of docs/screening.md: simulated, no training, half a minute.

    python -m benchmarks.screening_power

A trial's noise is 1.5 points, the margin 1.5. One loss has the effect of the column, the others none; one control costs 13 points beside
the primary and 6 in the full set, and 5 more or less by seed. Power is that of this one loss, with all intervals of the table holding
together; "no difference" is that of another loss, which does nothing, at the margin and at one of 2. Beside: intervals of Student with each effect's own spread,
adjusted by Sidak, from the same scores.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from analysis import contrasts
from analysis.simultaneous import LEVEL
from tests.screenings import Truth, analyse
from tune_spaces import designs

MARGINS = (1.5, 2.0)
EFFECTS = (1.5, 3.0, 4.5)
BY_SEED = (0.0, 0.75, 1.5)
DESIGNS = [(2, "full", 6), (3, "full", 6), (4, "full", 3), (4, "full", 6), (4, "half", 12), (4, "full", 12), (5, "full", 6), (6, "full", 6)]
COUNT = 2000
HEADER = """\
| losses | rows | seeds | varies by seed | half-width | helps, 1.5 | helps, 3 | helps, 4.5 | no difference | of 2 | Student: half-width | helps, 3 | no difference | of 2 |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


def row(losses: int, kind: str, seeds: int, by_seed: float) -> str:
    design = designs.of(kind, [f"loss{i}" for i in range(losses)])
    ours, student = [], []
    for effect in EFFECTS:
        truth = Truth(design, [effect] + [0.0] * (losses - 1), {}, by_seed=[by_seed] * losses)
        values, control = truth.draw(COUNT, seeds, np.random.default_rng(0))
        found = analyse(truth, values, control)
        ours.append((found.low[:, :losses], found.high[:, :losses]))
        student.append(with_students(design, values, found.low.shape[1]))
    cells = [losses, len(design.rows), seeds, f"{by_seed:g}"]
    for intervals, shown in ((ours, EFFECTS), (student, (3.0,))):
        low, high = intervals[0]
        cells.append(f"{np.median((high - low)[:, 0]) / 2:.1f}")
        cells += [f"{100 * (low[:, 0] > 0).mean():.0f} %" for effect, (low, _) in zip(EFFECTS, intervals) if effect in shown]
        cells += [f"{100 * ((low[:, 1] > -margin) & (high[:, 1] < margin)).mean():.0f} %" for margin in MARGINS]
    return f"| {' | '.join(map(str, cells))} |"


def with_students(design: designs.Design, values: np.ndarray, family: int) -> tuple[np.ndarray, np.ndarray]:
    """Intervals (COUNT, T) of the averages among `family` effects."""
    per_seed = values @ np.array([contrasts.average(design, loss) for loss in design.losses]).T
    seeds = values.shape[1]
    half = stats.t.ppf((1 + (1 - LEVEL) ** (1 / family)) / 2, seeds - 1) * per_seed.std(1, ddof=1) / np.sqrt(seeds)
    return per_seed.mean(1) - half, per_seed.mean(1) + half


if __name__ == "__main__":
    print(HEADER)
    for losses, kind, seeds in DESIGNS:
        for by_seed in BY_SEED:
            print(row(losses, kind, seeds, by_seed), flush=True)
