"""The figures of a report: one function each, from a sweep to a Figure, or to None where there is nothing to draw."""

from __future__ import annotations

import itertools

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import tables
from analysis.screening_text import count
from analysis.tables import Sweep
from meltr_ray.results.numbers import measured

OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#5D3A9B"]
"""Okabe and Ito's palette, safe for the colour-blind; its yellow, too pale for lines on white, is replaced."""
INK, FAINT = "#222222", "#999999"
DASHES = ["--", ":", "-."]
DOTS_PER_INCH = 144
AWAY = 0.5
"""Baselines that lie further from the curves, as a share of the curves' range, are named at the edge: to scale they would squeeze the curves."""
PANELS = 4
"""Beside each other in a figure; more stand below."""
STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#666666", "axes.grid": True,
    "grid.color": "#E6E6E6", "grid.linewidth": 0.7, "axes.axisbelow": True,
}  # fmt: skip


def _figure(width: float, height: float, columns: int = 1, rows: int = 1, **keywords) -> tuple[Figure, list[Axes]]:
    with matplotlib.rc_context(STYLE):  # Figure, not pyplot: no display, nothing global left behind
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        axes = figure.subplots(rows, columns, squeeze=False, **keywords).ravel()
        for axis in axes:
            axis.tick_params(length=3, color="#666666")
    return figure, list(axes)


def _title(axis: Axes, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=10.5, fontweight="bold")


def _colour(sweep: Sweep, arm: str) -> str:
    """The same colour for an arm in every figure."""
    names = tables.arms(sweep)
    return OKABE_ITO[names.index(arm) % len(OKABE_ITO)] if arm in names else FAINT


def _score_label(sweep: Sweep) -> str:
    return sweep.label + (f" ({sweep.metric.unit})" if sweep.metric.unit else "") + sweep.better


def _difference_label(sweep: Sweep) -> str:
    return (
        sweep.label + (f" ({sweep.points})" if sweep.points else "") + ("" if sweep.metric.higher else ", axis reversed as lower is better")
    )


def _rows(axis: Axes, labels: list[str]) -> None:
    """Name the rows of a horizontal plot, the first on top."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(False, axis="y")


def _interval(axis: Axes, row: float, result, values: pd.Series, colour: str) -> None:
    """Thick bar: bootstrap interval; thin bar: Student's; diamond: mean; dots: the pairs."""
    spread = np.linspace(-0.08, 0.08, len(values)) if len(values) > 1 else np.zeros(1)
    axis.plot(values, row + 0.24 + spread, "o", color=colour, ms=4.5, alpha=0.55, mew=0)
    if np.isfinite(result.student_low):
        axis.plot([result.student_low, result.student_high], [row, row], color=colour, lw=1.2)
    if "bootstrap" in result.interval:
        axis.plot([result.low, result.high], [row, row], color=colour, lw=5, alpha=0.45, solid_capstyle="butt")
    axis.plot(result.difference, row, "D", color=colour, ms=6.5)


def _zero(axis: Axes, sweep: Sweep) -> None:
    """A line at 0, better to its right whatever the metric's direction."""
    axis.axvline(0, color=INK, lw=1)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -0.05 * (high - low)), max(high, 0.05 * (high - low)))
    axis.xaxis.set_inverted(not sweep.metric.higher)


def paired_differences(sweep: Sweep) -> Figure | None:
    """Each seed's difference between `ours` and a baseline, with mean and interval, for each way of comparing."""
    found = {how: table for how in tables.HOW if len(table := tables.comparisons(sweep, how)) and table.n.any()}
    if not found:
        return None
    baselines = sweep.compared[1:]
    columns = min(len(baselines), PANELS)
    rows = -(-len(baselines) // columns)
    figure, axes = _figure(9, (1.1 + 0.75 * len(tables.HOW)) * rows, columns, rows, sharey=True)
    for axis in axes[len(baselines) :]:
        axis.set_axis_off()
    for axis, baseline in zip(axes, baselines):
        for row, (how, _name) in enumerate(tables.HOW.items()):
            if how in found and found[how].n[baseline]:
                values = tables.differences(tables.pairs(sweep, sweep.ours, baseline, how))
                _interval(axis, row, found[how].loc[baseline], values, OKABE_ITO[row])
            else:
                axis.text(0.5, row, "no pairs", color=FAINT, ha="center", transform=axis.get_yaxis_transform())
        _rows(axis, [text.replace(", ", ",\n") for text in tables.HOW.values()])
        _title(axis, f"{sweep.ours} − {baseline}" if columns < PANELS else f"{sweep.ours} −\n{baseline}")
    for axis in axes[: len(baselines)]:
        _zero(axis, sweep)
    figure.supxlabel(f"Difference in {_difference_label(sweep)}; right of 0: {sweep.ours} is better", fontsize=10)
    return figure


def _steps(axis: Axes) -> None:
    """Name an axis of steps, of which there are whole ones only."""
    axis.set_xlabel("Optimiser steps")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def learning_curves(sweep: Sweep) -> Figure | None:
    """Validation score of the compared arms over steps and over seconds: thin lines seeds, thick line their mean."""
    figure, axes = _figure(9, 4, 2, sharey=True)
    drawn: list[float] = []
    for axis, column in zip(axes, ("step", "seconds")):
        for arm in sweep.compared:
            colour, mine = _colour(sweep, arm), tables.arm_trials(sweep, arm)
            names = mine.trial[mine.status == "finished"]
            rows = sweep.rows[sweep.rows.trial.isin(names) & (sweep.rows.split == "validation")].dropna(subset=["score", column])
            for _, one in rows.sort_values("step").groupby("trial"):
                axis.plot(one[column], sweep.metric.score(one.score), color=colour, lw=0.7, alpha=0.35)
            by_step = rows.groupby("step")
            mean = by_step[["seconds", "score"]].mean()[by_step.trial.nunique() == len(names)]
            drawn += sweep.metric.score(rows.score[np.isfinite(rows.score)]).tolist()
            axis.plot(mean.index if column == "step" else mean.seconds, sweep.metric.score(mean.score), color=colour, lw=2.3, marker="o", ms=3.5,
                      label=f"{arm} (n = {len(names)})")  # fmt: skip
        axis.set_xlim(left=0)
    if not drawn:
        return None
    _steps(axes[0])
    axes[1].set_xlabel("Training time (s)")
    _draw_floors(sweep, axes, min(drawn), max(drawn))
    axes[0].set_ylabel(f"Validation {_score_label(sweep)}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return figure


def _draw_floors(sweep: Sweep, axes: list[Axes], low: float, high: float) -> None:
    """A line each; of those too far from curves between `low` and `high`, the value at the edge that they lie beyond."""
    room = AWAY * ((high - low) or abs(high) or 1.0)
    floors = _floors(sweep)
    near = [value for value in floors.values() if low - room <= value <= high + room]
    beyond: dict[str, list[str]] = {"above": [], "below": []}
    for (name, value), dash in zip(floors.items(), DASHES):
        if value in near:
            for axis in axes:
                axis.axhline(value, color=INK, lw=1.1, ls=dash, label=name)
            continue
        side = "above" if value > high else "below"
        beyond[side].append(name)
        axes[0].plot([], [], color=INK, lw=1.1, ls=dash, label=f"{name}: {measured(sweep.metric, value)}, {side} what is shown")
    for (names, arrow, height, end), axis in itertools.product(
        ((beyond["above"], "↑", 0.98, "top"), (beyond["below"], "↓", 0.02, "bottom")), axes
    ):
        if names:
            axis.text(0.99, height, f"{', '.join(names)} {arrow}", color=INK, fontsize=8.5, ha="right", va=end, transform=axis.transAxes)
    pad = 0.1 * (max([high, *near]) - min([low, *near]))
    if pad:
        axes[0].set_ylim(min([low, *near]) - pad, max([high, *near]) + pad)


def _floors(sweep: Sweep) -> dict[str, float]:
    """Chance, the constant answer and the best closed form on validation, as far as they are known."""
    known, metric = sweep.baselines.get("validation", {}), next(iter(sweep.metrics))
    known = {name: values[metric] for name, values in known.items() if metric in values}
    plain = {name: known.pop(name) for name in ("chance", "constant") if name in known}
    best = max(known, key=lambda name: sweep.metric.score(known[name]), default=None)
    return plain | ({best: known[best]} if best else {})


def slopes(sweep: Sweep) -> Figure | None:
    """Slope of each loss over training: mean over the seeds, band from the least to the greatest; controls dashed."""
    table, (primary, genuine, planted) = tables.slopes(sweep), tables.losses_of(sweep)
    if table.empty or tables.are_fixed(table):
        return None
    figure, (axis,) = _figure(9, 4.2)
    lines = [(primary, INK, "-"), *((loss, colour, "-") for loss, colour in zip(genuine, OKABE_ITO)),
             *((loss, "#777777", dash) for loss, dash in zip(planted, DASHES))]  # fmt: skip
    axis.axhline(0, color=INK, lw=0.8)
    for loss, colour, dash in lines:
        over = table.groupby("step")[loss]
        mean, role = over.mean(), {primary: " (primary)"}.get(loss, " (control)" if loss in planted else "")
        axis.fill_between(mean.index, over.min(), over.max(), color=colour, alpha=0.13, lw=0)
        axis.plot(mean.index, mean, color=colour, ls=dash, lw=2, label=f"{loss}{role}")
    handles, labels = axis.get_legend_handles_labels()
    order = np.argsort([-table.groupby("step")[loss].mean().iloc[-1] for loss, *_ in lines])
    figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside right center", frameon=False,
                  title="highest at the end first", title_fontsize=9)  # fmt: skip
    _steps(axis)
    axis.set_ylabel("Slope d g(l) / d l")
    _title(axis, f"{sweep.ours}, {count(table.seed.nunique(), 'seed')}")
    return figure


def leave_one_out(sweep: Sweep) -> Figure | None:
    """Forest plot of the contribution of each auxiliary loss."""
    table = tables.leave_one_out(sweep)
    table = table[table.n > 0] if len(table) else table
    if table.empty:
        return None
    figure, (axis,) = _figure(9, 1.1 + 0.62 * len(table))
    for row, (loss, result) in enumerate(table.iterrows()):
        values = tables.differences(tables.pairs(sweep, sweep.ours, f"{sweep.ours}_without_{loss}", "steps"))
        _interval(axis, row, result, values, OKABE_ITO[1] if result.control else OKABE_ITO[0])
    _rows(axis, [f"{loss}{' (control)' * bool(one.control)}, n = {one.n}" for loss, one in table.iterrows()])
    _zero(axis, sweep)
    axis.set_xlabel(f"Contribution to validation {_difference_label(sweep)}; right of 0: leaving the loss out hurts")
    return figure


def cost(sweep: Sweep) -> Figure | None:
    """Time for a step, its share in meta steps, and the peak memory of each configuration."""
    table = tables.configurations(sweep)
    table = table[table.seconds_per_step.notna()]
    if table.empty:
        return None
    figure, (time, memory) = _figure(9, 1.3 + 0.36 * len(table), 2, sharey=True)
    rows, meta = np.arange(len(table)), table.seconds_per_step * table.meta_share.fillna(0)
    time.barh(rows, table.seconds_per_step - meta, color=OKABE_ITO[0], height=0.6, label="inner step")
    time.barh(rows, meta, left=table.seconds_per_step - meta, color=OKABE_ITO[4], height=0.6, hatch="///", edgecolor="white",
              lw=0, label="meta step, spread over the steps")  # fmt: skip
    memory.barh(rows, table.peak_memory_bytes / 1e9, color=FAINT, height=0.6)
    time.set_xlabel("Time of a step (s)")
    memory.set_xlabel("Peak memory of worker 0 (GB)")
    for axis in (time, memory):
        _rows(axis, list(table.index))
    figure.legend(*time.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure


def learning_rate_search(sweep: Sweep) -> Figure | None:
    """Validation score against learning rate for each arm; a ring marks the value that was chosen."""
    table = tables.learning_rate_search(sweep)
    if table.empty or table.score.isna().all():
        return None
    figure, (axis,) = _figure(9, 3.6)
    for index, (arm, part) in enumerate(table.groupby("arm")):
        colour, marker, part = _colour(sweep, arm), "os^Dv<>P"[index % 8], part.sort_values("learning_rate")
        axis.plot(part.learning_rate, part.score, color=colour, marker=marker, ms=5, lw=1.8, label=arm)
        axis.vlines(part.learning_rate, part.least, part.greatest, color=colour, lw=1)
        picked = part[part.chosen]
        axis.plot(picked.learning_rate, picked.score, "o", ms=13, mfc="none", mec=colour, mew=1.6)
    axis.set_xscale("log")
    grid = sorted(table.learning_rate.unique())
    axis.set_xticks(grid, [f"{rate:g}" for rate in grid])
    axis.minorticks_off()
    axis.set(xlabel="Learning rate of w (log scale); ring: chosen", ylabel=f"Validation {_score_label(sweep)}")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


FIGURES = {
    "paired_differences": paired_differences,
    "learning_curves": learning_curves,
    "leave_one_out": leave_one_out,
    "slopes": slopes,
    "cost": cost,
    "learning_rate_search": learning_rate_search,
}
