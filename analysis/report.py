"""The report of a sweep: `report.html`, which opens with the answer, and `plots/*.png`.

    python -m analysis.report outputs/sweeps/<name>

Works on a running or broken sweep too, and says what is missing.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import jinja2
import numpy as np

from analysis import cells, plots, statistics, tables, template
from analysis.tables import Sweep
from meltr_ray.config import ConfigError


def _finding(sweep: Sweep, how: str, table, baseline: str) -> str:
    """One comparison in one sentence."""
    result, ours = table.loc[baseline], sweep.plan.ours
    where = "" if how == "test" else f" ({tables.HOW[how]})"
    if not result.n:
        return f"{cells.plain_name(ours)} against {cells.plain_name(baseline)}{where}: no pair of finished trials with the same seed yet, so no finding."
    unit = f" {sweep.metric.points}" if sweep.metric.points else ""
    interval = cells.bracket(sweep, result.low, result.high) if "bootstrap" in result.interval else "(no interval from so few)"
    corrected = f" corrected for {len(table)} baselines" if len(table) > 1 else ""
    p = cells.p_value(result.p_holm)
    return (f"{cells.plain_name(ours)} against {cells.plain_name(baseline)}{where}: {sweep.metric.label} {cells.score(sweep, result.difference, True)}{unit} "
            f"{interval}, n = {result.n} pair{'' if result.n == 1 else 's'}, p {p if '<' in p else '= ' + p}{corrected}: {result.verdict}.")  # fmt: skip


def answer(sweep: Sweep) -> list[str]:
    """The findings in plain words, the headline first."""
    how, table = tables.headline_comparison(sweep)
    if table.empty:
        return [f"{cells.plain_name(sweep.plan.ours)}: the sweep names no baseline to compare with, so no finding."]
    lines = [_finding(sweep, how, table, baseline) for baseline in table.index]
    seconds = tables.comparisons(sweep, "seconds")
    if seconds.n.iloc[0]:
        lines.insert(1, _finding(sweep, "seconds", seconds, table.index[0]))
    if table.n.iloc[0] and how != "test":
        lines.append("No pair of trials has test scores yet; validation scores are shown in their place.")
    n, least = table.n.iloc[0], table.least_p_holm.iloc[0]
    if n and least >= statistics.SIGNIFICANCE:
        lines.append(f"With {n} pairs and {len(table)} baseline{'s' * (len(table) > 1)} p can't fall below {cells.p_value(least)}, so "
                     "no other verdict than inconclusive was possible; more seeds are needed to find out.")  # fmt: skip
    return lines


def headline(folder: str | Path) -> str:
    """The finding in one line, for the terminal."""
    return answer(tables.load(folder))[0]


@dataclass
class Section:
    """One heading of the page."""

    title: str
    texts: list[str] = field(default_factory=list)
    figure: Optional[str] = None
    """PNG, base64."""
    caption: str = ""
    tables: list[cells.Table] = field(default_factory=list)
    items: list[str] = field(default_factory=list)


def _controls_words(sweep: Sweep) -> list[str]:
    found = tables.controls(sweep)
    if found.empty:
        return [f"The loss set of {sweep.plan.ours} has no planted control."]
    return [f"{control}: {r.verdict} (its slope is {cells.number(r.ratio, 2)} of the mean genuine one)." for control, r in found.iterrows()]


def _sceptic_words(sweep: Sweep) -> list[str]:
    """Does `ours` clear chance and ridge? Said from its interval, not from its mean."""
    split, table = tables.sceptic(sweep)
    mine, texts = table.loc[sweep.plan.ours], []
    for name in sweep.baselines.get(split, {}):
        floor = table.score[name]
        if np.isfinite([mine.score, floor]).all():
            ends = "lies wholly above" if mine.low > floor else "lies wholly below" if mine.high < floor else "includes"
            what = "interval" if "bootstrap" in mine.interval else "range"
            texts.append(f"The {what} of {cells.plain_name(sweep.plan.ours)}'s mean {ends} {name}: "
                         f"{cells.score(sweep, mine.score)} against {cells.score(sweep, floor)}.")  # fmt: skip
    return texts or ["Chance and ridge are not known for this split, so there is no floor to compare with."]


def _methods(sweep: Sweep) -> list[str]:
    """How each number was made; every constant is read from where it is used."""
    plan, level = sweep.plan, f"{100 * statistics.CONFIDENCE:.0f} %"
    tested = sweep.rows[sweep.rows.split == "test"].groupby("trial").size()
    return [
        f"Pairs: two trials of the same seed share initial weights, data order and masks. {plan.ours} minus baseline, over the seeds that both finished. "
        "A seed on which either diverged or failed gives no pair; if one arm diverges more often, leaving its failures out flatters it, so compare the counts.",
        "Equal steps, test: one score a trial, from the weights of its best validation step. "
        + (f"{len(tested)} trials have been scored on the test split, {int((tested > 1).sum()) or 'none'} of them more than once." if len(tested)
           else "No trial has been scored on it yet."),
        "Equal steps and equal seconds, validation: the budget of a pair is the smaller of the two final step counts or training times; each side is given its best "
        "validation score at or before it. Training time includes meta steps and leaves out evaluation and checkpoints; the schedule of the learning rate was laid "
        f"out for the full run, so a side that is cut short is at a disadvantage. Up to {plan.max_concurrent} trials shared the machine.",
        f"Interval: {level} bootstrap of the mean difference, BCa, or percentile where BCa is undefined (equal differences); {statistics.RESAMPLES} resamples, fixed seed. "
        "A bootstrap of so few pairs is too short (it can't leave the range of what was seen); Student's t interval, the thin bar in the figures, is given beside it.",
        "Every interval is over seeds with the clips of the split held fixed: it says nothing about how another sample of clips would differ.",
        f"p: two-sided sign-flip permutation test of the mean, all 2^n sign patterns up to n = {statistics.LARGEST_EXACT}, {2**statistics.LARGEST_EXACT} random ones beyond. "
        "Holm's correction over the baselines of the plan, within each way of comparing; the test split leads, the two on validation are secondary. 'Least p' is the smallest "
        "corrected p these numbers of pairs could give.",
        f"Verdict: better or worse only if the corrected p is below {statistics.SIGNIFICANCE:g} and the interval excludes 0; otherwise inconclusive, which does not mean equal.",
        f"Contribution of a loss: validation score of {plan.ours} minus that without the loss, at equal steps, over common seeds. Positive: leaving it out hurts, so the loss "
        f"helps. With fewer than {statistics.LEAST_FOR_INTERVAL} pairs the range is given, n being too small for an interval. Not corrected for the number of losses: read it as exploration.",
        f"Controls: slope at the last evaluation over the mean slope of the genuine auxiliary losses, each seed its own ratio. Demoted if the upper end of the wider of the two "
        f"intervals is below {tables.DEMOTED_BELOW:g}. A slope is not an importance: it multiplies a loss whose gradient may be large, small or (for a constant) zero.",
        (f"Searched: the learning rate of w over {', '.join(f'{rate:g}' for rate in plan.learning_rates)} for {', '.join(sweep.compared)}, {plan.learning_rate_seeds} seed(s) "
         "each, on validation and with seeds apart from those of the comparison." if plan.learning_rates else "No learning rate was searched.")
        + (f" Settings searched around {plan.ours}: {', '.join(plan.space)} ({plan.search})." if plan.space else ""),
    ]  # fmt: skip


def sections(sweep: Sweep, pictures: dict[str, str]) -> list[Section]:
    """The page after the answer; a part without data says so or is left out."""
    plan, about = sweep.plan, sweep.about
    tests = [table for how in tables.HOW if (table := cells.comparison_table(sweep, how))]
    split, sceptic = cells.sceptic_table(sweep)
    data = about.get("data") or {}
    bars = "Dots: seeds. Diamond: mean. Thick bar: 95 % bootstrap interval. Thin bar: Student's."
    pick = lambda *found: [table for table in found if table]  # noqa: E731
    page = [
        Section("Against the baselines", figure=pictures.get("paired_differences"), tables=tests,
                caption=f"Paired differences, {plan.ours} minus baseline. {bars}"),
        Section("Learning curves", figure=pictures.get("learning_curves"),
                caption="Validation score over steps and over training time. Thin: each seed. Thick: mean over finished trials."),
        Section("For the sceptic", _sceptic_words(sweep), tables=[sceptic]),
        Section("Which losses help", figure=pictures.get("leave_one_out"), tables=pick(cells.leave_one_out_table(sweep)),
                caption=f"Contribution: {plan.ours} minus {plan.ours} without the loss, paired by seed. Positive: leaving it out hurts. {bars}"),
        Section("What the combiner does with them", _controls_words(sweep), pictures.get("slopes"),
                "Slope of each loss over training: mean, and band from the least to the greatest seed. Dashed: planted controls.",
                pick(cells.controls_table(sweep))),
        Section("Configurations and their cost", figure=pictures.get("cost"), tables=[cells.configurations_table(sweep)],
                caption="Time a step, means over finished trials, and the largest peak memory among them."),
        Section("Learning rates", figure=pictures.get("learning_rate_search"), tables=pick(cells.learning_rate_table(sweep)),
                caption="The same grid for each arm. Bars: least to greatest seed. Ring: chosen."),
        Section("Trials that did not finish", [] if len(tables.not_finished(sweep)) else ["Every trial finished."],
                tables=pick(cells.not_finished_table(sweep))),
        Section("How the numbers were made", items=_methods(sweep)),
        Section("Where and when", items=[
            f"{name}: {value}" for name, value in {
                "command": about.get("command"), "machine": about.get("machine"), "started": about.get("started"),
                "ended": about.get("ended", "not yet"), "data": ", ".join(f"{k} {v}" for k, v in data.items()),
            }.items() if value]),
    ]  # fmt: skip
    if not plan.learning_rates and not page[6].tables:
        page[6] = Section("Learning rates", ["No learning rate was searched: each arm trained with the one of its settings."])
    return page


def _facts(sweep: Sweep) -> str:
    count = sweep.trials.status.value_counts()
    state = ", ".join(f"{count[status]} {status}" for status in ("finished", "diverged", "failed", "running") if status in count)
    data = (sweep.about.get("data") or {}).get("name")
    parts = [f"{len(sweep.trials)} trials ({state or 'none yet'})", data and f"data: {data}", f"ended {ended}" if (ended := sweep.about.get("ended")) else "sweep not ended"]
    return " · ".join(part for part in parts if part)


def _replace(path: Path, content: bytes) -> None:
    """Write to a temporary name and rename, so that a reader of a running sweep never sees half a page."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `plots/*.png` into a sweep folder; returns the path of the page."""
    folder = Path(folder)
    sweep, pictures = tables.load(folder), {}
    (folder / "plots").mkdir(exist_ok=True)
    for name, draw in plots.FIGURES.items():
        path = folder / "plots" / f"{name}.png"
        if (figure := draw(sweep)) is None:
            path.unlink(missing_ok=True)  # of an earlier report on other data
            continue
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=plots.DOTS_PER_INCH)
        _replace(path, buffer.getvalue())
        pictures[name] = base64.b64encode(buffer.getvalue()).decode()
    page = jinja2.Environment(autoescape=True).from_string(template.PAGE).render(
        title=f"Sweep {folder.resolve().name}", css=template.CSS, facts=_facts(sweep), answer=answer(sweep),
        missing=tables.missing(sweep), sections=sections(sweep, pictures),
    )  # fmt: skip
    _replace(folder / "report.html", page.encode())
    return folder / "report.html"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m analysis.report <sweep folder>", file=sys.stderr)
        return 2
    try:
        path = write_report(arguments[0])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(headline(arguments[0]))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
