"""The tables of a report as text: numbers with their signs, digits and units; no HTML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis import tables
from analysis.ledger import ledger
from analysis.tables import Sweep
from meltr_ray.results.numbers import DASH, number

PLAIN_NAMES = {"meltr": "MELTR", "uniform": "uniform weights", "primary_only": "the primary loss alone", "best": "the best set"}
STATUSES = ("finished", "diverged", "failed", "stopped", "running")


def p_value(p: float) -> str:
    return DASH if not np.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.2g}"


def score(sweep: Sweep, value: Any, sign: bool = False) -> str:
    return number(value, sweep.metric.digits, sign)


def bracket(sweep: Sweep, low: float, high: float) -> str:
    return f"[{score(sweep, low, True)}, {score(sweep, high, True)}]" if np.isfinite([low, high]).all() else DASH


def plain_name(arm: str) -> str:
    return PLAIN_NAMES.get(arm, arm)


@dataclass
class Table:
    """Cells as text; a column is set right when it holds numbers or dashes only."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    kinds: list[str] = field(default_factory=list)
    """A kind of each row, for its colour; empty: none."""

    def numeric(self, column: int) -> bool:
        cells = [row[column] for row in self.rows if row[column] != DASH]
        return column > 0 and bool(cells) and all(set(cell) <= set("0123456789.+−±<% [],e-") for cell in cells)


def comparison_table(sweep: Sweep, how: str) -> Table | None:
    table = tables.comparisons(sweep, how)
    if table.empty:
        return None
    rows = [[
        baseline, str(r.n), score(sweep, r["first"]), score(sweep, r["second"]), score(sweep, r.difference, True),
        bracket(sweep, r.low, r.high), bracket(sweep, r.student_low, r.student_high), p_value(r.p), p_value(r.p_adjusted),
        p_value(r.least_p_adjusted), r.verdict,
    ] for baseline, r in table.iterrows()]  # fmt: skip
    lost = [f"against {baseline}, {text}" for baseline, r in table.iterrows() for text in r.lost]
    methods = " / ".join(sorted(set(table.interval[table.n > 0])))
    side = "" if sweep.metric.higher else f"Lower is better: a negative difference is in favour of {sweep.ours}. "
    return Table(
        f"{tables.HOW[how].capitalize()}",
        ["baseline", "pairs", sweep.ours, "baseline's", "difference", "95 % interval", "Student's", "p", "p, in order",
         "least p", "verdict"],
        rows, side + (f"Interval: {methods}. " if methods else "") + (f"Without a pair: {'; '.join(lost)}." if lost else ""),
    )  # fmt: skip


def leave_one_out_table(sweep: Sweep) -> Table | None:
    table = tables.leave_one_out(sweep)
    rows = [[
        f"{loss}{' (control)' * bool(r.control)}", str(r.n), score(sweep, r.difference, True), bracket(sweep, r.low, r.high),
        r.interval, bracket(sweep, r.student_low, r.student_high), p_value(r.p), r.verdict,
    ] for loss, r in table.iterrows()]  # fmt: skip
    header = ["without", "pairs", "contribution", "95 % interval or range", "which", "Student's", "p (not corrected)", "verdict"]
    side = "" if sweep.metric.higher else "Lower is better: the contribution of a loss that helps is negative."
    return Table("Contribution of each auxiliary loss", header, rows, side) if rows else None


def controls_table(sweep: Sweep) -> Table | None:
    rows = []
    for control, r in tables.controls(sweep).iterrows():
        left = r.contribution
        contribution = f"{score(sweep, left['difference'], True)} {bracket(sweep, left['low'], left['high'])}" if left else DASH
        spread = [f"[{number(low, 2)}, {number(high, 2)}]" if np.isfinite(low) else DASH for low, high in
                  ((r.low, r.high), (r.student_low, r.student_high))]  # fmt: skip
        rows.append([control, str(r.n), number(r.slope, 3), number(r.genuine, 3), number(r.ratio, 2), *spread, r.verdict,
                     contribution])  # fmt: skip
    header = ["control", "seeds", "slope", "mean genuine slope", "ratio", "95 % interval", "Student's", "verdict", "contribution"]
    return Table("Planted losses at the end of training", header, rows) if rows else None


def configurations_table(sweep: Sweep) -> Table:
    def with_sd(mean: float, sd: float) -> str:
        return score(sweep, mean) + (f" ± {score(sweep, sd)}" if np.isfinite(sd) else "")

    rows = [[
        arm, ", ".join(f"{r[status]}\u00a0{status}" for status in STATUSES if r[status]) or "none", with_sd(r.score, r.score_sd),
        with_sd(r.test_score, r.test_score_sd), f"{r.learning_rate:.3g}" if np.isfinite(r.learning_rate) else DASH,
        number(r.steps, 0), number(r.seconds_per_step, 3), number(100 * r.meta_share, 0), number(r.peak_memory_bytes / 1e9, 2),
        r.solver_outcomes.replace(" × ", "\u00a0×\u00a0") or DASH,
    ] for arm, r in tables.configurations(sweep).iterrows()]  # fmt: skip
    header = [
        "arm",
        "trials",
        "validation",
        "test",
        "learning rate",
        "steps",
        "s / step",
        "meta (%)",
        "memory (GB)",
        "solver outcomes",
    ]
    return Table("Every configuration", header, rows, "Scores: mean ± standard deviation over finished trials; validation at "
                 "the best step of each. Meta: share of the training time. Solver outcomes: counted over evaluations.")  # fmt: skip


def ledger_table(sweep: Sweep) -> Table | None:
    table = ledger(sweep)
    rows = [[phase.replace("_", " "), f"{r.trials:.0f}", f"{r.bad:.0f}", number(r.device_seconds / 60), number(r.device_seconds / r.trials), number(r.lost / 60)]
            for phase, r in table.iterrows()]  # fmt: skip
    rows += [
        [f"before this sweep, for {arm}", DASH, DASH, number(length / 60), DASH, DASH]
        for arm, length in sweep.plan.charged_seconds.items()
        if rows
    ]
    header = [
        "phase",
        "trials",
        "diverged or failed",
        "device-minutes",
        "device-seconds a trial",
        "device-minutes of diverged or failed trials",
    ]
    return (
        Table(
            "By phase",
            header,
            rows,
            "Device time of a trial: its whole time up to its last row, with start and evaluation, multiplied by its number of workers.",
        )
        if rows
        else None
    )


def settings_table(sweep: Sweep) -> Table | None:
    rows = [[arm, text] for arm, text in tables.settings_apart(sweep).items() if text]
    return Table(f"Settings that differ from those of {sweep.ours}", ["arm", "settings"], rows) if rows else None


def learning_rate_table(sweep: Sweep) -> Table | None:
    table = tables.learning_rate_search(sweep)
    rows = [[
        r.arm, f"{r.learning_rate:.3g}", str(r.n), str(r.not_finished), score(sweep, r.score),
        ("chosen, ON THE EDGE of the grid: a better value may lie outside" if r.edge else "chosen") if r.chosen else "",
    ] for _, r in table.iterrows()]  # fmt: skip
    return Table("Learning rates tried", ["arm", "learning rate", "seeds", "not finished", "validation", ""], rows) if rows else None


def sceptic_table(sweep: Sweep) -> Table:
    split, table = tables.sceptic(sweep)
    metrics = {name: metric for name, metric in sweep.metrics.items() if name in table}
    rows = []
    for what, r in table.iterrows():
        is_arm = r.n is not None and np.isfinite(r.n)
        bracket = f"[{score(sweep, r.low)}, {score(sweep, r.high)}]" if is_arm and "bootstrap" in r.interval else DASH
        others = (number(r[name], metric.digits) for name, metric in metrics.items())
        rows.append([what, f"{r.n:.0f}" if is_arm else DASH, score(sweep, r.score), bracket, *others])
    header = ["what", "seeds", sweep.label, "95 % interval", *(metric.shown(name) for name, metric in metrics.items())]
    return Table(f"On the {split} split", header, rows)


def not_finished_table(sweep: Sweep) -> Table | None:
    rows = [[name, r.arm, str(r.seed), r.status, number(r.step, 0), r.error if isinstance(r.error, str) else DASH]
            for name, r in tables.not_finished(sweep).iterrows()]  # fmt: skip
    return Table("", ["trial", "arm", "seed", "status", "step", "error"], rows) if rows else None
