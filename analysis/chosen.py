"""What every arm chose for itself in its equal budget, and from how much."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.cells import DASH, Table, number, score
from analysis.ledger import device_seconds
from analysis.records import Sweep

PHASE = "settings_search"


def chosen(sweep: Sweep) -> pd.DataFrame:
    """A row a compared arm whose search has ended, in their order.

    Columns: candidates, number (of the one that was chosen; 0 is the arm as configured), score (the metric on validation, at full length),
    settings, trials, bad (diverged or failed), device_seconds.
    """
    found, searched = sweep.about.get("settings_chosen") or {}, sweep.trials[sweep.trials.phase == PHASE]
    cost, records = device_seconds(sweep), []
    for arm in (arm for arm in sweep.compared if arm in found):
        mine, one = searched[searched.arm == arm], found[arm]
        records.append({"arm": arm, "candidates": one["candidates"], "number": one["number"], "settings": one["settings"],
                        "score": float("nan") if one["score"] is None else sweep.metric.score(one["score"]),
                        "trials": len(mine), "bad": int(mine.status.isin(["diverged", "failed"]).sum()), "device_seconds": cost.reindex(mine.index).sum()})  # fmt: skip
    return pd.DataFrame(records).set_index("arm") if records else pd.DataFrame()


def chosen_table(sweep: Sweep) -> Table | None:
    rows = [[arm, f"{r.candidates:.0f}", f"{r.trials:.0f}", f"{r.bad:.0f}", number(r.device_seconds, 0), f"{r.number:.0f}" if r.number else "as configured",
             ", ".join(f"{name}={_written(value)}" for name, value in r.settings.items()) or DASH, score(sweep, r.score)]
            for arm, r in chosen(sweep).iterrows()]  # fmt: skip
    header = ["arm", "candidates", "trials", "diverged or failed", "device-seconds", "chosen", "settings", f"{sweep.label}, validation"]
    return Table("What each arm chose", header, rows, "Candidate 0 is the arm as configured, at the middle learning rate. The score is the best score of a candidate "
                 "at full length, on the seed of searches, so chance flatters it. Device-seconds: the cost of the search. The number of candidates was fixed "
                 "beforehand, from short trials.") if rows else None  # fmt: skip


def in_words(sweep: Sweep) -> str:
    """How the search went, for the report's methods."""
    rates = sweep.plan.learning_rates
    return (
        f"Searched: each of {', '.join(sweep.compared)} had {sweep.plan.budget_each} of device time to find its own settings: the learning rate of w between "
        f"{min(rates):g} and {max(rates):g}, weight decay, and the settings of its way to combine. Candidates were drawn at random and trained for a quarter of "
        "the steps, with the whole schedule. The better half of them was trained for half of the steps, and the better half of those to the end; the best at the end was chosen. A score is the "
        "best on validation, on one seed that the comparison doesn't use. The number of an arm's candidates is what the budget pays for, at the cost of the arm's trials."
    )


def _written(value: Any) -> str:
    return (
        f"[{', '.join(f'{each:g}' for each in value)}]"
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
