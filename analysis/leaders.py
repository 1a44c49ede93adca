"""The best arms of a comparison by validation, on fresh seeds: the test scores of a sweep with `sweep.leaders`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.cells import Table, bracket, p_value, plain_name, score
from analysis.records import Sweep, arm_trials


def leaders(sweep: Sweep) -> pd.DataFrame:
    """A row a leader, the best on validation first; empty where there are none yet.

    Columns: validation (mean of the comparison), n, test, low, high (mean of the metric on fresh seeds, Student's 95 %), paired (test minus
    that of the first baseline over the seeds that both finished; None of the baseline itself).
    """
    fresh = sweep.trials[(sweep.trials.phase == "confirmation") & (sweep.trials.status == "finished")]
    tests = {arm: part.set_index("seed").test_score.dropna() for arm, part in fresh.groupby("arm")}
    first, records = next(iter(sweep.plan.baselines), None), []
    for arm, found in tests.items():
        low, high = statistics.student_interval(found.to_numpy()) if len(found) > 1 else (np.nan, np.nan)
        mine = arm_trials(sweep, arm)
        paired = statistics.paired((found - tests[first]).dropna()) if first in tests and arm != first else None
        records.append({"arm": arm, "validation": mine.score[mine.status == "finished"].mean(), "n": len(found), "test": found.mean(), "low": low,
                        "high": high, "paired": paired})  # fmt: skip
    table = pd.DataFrame(records)
    return table if table.empty else table.set_index("arm").sort_values("validation", ascending=not sweep.metric.higher)


def leaders_table(sweep: Sweep) -> Table | None:
    rows = [[arm, score(sweep, r.validation), f"{r.n:.0f}", score(sweep, r.test), bracket(sweep, r.low, r.high).replace("+", ""),
             *(["", "", ""] if r.paired is None else [score(sweep, r.paired.mean, True), bracket(sweep, *r.paired.student), p_value(r.paired.p)])]
            for arm, r in leaders(sweep).iterrows()]  # fmt: skip
    header = [
        "arm",
        "validation",
        "fresh seeds",
        f"{sweep.label}, test",
        "95 %",
        f"minus {next(iter(sweep.plan.baselines), '')}",
        "95 %",
        "p",
    ]
    return Table("Leaders on fresh seeds", header, rows, "Leaders are the arms with the best mean on validation over the seeds of the comparison. They run again, with the same settings, on fresh seeds; the "
                 "test split is scored only in these runs. Intervals: Student's. p: sign-flip test of the pairs, not corrected for the number of leaders.") if rows else None  # fmt: skip


def sentences(sweep: Sweep) -> list[str]:
    """The findings, the best leader's first; their order was fixed before the fresh runs, so p is the largest up to each place."""
    table, found = leaders(sweep), []
    if table.empty:
        return ["The leaders have not run on fresh seeds yet."]
    if list(table.index) == sweep.plan.baselines[:1]:
        (r,) = table.itertuples()
        return [
            f"{plain_name(r.Index)}, the first baseline, is itself the best on validation; on {r.n} fresh seeds, test: {sweep.label} {score(sweep, r.test)}."
        ]
    table = table[[one is not None and one.n > 0 for one in table.paired]]
    in_order = statistics.fixed_sequence([one.p for one in table.paired])
    for (arm, r), p in zip(table.iterrows(), in_order):
        verdict = statistics.verdict(r.paired.mean, r.paired.interval, p, sweep.metric.higher)
        difference, said = f"{score(sweep, r.paired.mean, True)} {sweep.points}".strip(), p_value(p)
        found.append(f"{plain_name(arm)}, among the best on validation, against {plain_name(sweep.plan.baselines[0])} on fresh seeds, test: {sweep.label}{sweep.better} "
                     f"{difference} {bracket(sweep, *r.paired.student)}, n = {r.paired.n} pair{'s' * (r.paired.n > 1)}, p {said if '<' in said else f'= {said}'}: {verdict}.")  # fmt: skip
    return found or ["No leader has a pair with the first baseline on fresh seeds yet."]
