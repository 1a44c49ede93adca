"""The report of a sweep: `report.html`, which opens with the answer, and `plots/*.png`.

    python -m analysis.report outputs/sweeps/<name>

Works on a running or broken sweep too, and says what is missing.
"""

from __future__ import annotations

import base64
import io
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import agreement, cells, effect_plots, pages, plots, screening, space, statistics, tables
from analysis.chosen import chosen_table
from analysis.leaders import leaders_table, sentences
from analysis.methods import methods
from analysis.screening_text import count
from analysis.signals import signals_table
from analysis.standing import standing_table
from analysis.tables import Sweep
from meltr_ray.errors import ConfigError
from meltr_ray.storage import disk, put


def _finding(sweep: Sweep, how: str, table: pd.DataFrame, baseline: str) -> str:
    """One comparison in one sentence."""
    result, where = table.loc[baseline], "" if how == "test" else f" ({tables.HOW[how]})"
    who = f"{cells.plain_name(sweep.ours)} against {cells.plain_name(baseline)}{where}"
    if not result.n:
        return f"{who}: no pair of finished trials with the same seed yet, so no finding."
    difference = f"{cells.score(sweep, result.difference, True)} {sweep.points}".strip()
    bracket = cells.bracket(sweep, result.low, result.high) if "bootstrap" in result.interval else "(too few for an interval)"
    pairs, p = count(result.n, "pair"), cells.p_value(result.p_adjusted)
    after = table.index.get_loc(baseline)
    corrected = f" tested after {cells.plain_name(table.index[after - 1])}" if after else ""
    p = p if "<" in p else f"= {p}"
    return f"{who}: {sweep.label}{sweep.better} {difference} {bracket}, n = {pairs}, p {p}{corrected}: {result.verdict}."


def answer(sweep: Sweep) -> list[str]:
    """The findings in plain words, the headline first."""
    if sweep.screened:
        one = screening.screened(sweep)
        return [screening.best_sentence(one) if one else "No seed of the screening is done yet, so no finding."]
    how, table = tables.headline_comparison(sweep)
    if table.empty:
        return [f"{cells.plain_name(sweep.ours)}: the sweep names no baseline to compare with, so no finding."]
    few = table.index if len(table) <= MOST_FINDINGS else table.index[:MOST_FINDINGS]
    lines = [_finding(sweep, how, table, baseline) for baseline in few]
    seconds = tables.comparisons(sweep, "seconds")
    if seconds.n.iloc[0]:
        lines.insert(1, _finding(sweep, "seconds", seconds, table.index[0]))
    if more := len(table) - len(few):
        lines.append(f"{count(more, 'more baseline')}: see the tables, the first of which says where each arm ends.")
    if sweep.plan.leaders:
        lines = [*sentences(sweep), *lines,
                 "The test split is scored only in the leaders' runs on fresh seeds; all other scores are on validation."]  # fmt: skip
    elif table.n.iloc[0] and how != "test":
        lines.append("No pair of trials has test scores yet; validation scores are shown in their place.")
    n, least = table.n.iloc[0], table.least_p_adjusted.iloc[0]
    if n and least >= statistics.SIGNIFICANCE:
        lines.append(f"With {count(n, 'pair')}, p can't fall below {cells.p_value(least)}. So only the verdict "
                     "inconclusive was possible; more seeds are needed for another.")  # fmt: skip
    return lines


def headline(folder: str | Path) -> str:
    """The finding for the terminal: one line, or the table of a screening and its sentence."""
    sweep = tables.load(folder)
    one = screening.screened(sweep) if sweep.screened else None
    return screening.text(one) if one else answer(sweep)[0]


@dataclass
class Section:
    """One heading of the page."""

    title: str
    texts: list[str] = field(default_factory=list)
    figure: str | None = None
    """Its name among the figures; what no section names isn't drawn."""
    caption: str = ""
    tables: list[cells.Table | None] = field(default_factory=list)
    items: list[str] = field(default_factory=list)


UNREAD = 128 + signal.SIGPIPE
"""Exit code where whoever read the output has gone: `| head`."""
MOST_FINDINGS = 4
"""Comparisons that the answer names; of more, the rest stand in the tables alone."""
AGREES = (
    "A loss's slope is its weight in the training loss. Says: whether the arm gave the loss a larger or a smaller slope than the primary. Agrees: yes if the slope is "
    "larger for a loss that helps, or smaller for a loss that harms; empty if the loss's verdict is not sure. "
    "A slope is not an importance: it multiplies a loss whose gradient may be large, small or zero. Share of the step: the loss's share of the last step's change of "
    "the training loss, to first order, a_t <g_t, g> / <g, g>."
)
EFFECTS = (
    "Effect of each loss on the metric. Dots: seeds. Diamond: the mean from which the verdict is read. Bar: its 95 % interval; with 95 % confidence all intervals of the "
    "table are right. Triangles: the effect beside the primary alone, and in the full set. Shaded: differences below the margin, which count as none."
)


def _controls_words(sweep: Sweep) -> list[str]:
    found = tables.controls(sweep)
    if found.empty:
        return [f"The loss set of {sweep.ours} has no planted control."]
    return [
        f"{control}: {r.verdict} (its slope is {cells.number(r.ratio, 2)} of the mean genuine one"
        + (": negative, so training raises this loss where it can)." if r.ratio < 0 else ").")
        for control, r in found.iterrows()
    ]


def _floors(sweep: Sweep) -> dict[str, bool]:
    """Sentence -> whether `ours` clears chance or ridge, judged by its interval, not its mean."""
    split, table = tables.sceptic(sweep)
    mine, found = table.loc[sweep.ours], {}
    for name in sweep.baselines.get(split, {}):
        floor = table.score[name]
        if np.isfinite([mine.score, floor]).all():
            above, below = mine.low > floor, mine.high < floor
            clears, fails = (above, below) if sweep.metric.higher else (below, above)
            side = "above" if above else "below"
            what = "interval of the mean" if "bootstrap" in mine.interval else "range of the seeds" if mine.n > 1 else "one seed"
            lies = "lies" if what == "one seed" else "lies wholly"
            ends = f"{lies} {side if clears else side.upper()}" if clears or fails else "DOES NOT CLEAR"
            means = f"{cells.score(sweep, mine.score)} against {cells.score(sweep, floor)}"
            found[f'On {split}, the {what} of {cells.plain_name(sweep.ours)} {ends} the baseline "{name}": {means}{sweep.better}.'] = clears
    return found


def sections(sweep: Sweep, one: screening.Screened | None) -> list[Section]:
    """The page after the answer; a part without data says so or is left out."""
    if sweep.screened:
        return [*_of_screening(sweep, one), *_of_any(sweep)]
    tests = [cells.comparison_table(sweep, how) for how in tables.HOW]
    bars = "Dots: seeds. Diamond: mean. Thick bar: 95 % bootstrap interval. Thin bar: Student's."
    return [
        Section("Every arm", tables=[leaders_table(sweep), standing_table(sweep)]),
        Section("Against the baselines", figure="paired_differences", tables=tests,
                caption=f"Paired differences, {sweep.ours} minus baseline; each panel has its own scale. {bars}"),
        *_curves_and_floors(sweep),
        Section("Which losses help", figure="leave_one_out", tables=[cells.leave_one_out_table(sweep)],
                caption=f"{sweep.ours} minus {sweep.ours} without it, paired by seed. "
                        f"{'Positive' if sweep.metric.higher else 'Negative'}: leaving it out hurts. {bars}"),
        _combined(sweep),
        *_of_any(sweep),
    ]  # fmt: skip


def _combined(sweep: Sweep) -> Section:
    title, table = "What the combiner does with them", cells.controls_table(sweep)
    if tables.are_fixed(tables.slopes(sweep)):
        return Section(title, ["No slope changes between evaluations, so none is drawn.", *_controls_words(sweep)], tables=[table])
    return Section(title, _controls_words(sweep), "slopes",
                   "Slope (weight) of each loss over training: mean, and band from the least to the greatest seed. Dashed: planted controls.",
                   [table])  # fmt: skip


def _learned(one: screening.Screened, arm: str) -> Section:
    """What an arm that learns its weights said of each loss."""
    sweep, found = one.sweep, agreement.agreement(one, arm)
    rows = [[loss, str(r.seeds), cells.number(r.ratio, 2), f"[{cells.number(r.low, 2)}, {cells.number(r.high, 2)}]", r.says,
             cells.number(100 * r.share, 0), cells.score(sweep, r.effect, True),
             r.verdict, "" if r.agrees is None else "yes" if r.agrees else "no"] for loss, r in found.iterrows()]  # fmt: skip
    header = ["loss", "seeds", "slope over the primary's", "95 %", "says", "share of the step (%)", "effect", "verdict", "agrees"]
    text = agreement.in_words(found, cells.plain_name(arm))
    return Section(
        f"What {cells.plain_name(arm)} said of them", [text], tables=[cells.Table("At the end of training", header, rows, AGREES)]
    )


def _of_screening(sweep: Sweep, one: screening.Screened | None) -> list[Section]:
    found = [Section("Pairs of losses", figure="interactions", caption="Interaction of two losses: the effect of one loss with the other in the set, minus "
                     "its effect with the other out, on average over all other losses. Bars: 95 % intervals, each for itself.")] if one and one.found.interactions else []  # fmt: skip
    found += [_learned(one, arm) for arm in sweep.plan.arms if one and len(tables.slopes(sweep, arm))]
    if not sweep.confirmed:
        return [*found, *_curves_and_floors(sweep)]
    tests = [cells.comparison_table(sweep, how) for how in tables.HOW]
    return [*found, Section("Confirmation on fresh seeds", figure="paired_differences", tables=tests,
                            caption="Paired differences, the best set minus each of the others; each panel has its own scale."),
            *_curves_and_floors(sweep)]  # fmt: skip


def _curves_and_floors(sweep: Sweep) -> list[Section]:
    split, _ = tables.sceptic(sweep)
    unknown = (
        f"{cells.plain_name(sweep.ours)} has no score yet."
        if sweep.baselines.get(split)
        else f"Chance and closed forms are not known for {split}."
    )
    return [
        Section("Learning curves", figure="learning_curves",
                caption="Validation score over steps and over training time. Thin lines: seeds. Thick lines: means over finished trials."),
        Section("For the sceptic", list(_floors(sweep)) or [unknown], tables=[cells.sceptic_table(sweep)]),
    ]  # fmt: skip


def _of_any(sweep: Sweep) -> list[Section]:
    seen = signals_table(sweep)
    return [
        *([Section("What held-out batches said", tables=[seen])] if seen else []),
        Section("What it cost", tables=[cells.ledger_table(sweep)]),
        Section("Configurations and their cost", figure="cost",
                tables=[cells.configurations_table(sweep), cells.settings_table(sweep)],
                caption="Time of a step, mean over finished trials, and the largest peak memory among them."),
        _searched(sweep),
        *_space(sweep),
        Section("Trials that did not finish", [] if len(tables.not_finished(sweep)) else ["None."],
                tables=[cells.not_finished_table(sweep)]),
        Section("How the numbers were made", items=methods(sweep)),
        Section("Where and when", items=_environment(sweep)),
    ]  # fmt: skip


def _searched(sweep: Sweep) -> Section:
    if sweep.plan.budget_each:
        table = chosen_table(sweep)
        return Section("Settings that each arm chose", [] if table else ["No search has ended yet."], tables=[table])
    searched = sweep.plan.learning_rates or "learning_rate_search" in set(sweep.trials.phase)
    return Section(
        "Learning rates",
        [] if searched else ["No learning rate was searched."],
        "learning_rate_search",
        "The same grid for each arm. Bars: from the least to the greatest seed. Ring: the chosen rate." if searched else "",
        [cells.learning_rate_table(sweep)],
    )


def _space(sweep: Sweep) -> list[Section]:
    if not space.has_search(sweep):
        return []
    told = space.importance_table(sweep)
    few = (
        f"Fewer than {space.LEAST} configurations have ended, or optuna isn't installed, so it isn't known how much each setting mattered."
    )
    return [Section("Which settings mattered", [] if told else [few], "parallel_coordinates", space.CAPTION,
                    [told, space.best_table(sweep)])]  # fmt: skip


def _grown(sweep: Sweep) -> list[str]:
    """What was added to a sweep that had results, and what that does to its findings."""
    steps = sweep.about.get("grown") or []
    found = [
        f"{name} from {_listed(before)} to {_listed(now)} on {one['when'][:10]}"
        for one in steps
        for name, (before, now) in one["what"].items()
    ]
    if not found:
        return []
    unsound = any("sweep.seeds" in one["what"] for one in steps)
    return ["The sweep was extended after results were known: " + "; ".join(found) + "."
            + (" Seeds that were added after a look make p-values too small and intervals too short." if unsound else "")]  # fmt: skip


def _listed(value: Any) -> str:
    return count(len(value), "arm") if isinstance(value, list) else str(value)


def _environment(sweep: Sweep) -> list[str]:
    about, data = sweep.about, sweep.about.get("data") or {}
    rows = data.get("rows")
    rows = ", ".join(f"{split} {count}" for split, count in rows.items()) if isinstance(rows, dict) else rows
    facts = {name: about.get(name) for name in ("command", "workload", "machine", "started", "ended")}
    facts |= {"data": data.get("name"), "about the data": data.get("description"), "examples": rows}
    facts["model"] = data.get("model") or about.get("backbone")
    return [f"{name}: {value}" for name, value in facts.items() if value]


def _facts(sweep: Sweep) -> str:
    trials = [*sweep.trials.status, *[sweep.status_unevaluated] * len(sweep.unevaluated)]
    state = ", ".join(f"{trials.count(status)} {status}" for status in cells.STATUSES if status in trials)
    data = (sweep.about.get("data") or {}).get("name")
    when = f"ended {sweep.about['ended']}" if sweep.about.get("ended") else "not ended yet"
    parts = [f"{count(len(trials), 'trial')} ({state or 'none yet'})", data and f"data: {data}", when]
    return " · ".join(part for part in parts if part)


def _figures(sweep: Sweep, one: screening.Screened | None, shown: set[str | None]) -> Iterator[tuple[str, Figure | None]]:
    """Every figure by its name; None where no section shows it, or there is nothing to draw."""
    for name, draw in effect_plots.FIGURES.items():
        yield name, draw(one) if one and name in shown else None
    for name, draw in (plots.FIGURES | {"parallel_coordinates": space.parallel_coordinates}).items():
        yield name, draw(sweep) if name in shown else None


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `plots/*.png` into a sweep folder; returns the path of the page."""
    folder = Path(folder)
    sweep, pictures = tables.load(folder), {}
    one = screening.screened(sweep) if sweep.screened else None
    lead = Section("", figure="effects", caption=EFFECTS, tables=[screening.table(one)]) if one else None
    parts = sections(sweep, one)
    for name, figure in _figures(sweep, one, {section.figure for section in [*parts, *([lead] if lead else [])]}):
        path = folder / "plots" / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)  # of an earlier report on other data
            continue
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=plots.DOTS_PER_INCH)
        put(path, buffer.getvalue())
        pictures[name] = base64.b64encode(buffer.getvalue()).decode()
    below = [text for text, clears in _floors(sweep).items() if not clears]
    page = pages.render(
        "report.html.j2", title=f"Sweep {folder.resolve().name}", css=pages.text("report.css"), facts=_facts(sweep), answer=answer(sweep),
        lead=lead, pictures=pictures,
        care=[*below, *sweep.about.get("caveats", []), *_grown(sweep), *tables.missing(sweep)], sections=parts,
    )  # fmt: skip
    put(folder / "report.html", page)
    return folder / "report.html"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m analysis.report <sweep folder>", file=sys.stderr)
        return 2
    try:
        path = write_report(arguments[0])
        print(headline(arguments[0]))
        print(path, flush=True)
    except ConfigError as error:
        return _refused(str(error))
    except BrokenPipeError:  # whoever read has gone, and the report is written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python says so again at its end
        return UNREAD
    except OSError as error:
        if (line := disk.in_words(error)) is None:
            raise
        return _refused(line)
    return 0


def _refused(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
