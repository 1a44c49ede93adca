"""Where every compared arm ends: how far behind the best, in units of the margin, and at what cost."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.cells import Table, bracket, number, score
from analysis.ledger import device_seconds
from analysis.records import Sweep, arm_trials, column
from meltr_ray.config.duration import in_words
from meltr_ray.results.columns import SEARCHES, SETTING

LEAST = 3
"""Arms from which on the table says more than the paired comparisons."""


def standing(sweep: Sweep) -> pd.DataFrame:
    """A row a compared arm, the best mean first.

    Columns: n, score (mean of the metric on test, else on validation), low, high (Student's 95 %), regret (distance to the best mean in
    margins), tuning (device-seconds of its searches and of what it is charged with), run (of a trial), forward and backward (passes a step
    beyond a plain one), seconds_per_step, memory (bytes), equal_steps and equal_seconds (mean of the best metric on validation within the steps, and within the
    training time, of the arm whose runs have the fewest, and take the least; NaN where a run has no evaluation by then).
    """
    cost, searched, charged = device_seconds(sweep), sweep.trials[sweep.trials.phase.isin(SEARCHES)], sweep.plan.charged_seconds
    trials = {arm: (mine := arm_trials(sweep, arm))[mine.status == "finished"] for arm in sweep.compared}
    on_test = all(done.test_score.notna().any() for done in trials.values())
    equal = {budget: _equal(sweep, trials, budget) for budget in ("step", "seconds")}
    records = []
    for arm, done in trials.items():
        scores = (done.test_score if on_test else done.score).dropna().to_numpy()
        low, high = statistics.student_interval(scores) if len(scores) > 1 else (np.nan, np.nan)
        last = sweep.rows[sweep.rows.trial.isin(done.trial) & (sweep.rows.split == "validation")]
        looks = (last.meta_steps / last.step).mean()
        extra = {
            kind: looks * column(last, f"meta_{kind}_passes").astype(float).mean() if looks else 0.0 for kind in ("forward", "backward")
        }
        records.append({
            "arm": arm, "n": len(scores), "score": scores.mean() if len(scores) else np.nan, "low": low, "high": high,
            "tuning": cost.reindex(searched.index[searched.arm == arm]).sum() + charged.get(arm, 0.0), "run": cost.reindex(done.trial).mean(), **extra,
            "equal_steps": equal["step"].get(arm, np.nan), "equal_seconds": equal["seconds"].get(arm, np.nan),
            "seconds_per_step": (done.seconds / done.step).mean(), "memory": done.peak_memory_bytes.max(),
        })  # fmt: skip
    table = pd.DataFrame(records).set_index("arm").sort_values("score", ascending=not sweep.metric.higher)
    table["regret"] = (table.score - table.score.iloc[0]).abs() / sweep.margin
    table.attrs["split"] = "test" if on_test else "validation"
    return table


def _equal(sweep: Sweep, trials: dict[str, pd.DataFrame], budget: str) -> dict[str, float]:
    """Arm -> mean of the best metric on validation within the least `budget` of any arm: the longest of its runs."""
    rows = {
        arm: sweep.rows[sweep.rows.trial.isin(done.trial) & (sweep.rows.split == "validation")] for arm, done in trials.items() if len(done)
    }
    workers = {arm: column(found, f"{SETTING}train.num_workers").astype(float).fillna(0).clip(lower=1) for arm, found in rows.items()}
    used = {arm: found[budget] * (workers[arm] if budget == "seconds" else 1) for arm, found in rows.items()}
    ends = {arm: used[arm].groupby(found.trial).max() for arm, found in rows.items()}
    cheapest = min(ends, key=lambda arm: ends[arm].mean(), default=None)
    scores = {
        arm: found.score[used[arm] <= ends[cheapest].max()].groupby(found.trial).max().reindex(ends[arm].index)
        for arm, found in rows.items()
    }
    return {arm: sweep.metric.score(best.mean(skipna=False)) for arm, best in scores.items()}


def _charges(sweep: Sweep) -> str:
    parts = [f"{arm} {in_words(length)}" for arm, length in sweep.plan.charged_seconds.items()]
    return f" Tuning includes device time that was spent before this sweep: {', '.join(parts)}." if parts else ""


def standing_table(sweep: Sweep) -> Table | None:
    if len(sweep.compared) < LEAST:
        return None
    found = standing(sweep)
    plain = found.seconds_per_step.min()
    rows = [[
        arm, f"{r.n:.0f}", score(sweep, r.score), bracket(sweep, r.low, r.high).replace("+", ""), number(r.regret), score(sweep, r.equal_steps), score(sweep, r.equal_seconds), number(r.seconds_per_step / plain, 2),
        number(r.forward, 2), number(r.backward, 2), number(r.tuning, 0), number(r.run, 1), number(r.memory / 1e9, 2),
    ] for arm, r in found.iterrows()]  # fmt: skip
    header = [
        "arm",
        "seeds",
        f"{sweep.label}, {found.attrs['split']}",
        "95 %",
        "behind the best",
        "validation, equal steps",
        "validation, equal seconds",
        "time of a step",
        "forwards",
        "backwards",
        "tuning (s)",
        "a run (s)",
        "memory (GB)",
    ]
    return Table("Where each arm ends", header, rows, f"Behind the best: distance from the best arm in units of {sweep.margin:g}, the least difference that counts; the best of many "
                 "means is flattered by chance. 95 %: Student's interval over seeds. Equal steps, equal seconds: a run's best score on validation "
                 "within the number of steps, or the device-seconds of training, of the cheapest arm's runs; mean over seeds. Learning rates were scheduled for whole runs. "
                 "So at equal seconds a more expensive arm is cut off before its rate has fallen; with a schedule of that length it might score better. Time of a step: divided by the fastest arm's. "
                 "Forwards, backwards: passes in a step in addition to a plain step. Tuning: device-seconds of an arm's searches. A run: device-seconds of a trial."
                 f"{_charges(sweep)}") if rows else None  # fmt: skip
