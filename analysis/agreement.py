"""What a way to combine losses said of each loss, beside what the loss does to the model."""

from __future__ import annotations

import pandas as pd

from analysis import statistics, tables
from analysis.screening import Screened
from meltr_ray.results.columns import SHARE


def agreement(one: Screened, arm: str) -> pd.DataFrame:
    """A row a loss of the screening that `arm` trained with: its slope over the primary's at the end of training, and its effect.

    Columns: seeds, ratio (mean over seeds), low, high (Student's 95 %), says (`more` or `less` than the primary; `as much` where the interval
    has 1), share (of the last step, mean over seeds), effect (on the metric), verdict, agrees: of a loss that helps or harms for sure, whether it says more where it helps and less
    where it harms; None of others.
    """
    last, (primary, *_) = tables.slopes(one.sweep, arm).groupby("seed").last(), tables.losses_of(one.sweep, arm)
    shares = tables.slopes(one.sweep, arm, SHARE).groupby("seed").last()
    records = []
    for effect in one.found.effects:
        if effect.loss not in last or effect.shown is None:
            continue
        ratio = (last[effect.loss] / last[primary])[last[primary] > 0].dropna()
        decided = effect.kind in ("helps", "harms") and len(ratio)
        low, high = statistics.student_interval(ratio)
        says = "more" if low > 1 else "less" if high < 1 else "as much"
        records.append({
            "loss": effect.loss, "seeds": len(ratio), "ratio": ratio.mean(), "low": low, "high": high, "says": says, "share": shares[effect.loss].mean(),
            "effect": one.own(effect.shown.mean), "verdict": effect.verdict,
            "agrees": says == ("more" if effect.kind == "helps" else "less") if decided else None,
        })  # fmt: skip
    return pd.DataFrame(
        records, columns=["loss", "seeds", "ratio", "low", "high", "says", "share", "effect", "verdict", "agrees"]
    ).set_index("loss")


def in_words(table: pd.DataFrame, arm: str) -> str:
    """How often the two agree."""
    told = table.agrees.dropna()
    if told.empty:
        return f"No loss is sure to help or to harm, so there is no verdict to compare {arm} with."
    silent = int((table.says[told.index] == "as much").sum())
    open_ = f" For {silent} of them, its slope can't be distinguished from the primary's." if silent else ""
    return f"{arm} agrees with the verdict on {int(told.astype(bool).sum())} of {len(told)} losses that surely help or harm.{open_}"
