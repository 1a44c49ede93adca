"""What a sweep cost: device-seconds by phase, and for each verdict."""

from __future__ import annotations

import pandas as pd

from analysis.records import Sweep, column
from meltr_ray.results import table as results
from meltr_ray.results.columns import SETTING

PHASES = (
    "learning_rate_search",
    "weight_search",
    "settings_search",
    "space_search",
    "screening",
    "comparison",
    "confirmation",
    "ablation",
    "search",
    "single",
)
"""In the order in which they run."""


def device_seconds(sweep: Sweep) -> pd.Series:
    """Trial -> `results.device_seconds`; NaN in tables from before it was kept."""
    rows = pd.DataFrame({name: column(sweep.rows, name).astype(float) for name in ("elapsed", f"{SETTING}train.num_workers")})
    rows = rows.astype(object).where(rows.notna(), None)
    return pd.Series(
        {trial: results.device_seconds(part.to_dict("records")) for trial, part in rows.groupby(sweep.rows.trial)}, dtype=float
    )


def ledger(sweep: Sweep) -> pd.DataFrame:
    """A row a phase: trials, those that ended badly, device-seconds in all and those of trials that ended badly."""
    table = sweep.trials.assign(device_seconds=device_seconds(sweep), bad=sweep.trials.status.isin(["failed", "diverged"]))
    records = [
        {"phase": phase, "trials": len(part), "bad": int(part.bad.sum()), "device_seconds": part.device_seconds.sum(min_count=1),
         "lost": part.device_seconds[part.bad].sum()}
        for phase in PHASES if len(part := table[table.phase == phase])
    ]  # fmt: skip
    return pd.DataFrame(records, columns=["phase", "trials", "bad", "device_seconds", "lost"]).set_index("phase")
