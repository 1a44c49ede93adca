"""Which horizon foresaw the end, over several tasks, as one figure.

    python -m analysis.foresight docs/horizon_agreement.png outputs/horizon/which_losses outputs/horizon/mosi ...

A panel a folder of `python -m benchmarks.horizon ... screening=<folder>`, a row a measure: Kendall's tau of its gains with a screening's final effects,
the mean over the places where it was measured and its 95 % interval; pale dots: each place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import plots
from analysis.drawing import draw
from meltr_ray.errors import check

NAMES = {"identity": "one step, identity", "cg": "one step, CG", "loss_space": "one step, loss space"}
KINDS = {"ahead": "look-ahead, K =", "oracle": "exact derivative, K ="}


def name_of(measure: str) -> str:
    kind, _, steps = measure.rpartition("_")
    return NAMES.get(measure) or f"{KINDS[kind]} {steps}"


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(a row a measure, a row a measure and place).

    Raises:
        ConfigError: the folder has no comparison with a screening.
    """
    overall, places = folder / "overall.csv", folder / "agreement.csv"
    check(
        overall.is_file() and places.is_file(),
        "folder",
        folder,
        "has no overall.csv; name one that benchmarks.horizon wrote with screening=",
    )
    return pd.read_csv(overall), pd.read_csv(places)


def figure(tasks: dict[str, tuple[pd.DataFrame, pd.DataFrame]]) -> Figure:
    columns = min(len(tasks), 2)
    rows = -(-len(tasks) // columns)
    drawn, axes = plots._figure(4.8 * columns + 1, 0.5 + 2.6 * rows, columns, rows, sharex=True)
    for axis, (name, (overall, places)) in zip(axes, tasks.items()):
        for row, one in enumerate(overall[::-1].itertuples()):
            of_one = places[places.measure == one.measure].tau
            axis.plot(of_one, [row] * len(of_one), "o", color=plots.FAINT, ms=4, alpha=0.5, mew=0)
            axis.plot([one.low, one.high], [row] * 2, color=plots.OKABE_ITO[0], lw=2)
            axis.plot(one.tau, row, "o", color=plots.OKABE_ITO[0], ms=7)
        axis.axvline(0, color="black", lw=1)
        axis.set_xlim(-1.06, 1.06)
        axis.set_yticks(range(len(overall)), [name_of(measure) for measure in overall.measure[::-1]])
        plots._title(axis, name)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    drawn.supxlabel("Kendall's tau with the final effects: 1 foresees their order, 0 says nothing", fontsize="medium")
    return drawn


def main(arguments: Sequence[str]) -> int:
    return draw(__doc__, arguments, lambda folders: figure({Path(folder).name: read(Path(folder)) for folder in folders}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
