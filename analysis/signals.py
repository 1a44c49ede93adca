"""What held-out batches said of each loss, as the ways that learn saw it: the signal, its noise, and whether the two can be told apart."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.cells import DASH, Table, number
from analysis.records import Sweep
from analysis.tables import losses_of, slopes
from meltr_ray.results.columns import EFFECT, EFFECT_SQUARE

LEAST = 2
"""Seeds without which noise can't be told."""
ROUNDING = 1e-6
"""A spread below this share of the mean is that of one look alone, as tryout has it."""


def signals(sweep: Sweep, arm: str) -> pd.DataFrame:
    """A row a loss of an arm that learns; empty of another arm.

    Columns: seeds, mean (of a seed's mean look: by how much the loss lowers the held-out primary loss), low, high (Student's 95 % over
    seeds), ratio (signal over noise of one look: a seed's mean over the standard deviation of its looks, mean over seeds), says (`helps`,
    `harms`, or `can't be told from noise` where the interval has 0).
    """
    records = []
    primary, genuine, planted = losses_of(sweep, arm)
    means, squares = slopes(sweep, arm, EFFECT), slopes(sweep, arm, EFFECT_SQUARE)
    for loss in [*([primary] if primary else []), *genuine, *planted]:
        if loss not in means or means[loss].isna().all():
            continue
        mean = means.groupby("seed")[loss].mean().dropna()
        spread = np.sqrt((squares.groupby("seed")[loss].mean() - mean**2).clip(lower=0))
        low, high = statistics.student_interval(mean.to_numpy()) if len(mean) >= LEAST else (np.nan, np.nan)
        says = "helps" if low > 0 else "harms" if high < 0 else "can't be told from noise"
        records.append({"loss": loss, "seeds": len(mean), "mean": mean.mean(), "low": low, "high": high,
                        "ratio": (mean / spread)[spread > ROUNDING * mean.abs()].mean(), "says": says})  # fmt: skip
    return pd.DataFrame(records).set_index("loss") if records else pd.DataFrame()


def signals_table(sweep: Sweep) -> Table | None:
    """Of every arm that learns."""
    rows = []
    for arm in dict.fromkeys([*sweep.compared, *sweep.plan.arms]):
        for loss, r in signals(sweep, arm).iterrows():
            interval = f"[{_short(r.low)}, {_short(r.high)}]" if np.isfinite(r.low) else DASH
            rows.append([arm, loss, str(r.seeds), _short(r["mean"]), interval, number(r.ratio, 2, True), r.says])
    header = ["arm", "loss", "seeds", "lowers the held-out primary loss by", "95 % over seeds", "signal over noise of a look", "says"]
    return Table("What held-out batches said of each loss", header, rows, "For arms that learn from held-out batches: how much a loss lowers the held-out primary loss. MELTR and aligned "
                 "measure this to first order, for a small step along the loss's gradient (in their own units); look_ahead after combiner.horizon steps with the loss and without it; tryout after a try of the loss. "
                 "A screening measures the loss's effect at the end of training; this table shows what the arm could see during training.") if rows else None  # fmt: skip


def _short(value: float) -> str:
    return f"{value:+.2g}".replace("-", "−") if np.isfinite(value) else DASH
