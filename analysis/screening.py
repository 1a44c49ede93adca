"""What a sweep's screening says: its scores put in the form of a design, the table of effects, the best set and its confirmation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis import cells, sampling, screening_text, statistics, tables
from analysis.effects import Scores, Screening, best_set, effects
from analysis.ledger import device_seconds
from analysis.records import Sweep, load
from tune_spaces import designs
from tune_spaces.screening import BEST, arm_of, arms_of_control

LEAST_OF_A_BLOCK = 0.75
"""Share of a seed's trials that have to have ended for it to count: of fewer, too much would be filled in."""


@dataclass(frozen=True)
class Screened:
    """A sweep's screening, in the direction of its metric."""

    sweep: Sweep
    found: Screening
    diverged: pd.Series
    """Arm -> trials that diverged; those with any."""
    stated: float
    """The score that a diverged trial is given: the worst of those that finished."""

    @property
    def margin(self) -> float:
        return self.found.margin

    def own(self, value: float) -> float:
        """An effect on the score as one on the metric: its negative where lower is better."""
        return self.sweep.metric.score(value)


def screened(sweep: Sweep) -> Screened | None:
    """None while no seed has enough of its trials."""
    design = designs.of(sweep.plan.design, (sweep.about.get("screening") or {}).get("losses") or tables.losses_of(sweep)[1])
    trials = sweep.trials[sweep.trials.phase == "screening"]
    ended = trials[trials.status.isin(["finished", "diverged"])]
    scores = sweep.metric.score(ended.score.where(ended.status == "finished"))
    stated = scores.min()
    table = ended.assign(value=scores.fillna(stated)).pivot_table(index="seed", columns="arm", values="value")
    arms = [arm_of(row, design.losses) for row in design.rows]
    beside = {control: list(arms_of_control(control)) for control in sweep.screened_controls}
    table = table.reindex(columns=[*arms, *(arm for pair in beside.values() for arm in pair)])
    table = table[table[arms].notna().mean(axis=1) >= LEAST_OF_A_BLOCK]
    if table.empty or table[arms].isna().all().any():
        return None
    controls = {control: table[pair].to_numpy() for control, pair in beside.items()}
    given = Scores(design, tuple(int(seed) for seed in table.index), table[arms].to_numpy(), controls)
    return Screened(
        sweep,
        effects(given, sweep.margin, sweep.plan.looks),
        ended[ended.status == "diverged"].arm.value_counts(),
        sweep.metric.score(stated),
    )


def best_set_of(folder: Path) -> tuple[str, ...]:
    """The auxiliary losses that the screening of a sweep folder chose; empty: none helps, or it has no result."""
    found = screened(load(folder))
    return best_set(found.found) if found else ()


def title(one: Screened) -> str:
    """What was measured, how often and at what cost."""
    sweep, found = one.sweep, one.found
    trials = sweep.trials[sweep.trials.phase == "screening"]
    rates = sorted(trials.learning_rate.dropna().unique())
    minutes = device_seconds(sweep).reindex(trials.index).sum() / 60
    parts = [f"{sweep.label}, validation", "weight 1", *([f"rate {rates[0]:.3g}"] if len(rates) == 1 else []),
             screening_text.count(len(found.seeds), "seed"), screening_text.count(len(trials), "trial"),
             *([f"{minutes:.0f} device-minutes" if minutes >= 2 else f"{60 * minutes:.0f} device-seconds"] if minutes else [])]  # fmt: skip
    return ", ".join(parts) + sweep.better


def table(one: Screened) -> cells.Table:
    """A loss a row."""
    higher, digits = one.sweep.metric.higher, one.sweep.metric.digits
    rows = [[effect.loss + " (control)" * effect.control,
             *(screening_text.number(estimate, higher, digits) for estimate in (effect.beside, effect.average, effect.in_full)),
             screening_text.interval(effect.shown, higher, digits) or cells.DASH, effect.verdict]
            for effect in one.found.effects]  # fmt: skip
    return cells.Table(
        title(one), screening_text.header(one.found), rows, " ".join(notes(one)), [effect.kind for effect in one.found.effects]
    )


def notes(one: Screened) -> list[str]:
    """What a reader of the page's table has to know."""
    found, sweep = one.found, one.sweep
    said = [f"Each number is a difference in {sweep.label}{f' ({sweep.points})' if sweep.points else ''}; differences below {found.margin:g} count as none. "
            "The intervals are simultaneous: with 95 % confidence all of them are right."]  # fmt: skip
    if not sweep.metric.higher:
        said.append("Lower is better: a loss that helps has a negative number.")
    said += _of_pairs(one)
    if found.design.aliased:
        said.append(
            f"This design can't distinguish these interactions: {'; '.join(' = '.join(f'{a} x {b}' for a, b in group) for group in found.design.aliased)}."
        )
    return [*said, *screening_text.notes(found), *_of_examples(one), *_of_diverged(one)]


def _of_pairs(one: Screened) -> list[str]:
    """Of each loss that depends on another, what it gives without that one and with it."""
    metric = one.sweep.metric
    return [f"{words}." for effect in one.found.effects if (words := screening_text.depends(effect, metric.higher, metric.digits))]


def _of_examples(one: Screened) -> list[str]:
    """How far other examples would move what seeds leave open."""
    halves, digits = sampling.of_effects(one.sweep, one.found).dropna(), one.sweep.metric.digits
    if halves.empty:
        return []
    each = ", ".join(f"{loss} ±{half:.{digits}f}" for loss, half in halves.items())
    return [f"Intervals are over seeds. Other validation examples would move the effects by: {each} (95 %, bootstrap over sources)."]


def _of_diverged(one: Screened) -> list[str]:
    if one.diverged.empty:
        return []
    arms = ", ".join(f"{arm} {count}" for arm, count in one.diverged.items())
    stated = cells.score(one.sweep, one.stated)
    return [
        f"Diverged: {screening_text.count(int(one.diverged.sum()), 'trial')}, each counted as {stated}, the worst that finished: {arms}.",
        *_losses_that_diverge(one),
    ]


def _losses_that_diverge(one: Screened) -> list[str]:
    """Losses with which at least three trials diverged, and without which none did."""
    rows, said = one.found.design.rows, []
    losses = {arm_of(row, one.found.design.losses): row for row in rows}
    for loss in one.found.design.losses:
        count = {inside: sum(n for arm, n in one.diverged.items() if (loss in losses.get(arm, ())) is inside) for inside in (True, False)}
        if count[True] >= 3 and not count[False]:
            said.append(f"Every one of them trained with {loss}: it makes training diverge.")
    return said


def best_sentence(one: Screened) -> str:
    """The set that the screening chose, and what the fresh seeds say of it."""
    sweep = one.sweep
    known, done, planned = sweep.about.get("best"), len(one.found.seeds), sweep.plan.seeds
    if known is None and done < planned:
        return f"Best set: open, as {done} of {planned} seeds are done."
    chosen = best_set(one.found) if known is None else tuple(known)
    if not chosen:
        return f"Best set: train the primary alone; no loss is sure to help.{_all_together(one)}"
    name = f"Best set: primary + {' + '.join(chosen)}"
    if not sweep.confirmed:
        differences = over_the_primary(one, chosen)
        own = f" In the screening's own trials: {_difference(sweep, differences)} over the primary alone." if len(differences) else ""
        return f"{name}; not confirmed on fresh seeds.{own}"
    pairs = {arm: tables.pairs(sweep, BEST, arm, "test") for arm in sweep.compared[1:]}
    said, going = [], True
    for arm, table in pairs.items():
        differences = tables.differences(table)
        if len(differences) < statistics.LEAST_FOR_INTERVAL:
            return f"{name}; {len(differences)} of {sweep.plan.confirmation_seeds} fresh seeds are done."
        low, high = statistics.student_interval(differences)
        decided = low > 0 or high < 0
        against = f"{cells.score(sweep, differences.mean(), True)} {cells.bracket(sweep, low, high)} over {cells.plain_name(arm)}"
        said.append(against if going else f"{against} (not tested, as an earlier comparison is open)")
        going = going and decided
    moved = sampling.of_best(sweep, sweep.compared[1])
    examples = f" Other test examples would move the first by ±{moved:.{sweep.metric.digits}f}." if moved == moved else ""
    return f"{name}: {'; '.join(said)} on test, {len(differences)} fresh seeds.{examples}"


def over_the_primary(one: Screened, chosen: tuple[str, ...]) -> pd.Series:
    """By seed, the metric of the screening's trial with these auxiliary losses less that of the primary alone; empty: the design has no such row."""
    design, trials = one.found.design, one.sweep.trials
    row = tuple(loss for loss in design.losses if loss in chosen)
    if row not in design.rows:
        return pd.Series(dtype=float)
    scores = trials[(trials.phase == "screening") & (trials.status == "finished")].pivot_table(index="seed", columns="arm", values="score")
    arms = [arm_of(each, design.losses) for each in (row, ())]
    return (scores.get(arms[0]) - scores.get(arms[1])).dropna() if set(arms) <= {*scores} else pd.Series(dtype=float)


def _difference(sweep: Sweep, differences: pd.Series) -> str:
    mean = cells.score(sweep, differences.mean(), True)
    if len(differences) < statistics.LEAST_FOR_INTERVAL:
        return mean
    return f"{mean} {cells.bracket(sweep, *statistics.student_interval(differences))}"


def _all_together(one: Screened) -> str:
    """Where no loss is sure to help by itself, what all of them do together, if that is sure."""
    differences = over_the_primary(one, one.found.design.losses)
    if len(differences) < statistics.LEAST_FOR_INTERVAL or statistics.student_interval(differences.map(one.sweep.metric.score))[0] <= 0:
        return ""
    return f" All losses together: {_difference(one.sweep, differences)} over the primary alone in the screening's own trials; more seeds, or a screening of other losses, would tell which of them helps."


def text(one: Screened) -> str:
    """The table and the sentence, for a terminal."""
    metric = one.sweep.metric
    lines = [
        screening_text.text(one.found, one.sweep.label, metric.higher, metric.digits, title(one)),
        *_of_pairs(one),
        *_of_examples(one),
        *_of_diverged(one),
        best_sentence(one),
    ]
    return "\n".join(lines)
