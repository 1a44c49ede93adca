"""The figures of a screening: effects with their seeds, and what pairs of losses do together."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import plots
from analysis.effects import Effect
from analysis.screening import Screened

COLOURS = {"helps": "#009E73", "harms": "#D55E00", "none": "#666666", "undecided": "#999999", "depends": "#CC79A7"}
"""Kind of a verdict -> its colour, that of the page too."""


def effects(one: Screened) -> Figure:
    """A loss a row: seeds as dots, mean, interval, and the effect beside the primary and in the full set; the margin is shaded."""
    sweep, rows = one.sweep, one.found.effects
    figure, (axis,) = plots._figure(9, 1.3 + 0.62 * len(rows))
    axis.axvspan(-one.margin, one.margin, color="#F0F0F0", lw=0)
    for number, effect in enumerate(rows):
        _effect(axis, number, effect, one)
    plots._rows(axis, [effect.loss + " (control)" * effect.control for effect in rows])
    plots._zero(axis, sweep)
    axis.set_xlabel(f"Effect on validation {plots._difference_label(sweep)}; right of 0: the loss helps")
    handles = [axis.plot([], [], marker, color=plots.INK, ls="", ms=5.5, label=label) for marker, label in
               (("D", "judged (on average; a control: beside the primary)"), (">", "beside the primary"), ("<", "in the full set"))]  # fmt: skip
    figure.legend([handle[0] for handle in handles], [handle[0].get_label() for handle in handles], loc="outside upper center", ncols=3,
                  fontsize=9, frameon=False)  # fmt: skip
    return figure


def _effect(axis: Axes, row: int, effect: Effect, one: Screened) -> None:
    colour, shown = COLOURS[effect.kind], effect.shown
    if shown is None:
        return
    ends = np.array([one.own(shown.low), one.own(shown.high)])
    if np.isfinite(ends).all():
        axis.plot(ends, [row, row], color=colour, lw=5, alpha=0.45, solid_capstyle="butt")
    seeds = shown.per_seed[np.isfinite(shown.per_seed)]
    axis.plot(
        [one.own(value) for value in seeds], row + 0.27 + np.linspace(-0.06, 0.06, len(seeds)), "o", color=colour, ms=4.5, alpha=0.6, mew=0
    )
    axis.plot(one.own(shown.mean), row, "D", color=colour, ms=7)
    for estimate, marker in ((effect.beside, ">"), (effect.in_full, "<")):
        if estimate is not None:
            axis.plot(one.own(estimate.mean), row - 0.24, marker, color=plots.INK, ms=5, alpha=0.75, mew=0)


def interactions(one: Screened) -> Figure | None:
    """Pair by pair: what either loss gives with the other in, minus with the other out."""
    pairs, sweep = one.found.interactions, one.sweep
    if not pairs:
        return None
    figure, (axis,) = plots._figure(9, 1.2 + 0.42 * len(pairs))
    for row, pair in enumerate(pairs):
        ends = [one.own(pair.estimate.low), one.own(pair.estimate.high)]
        axis.plot(ends, [row, row], color=plots.OKABE_ITO[0], lw=1.4)
        axis.plot(one.own(pair.estimate.mean), row, "D", color=plots.OKABE_ITO[0], ms=6)
    plots._rows(axis, [" = ".join(f"{a} x {b}" for a, b in pair.pairs) for pair in pairs])
    plots._zero(axis, sweep)
    axis.set_xlabel(f"Change of either loss's effect by the other, {plots._difference_label(sweep)}")
    return figure


FIGURES = {"effects": effects, "interactions": interactions}
