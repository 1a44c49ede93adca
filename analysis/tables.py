"""The tables of a report, each a pure function of one sweep: the results table and what lies beside it, nothing else.

Scores are shown as the metric itself and differences are those of it, so where lower is better a negative one is the better.
Only finished trials are compared. What is absent (failed trials, missing pairs, files) is never filled in: it is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.records import LED, Sweep, arm_trials, arms, column, load, losses_of
from meltr_ray.results import table as results
from meltr_ray.results.columns import METRIC, SEARCHES, SETTING, SLOPE
from meltr_ray.results.migration import RENAMED
from meltr_ray.results.numbers import DASH
from tune_spaces.arms import TUNED

__all__ = [
    "HOW", "Sweep", "are_fixed", "arm_trials", "arms", "comparisons", "configurations", "controls", "differences",
    "headline_comparison", "learning_rate_search", "leave_one_out", "load", "losses_of", "missing", "not_finished",
    "pairs", "sceptic", "settings_apart", "slopes",
]  # fmt: skip

DEMOTED_BELOW = 0.8
"""A control counts as demoted when the upper end of its slope, as a share of the mean genuine slope, stays below this."""
HOW = {
    "test": "test split, equal steps",
    "steps": "validation, equal steps",
    "seconds": "validation, equal seconds",
}
"""Ways of comparing two trials; the first is the headline, the others are secondary."""


def _best_within(rows: pd.DataFrame, budget: str, limit: float) -> float:
    return rows.score[rows[budget] <= limit].max()


def pairs(sweep: Sweep, first: str, second: str, how: str) -> pd.DataFrame:
    """Scores of two arms by seed: columns `first`, `second`, and `why` a seed gives no pair (None where it gives one).

    `test`: the one test score of each. `steps` and `seconds`: for each pair the common budget is the smaller of the two
    final values; each side is given its best validation score among the evaluations at or before it.
    """
    sides = arm_trials(sweep, first), arm_trials(sweep, second)
    records = {}
    for seed in sorted(set(sides[0].index) | set(sides[1].index)):
        why = [f"{arm} {side.status[seed] if seed in side.index else 'has no trial'}" for arm, side in
               zip((first, second), sides) if seed not in side.index or side.status[seed] != "finished"]  # fmt: skip
        scores = (np.nan, np.nan)
        if not why and how == "test":
            scores = tuple(side.test_score[seed] for side in sides)
        elif not why:
            tables = [sweep.rows[(sweep.rows.trial == side.trial[seed]) & (sweep.rows.split == "validation")] for side in sides]
            budget = {"steps": "step", "seconds": "seconds"}[how]
            limit = min(table[budget].max() for table in tables)
            scores = tuple(sweep.metric.score(_best_within(table, budget, limit)) for table in tables)
        why += [f"{arm} has no {HOW[how].split(',')[0]} score" for arm, score in zip((first, second), scores)
                if not why and not np.isfinite(score)]  # fmt: skip
        records[seed] = (*scores, "; ".join(why) or None)
    table = pd.DataFrame.from_dict(records, orient="index", columns=["first", "second", "why"])
    return table.rename_axis("seed").astype({"first": float, "second": float, "why": object})


def differences(table: pd.DataFrame) -> pd.Series:
    """First minus second, of the seeds that give a pair."""
    whole = table[table.why.isna()]
    return whole["first"] - whole["second"]


def _result_row(table: pd.DataFrame) -> dict[str, Any]:
    result, whole = statistics.paired(differences(table)), table[table.why.isna()]
    lost = [
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}: {why}"
        for why, seeds in table.groupby("why", sort=False).groups.items()
    ]
    return {
        "n": result.n, "first": whole["first"].mean(), "second": whole["second"].mean(), "difference": result.mean,
        "low": result.interval.low, "high": result.interval.high, "interval": result.interval.method,
        "student_low": result.student[0], "student_high": result.student[1],
        "p": result.p, "least_p": result.least_p, "lost": lost, "result": result,
    }  # fmt: skip


def comparisons(sweep: Sweep, how: str) -> pd.DataFrame:
    """`ours` against each baseline, a row each: paired difference, intervals, exact p, p adjusted for the order, verdict."""
    baselines = sweep.compared[1:]
    table = pd.DataFrame([{"baseline": arm, **_result_row(pairs(sweep, sweep.ours, arm, how))} for arm in baselines])
    if table.empty:
        return table
    table["p_adjusted"] = statistics.fixed_sequence(table.p)
    table["least_p_adjusted"] = statistics.fixed_sequence(table.least_p)  # had every pair of every baseline the same sign
    table["verdict"] = [
        statistics.verdict(r.mean, r.interval, p, sweep.metric.higher) if r.n else "no pairs"
        for r, p in zip(table.result, table.p_adjusted)
    ]
    return table.set_index("baseline")


def headline_comparison(sweep: Sweep) -> tuple[str, pd.DataFrame]:
    """The comparison that the report leads with: the test split or, while that has no pair, validation at equal steps."""
    for how in ("test", "steps"):
        table = comparisons(sweep, how)
        if len(table) and table.n.iloc[0]:
            return how, table
    return how, table


def leave_one_out(sweep: Sweep) -> pd.DataFrame:
    """Contribution of each auxiliary loss: `ours` minus `ours_without_<loss>` on validation at equal steps, paired by seed.

    Positive, or negative where lower is better: leaving the loss out hurts. The most helpful comes first. p-values aren't
    corrected for the number of losses: this part explores.
    """
    prefix, records = f"{sweep.ours}_without_", []
    for arm in arms(sweep):
        if arm.startswith(prefix):
            loss = arm.removeprefix(prefix)
            row = _result_row(pairs(sweep, sweep.ours, arm, "steps"))
            word = statistics.verdict(row["difference"], row["result"].interval, row["p"], sweep.metric.higher)
            word = {"better": "helps", "worse": "hurts"}.get(word, "unclear") if row["n"] else "no pairs"
            records.append({"loss": loss, "control": loss in sweep.controls, **row, "verdict": word})
    table = pd.DataFrame(records, columns=None if records else ["loss", "control", "n", "difference", "verdict"])
    return table.set_index("loss").sort_values("difference", ascending=not sweep.metric.higher)


def slopes(sweep: Sweep, arm: str | None = None, family: str = SLOPE) -> pd.DataFrame:
    """Slopes (or shares) of an arm (default: `ours`) at each evaluation of its finished trials: columns seed, step and one for each loss."""
    mine = arm_trials(sweep, arm or sweep.ours)
    names = mine.trial[mine.status == "finished"]
    rows = sweep.rows.assign(seed=column(sweep.rows, f"{SETTING}seed"))
    rows = rows[rows.trial.isin(names) & (rows.split == "validation")].sort_values(["seed", "step"])
    primary, genuine, planted = losses_of(sweep, arm)
    table = rows[["seed", "step"]].copy()
    for loss in [*([primary] if primary else []), *genuine, *planted]:
        table[loss] = column(rows, f"{family}{loss}")
    return table.dropna(thresh=3)  # an arm without a combiner that learns may have none


def are_fixed(found: pd.DataFrame) -> bool:
    """Whether no slope of a table of `slopes` changes over training, so that there is no course to draw."""
    return not found.empty and bool((found.drop(columns="step").groupby("seed").nunique() <= 1).all(axis=None))


def controls(sweep: Sweep) -> pd.DataFrame:
    """Were the planted losses demoted? Slope at the end of training over the mean slope of the genuine auxiliary losses.

    `demoted` if the upper end of the wider of the two intervals of this ratio lies below `DEMOTED_BELOW`.
    """
    _, genuine, planted = losses_of(sweep)
    last, left_out, records = slopes(sweep).groupby("seed").last(), leave_one_out(sweep), []
    for loss in planted:
        usual = last[genuine].mean(axis=1)
        ratio = (last[loss] / usual)[usual > 0].dropna()
        result = statistics.paired(ratio)
        upper = max(result.interval.high, result.student[1])  # nan only with fewer seeds than an interval needs
        word = "demoted" if upper < DEMOTED_BELOW else "NOT demoted"
        if not result.interval.is_interval or (usual <= 0).any():
            word = "not decided"
        records.append({
            "control": loss, "n": result.n, "slope": last[loss].mean(), "genuine": usual.mean(), "ratio": result.mean,
            "low": result.interval.low, "high": result.interval.high, "interval": result.interval.method,
            "student_low": result.student[0], "student_high": result.student[1], "verdict": word,
            "contribution": left_out.loc[loss].to_dict() if loss in left_out.index and left_out.n[loss] else None,
        })  # fmt: skip
    return pd.DataFrame(records).set_index("control") if records else pd.DataFrame()


def configurations(sweep: Sweep) -> pd.DataFrame:
    """One row an arm: how its trials ended, what they scored and what they cost (means over finished trials)."""
    records = []
    for arm in arms(sweep):
        mine = arm_trials(sweep, arm)
        done, count = mine[mine.status == "finished"], mine.status.value_counts()
        outcomes = sweep.rows.solver_outcome[sweep.rows.trial.isin(mine.trial)].dropna().value_counts()
        records.append({
            "arm": arm, **{status: int(count.get(status, 0)) for status in results.STATUSES},
            "score": done.score.mean(), "score_sd": done.score.std(),
            "test_score": done.test_score.mean(), "test_score_sd": done.test_score.std(),
            "learning_rate": mine.learning_rate.iloc[-1] if len(mine) else np.nan,
            "steps": done.step.mean(), "seconds_per_step": (done.seconds / done.step).mean(),
            "meta_share": (done.meta_seconds.fillna(0) / done.seconds).mean(),
            "peak_memory_bytes": done.peak_memory_bytes.max(),
            "solver_outcomes": ", ".join(f"{name} × {n}" for name, n in outcomes.items()),
        })  # fmt: skip
    return pd.DataFrame(records).set_index("arm")


def settings_apart(sweep: Sweep) -> dict[str, str]:
    """Arm -> the settings in which it differs from `ours`, the learning rate of w and what an arm's name says left out."""
    names = [name.removeprefix(SETTING) for name in sweep.rows if name.startswith(SETTING)]
    names = [name for name in names if "." in name and name != "optimizer.learning_rate" and RENAMED.get(name) not in names]
    first = sweep.rows[~sweep.rows.phase.isin(SEARCHES)].drop_duplicates("arm").set_index("arm")
    first = first[[SETTING + name for name in names]].set_axis(names, axis=1).astype(object)
    if sweep.ours not in first.index:
        return {}
    ours, derived = first.loc[sweep.ours], tuple(f"{sweep.ours}_{how}_" for how in ("without", "only"))
    differ = (first != ours) & ~(first.isna() & ours.isna())
    return {
        arm: ", ".join(f"{name}={row[name]}" for name in names if differ.loc[arm, name])
        for arm, row in first.iterrows()
        if arm != sweep.ours and not arm.startswith(derived)
    }


def learning_rate_search(sweep: Sweep) -> pd.DataFrame:
    """Arm and learning rate -> validation score; which was chosen, and whether the choice sits on the edge of the grid."""
    found = sweep.trials
    found = found[found.phase == "learning_rate_search"]
    chosen, records = sweep.about.get("learning_rate_chosen") or {}, []
    for (arm, rate), part in found.groupby(["arm", "learning_rate"]):
        scores = part.score[part.status == "finished"].dropna()
        grid = found.learning_rate[found.arm == arm]
        picked = bool(np.isclose(chosen.get(arm, np.nan), rate, rtol=1e-6))
        records.append({
            "arm": arm, "learning_rate": rate, "n": len(scores), "not_finished": int((part.status != "finished").sum()),
            "score": scores.mean(), "least": scores.min(), "greatest": scores.max(), "chosen": picked,
            "edge": picked and (rate in (grid.min(), grid.max())),
        })  # fmt: skip
    return pd.DataFrame(records)


def sceptic(sweep: Sweep) -> tuple[str, pd.DataFrame]:
    """Chance, ridge, the baselines and `ours` on one split (test if any trial has it): the split's name and the table.

    Validation scores are those of each trial's best step, so they flatter a little; chance and ridge aren't selected.
    """
    rows = {arm: arm_trials(sweep, arm) for arm in reversed(sweep.compared)}
    split = "test" if any(np.isfinite(r.test_score).any() for r in rows.values()) else "validation"
    first, *others = sweep.metrics
    shown = [name for name in others if column(sweep.rows, METRIC + name).notna().any()]
    records = [
        {"what": name, "n": None, "score": values.get(first), **{key: values.get(key) for key in shown}}
        for name, values in sweep.baselines.get(split, {}).items()
    ]
    for arm, mine in rows.items():
        done = mine[mine.status == "finished"].trial
        part = sweep.rows[(sweep.rows.split == split) & sweep.rows.trial.isin(done)].dropna(subset="score")
        best = part.loc[part.groupby("trial").score.idxmax()]
        scores = sweep.metric.score(best.score)
        interval = statistics.mean_interval(scores)
        records.append({"what": arm, "n": len(best), "score": scores.mean(), "low": interval.low, "high": interval.high,
                        "interval": interval.method, **{key: best[METRIC + key].mean() for key in shown}})  # fmt: skip
    return split, pd.DataFrame(records).set_index("what")


def _planned(sweep: Sweep) -> Iterator[tuple[str, pd.DataFrame, int]]:
    """(arm, its trials, how many were planned)."""
    _, genuine, planted = losses_of(sweep)
    without = [f"{sweep.ours}_without_{loss}" for loss in [*genuine, *planted] if sweep.plan.leave_one_out]
    for arm in list(dict.fromkeys([*arms(sweep), *without])):
        mine = arm_trials(sweep, arm)
        planned = sweep.plan.seeds if arm in sweep.compared else sweep.plan.other_seeds
        if arm not in {*sweep.compared, *sweep.plan.arms, *without}:  # made while the sweep ran: what is there was planned
            planned = len(mine)
        yield arm, mine, planned
    for arm, mine in sweep.trials[sweep.trials.phase == "confirmation"].groupby("arm"):
        yield f"{arm} (fresh seeds)", mine, sweep.plan.confirmation_seeds


def _planned_of_screening(sweep: Sweep) -> Iterator[tuple[str, pd.DataFrame, int]]:
    """The same of a screening and of its confirmation, which there is only where a loss helps."""
    for arm in [*(sweep.about.get("screening") or {}).get("rows", {}), *sweep.plan.arms]:
        yield arm, sweep.trials[(sweep.trials.phase == "screening") & (sweep.trials.arm == arm)], sweep.plan.seeds
    for arm in sweep.compared if sweep.confirmed else []:
        mine = sweep.trials[(sweep.trials.phase == "confirmation") & (sweep.trials.arm == arm)]
        yield f"{arm} (confirmation)", mine, sweep.plan.confirmation_seeds


def missing(sweep: Sweep) -> list[str]:
    """What a reader must know is not there: files, trials, pairs, test rows; one sentence each."""
    notes, found = list(sweep.absent), sweep.trials
    for arm, mine, planned in _planned_of_screening(sweep) if sweep.screened else _planned(sweep):
        bad = mine.status[mine.status != "finished"].value_counts()
        done, seen = len(mine) - bad.sum(), len(mine)
        if done < planned or len(bad):
            parts = [f"{n} {status}" for status, n in bad.items()] + ([f"{planned - seen} not evaluated yet"] if planned > seen else [])
            notes.append(f"{arm}: {done} of {max(planned, seen)} planned trials finished ({', '.join(parts)}).")
        scored = LED[1:] if sweep.plan.leaders else LED
        if mine.phase.isin(scored).any() and done and (short := int(mine[mine.status == "finished"].test_score.isna().sum())):
            notes.append(f"{arm}: {short} of {done} finished trials have no test score.")
    double = found[~found.phase.isin(SEARCHES)].groupby(["phase", "arm", "seed"] if sweep.screened else ["arm", "seed"]).size()
    notes += [f"{arm}, seed {seed}: {n} trials; the newest is used." for (*_, arm, seed), n in double[double > 1].items()]
    chosen = sweep.about.get("settings_chosen" if sweep.plan.budget_each else "learning_rate_chosen") or {}
    compared = (
        sweep.compared[sweep.confirmed :] if sweep.screened else sweep.compared
    )  # the chosen set may be the full one, whose rate is known
    if sweep.plan.learning_rates and (unset := [arm for arm in compared if arm not in chosen and (arm != TUNED or sweep.plan.budget_each)]):
        notes.append(f"No {'settings have' if sweep.plan.budget_each else 'learning rate has'} been chosen for: {', '.join(unset)}.")
    notes += _not_numbers(sweep)
    search = learning_rate_search(sweep)
    if len(search) and len(edge := search.arm[search.edge]):
        notes.append(f"The chosen learning rate lies on the edge of the grid for {', '.join(edge)}: a better rate may lie outside.")
    return notes


def _not_numbers(sweep: Sweep) -> list[str]:
    """A sentence for each metric that turned NaN or infinite in trials that went on: another evaluation stands for those."""
    diverged = set(sweep.trials.index[sweep.trials.status.isin(["diverged", "failed"])])
    rows = sweep.rows[sweep.rows.split.isin(["validation", "test"]) & ~sweep.rows.trial.isin(diverged)]
    notes = []
    for name in [each for each in rows.columns if each.startswith(METRIC)]:
        bad = rows[~np.isfinite(rows[name].astype(float))]
        if len(bad) and len(bad) < len(rows):  # else no trial measures it
            first = bad.iloc[0]
            notes.append(f"{name.removeprefix(METRIC)} was not a finite number in {len(bad)} of {len(rows)} evaluations, first at step {first.step} of {first.trial}; "
                         "such weights are never the best.")  # fmt: skip
    return notes


def not_finished(sweep: Sweep) -> pd.DataFrame:
    """Trials that failed, diverged, were cut off or still run, with the reason that they gave; those that a rung has ended are meant to."""
    found = sweep.trials[~((sweep.trials.status == "stopped") & sweep.trials.error.notna())]
    found = found.loc[found.status != "finished", ["arm", "seed", "phase", "status", "step", "error"]]
    for name in sweep.unevaluated:
        found.loc[name] = [DASH, DASH, DASH, sweep.status_unevaluated, np.nan, "no evaluation yet"]
    return found
