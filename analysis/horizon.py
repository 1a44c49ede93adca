"""Which horizon foresees what a loss does in the end: gains of each loss by several measures beside the final effects of a screening.

A gain is above 0 where the loss helps; so is an effect, in the score, whose higher value is the better.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import pandas as pd

from analysis.records import load
from analysis.screening import screened
from analysis.statistics import student_interval
from meltr_ray.errors import check

BASES = ("beside", "in_full")
"""What a loss is added to, the primary alone; and what it is taken out of, all losses. Names as in `effects.Effect`."""
KEYS = ["base", "step", "measure"]
RESAMPLES = 2000
SEED = 20230613


@dataclass(frozen=True)
class Tau:
    """Kendall's tau-b and its 95 % interval by bootstrap over seeds; NaN where all values are alike."""

    value: float
    low: float
    high: float


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tau-b (Kendall 1945) along the last axis, (..., n) each -> (...); NaN where all of x or of y are alike."""
    s, t = (np.sign(values[..., :, None] - values[..., None, :]) for values in (np.asarray(x, float), np.asarray(y, float)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (s * t).sum((-2, -1)) / np.sqrt((s * s).sum((-2, -1)) * (t * t).sum((-2, -1)))


def tau(gains: np.ndarray, effects: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> Tau:
    """Of mean gains against mean effects; seeds of both are drawn anew, each by itself, as a screening has its own.

    Args:
        gains: (seeds, T).
        effects: (seeds of the screening, T).
    """
    generator = np.random.default_rng(seed)
    drawn = [values[generator.integers(len(values), size=(resamples, len(values)))].mean(1) for values in (gains, effects)]
    taus = kendall(*drawn)
    low, high = np.nanquantile(taus, [0.025, 0.975]) if np.isfinite(taus).any() else (np.nan, np.nan)
    return Tau(float(kendall(gains.mean(0), effects.mean(0))), float(low), float(high))


def final_effects(folder: str | Path) -> dict[str, pd.DataFrame]:
    """Base -> effects on the score, a row a seed and a column a loss, of the screening in a finished sweep's folder.

    Raises:
        ConfigError: it has no screening, or none with a result.
    """
    found = screened(load(folder))
    check(found is not None, "screening", folder, "no seed of its screening has enough trials; name a finished screening")
    estimates = {base: {effect.loss: getattr(effect, base) for effect in found.found.effects} for base in BASES}
    return {
        base: pd.DataFrame({loss: one.per_seed for loss, one in of_base.items() if one is not None}) for base, of_base in estimates.items()
    }


def by_loss(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a base, step, measure and loss: `gain` (mean over seeds), `sign`, `alike` (share of seeds that have it) and `rank` (1: helps most).

    `rows`: a row a seed, base, step, measure and loss, with its `gain`.
    """
    groups = rows.groupby([*KEYS, "loss"], sort=False).gain
    table = groups.mean().reset_index()
    table["sign"] = np.sign(table.gain).astype(int)
    table["alike"] = groups.agg(lambda gains: (np.sign(gains) == np.sign(gains.mean())).mean()).to_numpy()
    table["rank"] = table.groupby(KEYS, sort=False).gain.rank(ascending=False, method="min").astype(int)
    return table


def by_measure(rows: pd.DataFrame, effects: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a base, step and measure: `tau`, `low`, `high`, and `right` of `losses` whose gain has the sign of the effect."""
    records = []
    for keys, group in rows.groupby(KEYS, sort=False):
        gains, known = group.pivot(index="seed", columns="loss", values="gain"), effects[keys[0]].dropna()
        losses = [loss for loss in gains if loss in known]
        if len(losses) < 2 or known.empty:
            continue
        found = tau(gains[losses].to_numpy(), known[losses].to_numpy())
        right = int((np.sign(gains[losses].mean()) == np.sign(known[losses].mean())).sum())
        records.append(
            dict(zip(KEYS, keys)) | {"tau": found.value, "low": found.low, "high": found.high, "right": right, "losses": len(losses)}
        )
    return pd.DataFrame(records, columns=[*KEYS, "tau", "low", "high", "right", "losses"])


def over_places(rows: pd.DataFrame, effects: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a measure: `tau`, the mean over bases and steps, `low` and `high` (95 %, seeds drawn anew, the same for all of them), `least` and
    `greatest` of them; and `right` of `decided`: signs of gains, where the effect's own interval (Student's, 95 %) doesn't hold 0.

    `rows`, `effects`: as of `by_measure`.
    """
    generator, records = np.random.default_rng(SEED), []
    drawn = generator.random((2, RESAMPLES, max(rows.seed.nunique(), *map(len, effects.values()))))
    for measure, group in rows.groupby("measure", sort=False):
        taus, resampled, right, decided = [], [], 0, 0
        for base, place in ((base, place) for (base, _), place in group.groupby(["base", "step"], sort=False)):
            gains, known = place.pivot(index="seed", columns="loss", values="gain"), effects[base].dropna()
            losses = [loss for loss in gains if loss in known]
            if len(losses) < 2 or known.empty:
                continue
            pair = [table[losses].to_numpy() for table in (gains, known)]
            taus.append(kendall(*(values.mean(0) for values in pair)))
            means = [values[(u[:, : len(values)] * len(values)).astype(int)].mean(1) for u, values in zip(drawn, pair)]
            resampled.append(kendall(*means))
            sure = _decided(pair[1])
            decided += int(sure.sum())
            right += int((sure & (np.sign(pair[0].mean(0)) == np.sign(pair[1].mean(0)))).sum())
        if not taus or not np.isfinite(taus).any():
            continue
        low, high = np.nanquantile(np.nanmean(resampled, 0), [0.025, 0.975])
        records.append({"measure": measure, "tau": np.nanmean(taus), "low": low, "high": high, "least": np.nanmin(taus), "greatest": np.nanmax(taus),
                        "right": right, "decided": decided})  # fmt: skip
    return pd.DataFrame(records, columns=["measure", "tau", "low", "high", "least", "greatest", "right", "decided"])


def _decided(values: np.ndarray) -> np.ndarray:
    """(seeds, T) -> (T,): whether Student's 95 % interval of each mean excludes 0."""
    low, high = np.array([student_interval(column) for column in values.T]).T
    return (low > 0) | (high < 0)


def markdown_over_places(overall: pd.DataFrame) -> str:
    lines = [_line(["measure", "tau [95 %]", "least to greatest", "signs right, of decided effects"]), _line(["---"] * 4)]
    for row in overall.itertuples():
        spread = f"{row.least:.2f} to {row.greatest:.2f}"
        lines.append(_line([row.measure, f"{row.tau:.2f} [{row.low:.2f}, {row.high:.2f}]", spread, f"{row.right} of {row.decided}"]))
    return "\n".join(lines) + "\n"


def markdown(losses: pd.DataFrame, measures: Optional[pd.DataFrame] = None, effects: Optional[dict[str, pd.DataFrame]] = None) -> str:
    """Both tables as one, a line a base, step and measure: gains with their ranks, the share of seeds alike, tau."""
    names = list(dict.fromkeys(losses.loss))
    told = {} if measures is None else measures.set_index(KEYS).to_dict("index")
    heads = ["base", "from step", "measure", *names, *(["tau [95 %]", "signs right"] if told else [])]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for keys, group in losses.groupby(KEYS, sort=False):
        cells = {row.loss: f"{row.gain:+.3g} ({row.rank}; {row.alike:.0%})" for row in group.itertuples()}
        one = told.get(keys)
        last = (
            [f"{one['tau']:.2f} [{one['low']:.2f}, {one['high']:.2f}]", f"{one['right']} of {one['losses']}"]
            if one
            else [""] * 2 * bool(told)
        )
        lines.append(_line([keys[0], keys[1], keys[2], *(cells.get(name, "") for name in names), *last]))
    for base, table in (effects or {}).items():
        known = table.mean()
        ranks = known.rank(ascending=False, method="min")
        lines.append(
            _line(
                [base, "", "final effect", *(f"{known[name]:+.3g} ({ranks[name]:.0f})" if name in known else "" for name in names), "", ""]
            )
        )
    return "\n".join(lines) + "\n"


def _line(cells: list) -> str:
    return f"| {' | '.join(map(str, cells))} |"
