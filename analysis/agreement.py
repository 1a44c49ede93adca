"""What a way to combine losses said of each loss, beside what the loss does to the model."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import tables
from analysis.screening import Screened


def agreement(one: Screened, arm: str) -> pd.DataFrame:
    """A row a loss of the screening that `arm` trained with: its slope over the primary's at the end of training, and its effect.

    Columns: seeds, ratio (mean over seeds), least, greatest, effect (on the metric), verdict, agrees: of a loss that helps or harms for
    sure, whether it weighs more than the primary where it helps and less where it harms; None of others.
    """
    last, (primary, *_) = tables.slopes(one.sweep, arm).groupby("seed").last(), tables.losses_of(one.sweep, arm)
    records = []
    for effect in one.found.effects:
        if effect.loss not in last or effect.shown is None:
            continue
        ratio = (last[effect.loss] / last[primary])[last[primary] > 0].dropna()
        decided = effect.kind in ("helps", "harms") and len(ratio)
        records.append({
            "loss": effect.loss, "seeds": len(ratio), "ratio": ratio.mean(), "least": ratio.min(), "greatest": ratio.max(),
            "effect": one.own(effect.shown.mean), "verdict": effect.verdict,
            "agrees": bool((ratio.mean() > 1) == (effect.kind == "helps")) if decided else None,
        })  # fmt: skip
    return pd.DataFrame(records, columns=["loss", "seeds", "ratio", "least", "greatest", "effect", "verdict", "agrees"]).set_index("loss")


def in_words(table: pd.DataFrame, arm: str) -> str:
    """How often the two agree."""
    told = table.agrees.dropna()
    if told.empty:
        return f"No loss is sure to help or to harm, so there is nothing that {arm} could be held to."
    return f"{arm} agrees with the verdict on {int(np.sum(told == True))} of {len(told)} losses that help or harm for sure."  # noqa: E712
