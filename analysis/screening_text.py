"""The table of a screening as text: a loss a row, in the metric's own direction."""

from __future__ import annotations

import numpy as np

from analysis import contrasts
from analysis.effects import Effect, Screening
from analysis.family import Estimate

PLACES = {"average": "average", "in_full": "in the full set", "beside": "beside the primary"}


def text(screening: Screening, label: str, higher: bool = True, digits: int = 1, heading: str = "") -> str:
    """The table, and under it what a reader must know to trust it.

    Args:
        label: of the metric.
        higher: whether higher is better. Where lower is, effects have the metric's sign: a loss that helps has a minus.
        heading: the first line; else metric and seeds.
    """
    lines = [tuple(header(screening))]
    for effect in screening.effects:
        means = [number(estimate, higher, digits) for estimate in (effect.beside, effect.average, effect.in_full)]
        name = effect.loss + (" (control)" if effect.control else "")
        lines.append((name, *means, interval(effect.shown, higher, digits), effect.verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    first = heading or f"{label}{'' if higher else ' (lower is better)'}, {count(len(screening.seeds), 'seed')}"
    table = ["   ".join([line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in range(1, 5)), line[5]]) for line in lines]
    return "\n".join([first, *table, *notes(screening)])


def header(screening: Screening) -> list[str]:
    judged = next(effect.judged for effect in screening.effects)
    return ["loss", "beside the primary", "on average", "in the full set", f"95 % ({PLACES[judged]})", "verdict"]


def number(estimate: Estimate | None, higher: bool = True, digits: int = 1) -> str:
    """With its sign; empty where there is none."""
    return "" if estimate is None or np.isnan(estimate.mean) else _signed(estimate.mean if higher else -estimate.mean, digits)


def interval(estimate: Estimate | None, higher: bool = True, digits: int = 1) -> str:
    """`[low, high]` in the metric's direction; empty where there is none, or too few trials for one."""
    if estimate is None or not np.isfinite([estimate.low, estimate.high]).all():
        return ""
    low, high = (estimate.low, estimate.high) if higher else (-estimate.high, -estimate.low)
    return f"[{_signed(low, digits)}, {_signed(high, digits)}]"


def notes(screening: Screening) -> tuple[str, ...]:
    """A sentence on each thing that the table rests on and doesn't show."""
    losses = [effect for effect in screening.effects if not effect.control]
    found = []
    if any(effect.control for effect in screening.effects):
        found.append("A control's interval is that of its effect beside the primary.")
    if len(losses) > 1 and all(contrasts.change(screening.design, effect.loss) is None for effect in losses):
        found.append(f"Whether a loss's effect depends on another can't be told from this design ({screening.design.kind}).")
    if any(effect.modelled for effect in losses):
        found.append("In the full set: estimated by a model of losses and pairs, since the design lacks those rows.")
    if screening.missing:
        found.append(
            f"Trials without a score: {screening.missing}. Missing scores of losses are estimated by least squares, which makes intervals wider."
        )
    if screening.few_seeds:
        found.append(f"{count(len(screening.seeds), 'seed')}: too few for an effect's spread to be known well, so intervals are wide.")
    return tuple(found)


def depends(effect: Effect, higher: bool = True, digits: int = 1) -> str:
    """What a loss gives with the loss that it depends on out, and in; empty for others."""
    if effect.partner is None:
        return ""
    out, into = (
        f"{number(given, higher, digits)} {interval(given, higher, digits)}" for given in (effect.without_partner, effect.with_partner)
    )
    return f"{effect.loss}: {out} without {effect.partner}, {into} with it"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # + 0.0: no "-0.0"
