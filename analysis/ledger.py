"""What a sweep cost: device-seconds by phase, and for each verdict."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.records import Sweep, column
from meltr_ray.results.columns import SETTING

PHASES = ("learning_rate_search", "screening", "confirmation", "comparison", "ablation", "search", "single")
"""In the order in which they run."""


def device_seconds(sweep: Sweep) -> pd.Series:
    """Trial -> time of its last row times its workers; NaN in tables from before it was kept.

    Time after the last row of a trial that diverged, failed or was killed is not in it.
    """
    rows = sweep.rows.assign(elapsed=column(sweep.rows, "elapsed").astype(float), workers=column(sweep.rows, f"{SETTING}train.num_workers"))
    found = rows.groupby("trial")[["elapsed", "workers"]].max()
    return found.elapsed * np.maximum(1, found.workers.fillna(0).astype(float))


def ledger(sweep: Sweep) -> pd.DataFrame:
    """A row a phase: trials, those that ended badly, device-seconds in all and those of trials that ended badly."""
    table = sweep.trials.assign(device_seconds=device_seconds(sweep), bad=sweep.trials.status.isin(["failed", "diverged"]))
    records = [
        {"phase": phase, "trials": len(part), "bad": int(part.bad.sum()), "device_seconds": part.device_seconds.sum(min_count=1),
         "lost": part.device_seconds[part.bad].sum()}
        for phase in PHASES if len(part := table[table.phase == phase])
    ]  # fmt: skip
    return pd.DataFrame(records, columns=["phase", "trials", "bad", "device_seconds", "lost"]).set_index("phase")
