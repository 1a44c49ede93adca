"""From the scores of a screening to the effect of each loss, its interval and its verdict.

An effect is the mean over seeds of a contrast of one seed's runs; its error is the spread of that contrast over seeds, never the
residuals of all runs together, as losses help by more with one seed than with another. All intervals that a verdict is read from
are one family and hold together (analysis/simultaneous.py): each loss's average effect and its change from beside the primary to
the full set, and both effects of each control. The losses and the controls are steadied apart, each with its share of the 5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from analysis import contrasts
from analysis.family import Cells, Contrast, Estimate, contrast, grain, plain, together
from analysis.simultaneous import LEVEL, spent
from analysis.verdicts import kind_of, seeds_to_tell, words
from tune_spaces.designs import Design, Pair

OWN_SPREAD_SEEDS = 6
"""Seeds from which an effect's own spread says enough of its error; below, it rests visibly on the average of the family."""


@dataclass(frozen=True)
class Scores:
    """What the trials of a screening scored, higher = better; NaN = missing. A diverged trial has the score that it is given."""

    design: Design
    seeds: tuple[int, ...]
    values: np.ndarray
    """(seeds, rows)."""
    controls: dict[str, np.ndarray] = field(default_factory=dict)
    """Control -> (seeds, 2): beside the primary alone, and beside it and all losses."""


@dataclass(frozen=True)
class Effect:
    """A row of the table. An estimate that the design doesn't allow, or of which too few trials are there, is None."""

    loss: str
    control: bool
    beside: Estimate | None
    """Added to the primary alone."""
    average: Estimate | None
    """In minus out, on average over the other losses."""
    in_full: Estimate | None
    """All losses minus all but this one."""
    change: Estimate | None
    """`beside` minus `in_full`."""
    judged: str
    """Which of them the verdict is read from: `average`, else `in_full` or `beside`."""
    kind: str
    """`helps`, `harms`, `none`, `undecided` or `depends`."""
    verdict: str
    imputed: int
    """Missing trials that its estimates weigh."""
    modelled: bool = False
    """Whether `in_full` comes from a model of losses and pairs, as the row isn't in the design."""
    partner: str | None = None
    """The loss that this one depends on."""
    without_partner: Estimate | None = None
    with_partner: Estimate | None = None
    """What it gives with the partner out and in, on average over the rest; intervals are plain ones, outside the family."""

    @property
    def shown(self) -> Estimate | None:
        """The estimate whose interval is shown and judged."""
        return getattr(self, self.judged)


@dataclass(frozen=True)
class Interaction:
    """What either loss of a pair gives with the other in, minus out; of a group of aliased pairs, their sum. A plain 95 % interval."""

    pairs: tuple[Pair, ...]
    estimate: Estimate


@dataclass(frozen=True)
class Screening:
    """The table and what it rests on."""

    design: Design
    effects: tuple[Effect, ...]
    """Losses in the order of the design, then controls."""
    interactions: tuple[Interaction, ...]
    seeds: tuple[int, ...]
    """Those with any score."""
    margin: float
    share: float
    """Of the 5 %, spent at this look."""
    missing: int
    """Trials without a score, of these seeds."""
    few_seeds: bool
    """Fewer than six."""


def effects(scores: Scores, margin: float, looks: Sequence[int] = ()) -> Screening:
    """The table of a screening.

    A loss "depends on" another where its change's own interval excludes 0 and the change is larger than the margin; unless, by its
    average, it helps (or harms), and by the margin or more both beside the primary and in the full set. The one named has the
    interaction that does most for the change. Designs in which pairs are aliased have no change, so no verdict of this kind:
    the table says so.

    Args:
        margin: a difference that matters, in the unit of the scores.
        looks: numbers of seeds at which a look was planned beforehand; none: this is the only one.
    """
    design, names = scores.design, list(scores.controls)
    seen = ~np.isnan(scores.values).all(1)
    values, seeds = scores.values[seen], tuple(seed for seed, there in zip(scores.seeds, seen) if there)
    everything = np.concatenate([values.ravel(), *(each[seen].ravel() for each in scores.controls.values())])
    cells = Cells(contrasts.fill(values), np.isnan(values), grain(everything))
    losses = {loss: _of_loss(design, loss, cells) for loss in design.losses}
    controls = {name: _of_control(scores.controls[name][seen], cells) for name in names}
    share = spent(looks, len(seeds)) if seeds else 1.0
    of_losses = [found[name] for loss, found in losses.items() for name in (contrasts.judged(design, loss), "change")]
    of_controls = [found[name] for found in controls.values() for name in ("beside", "in_full")]
    together([[member for member in group if member] for group in (of_losses, of_controls)], share * LEVEL)
    pairs = _interactions(design, cells)
    missing = int(cells.absent.sum()) + sum(int(np.isnan(scores.controls[name][seen]).sum()) for name in names)
    rows = [_row(loss, False, found, margin, design, pairs) for loss, found in losses.items()]
    rows += [_row(name, True, found, margin, design, pairs) for name, found in controls.items()]
    return Screening(design, tuple(rows), tuple(pairs), seeds, margin, share, missing, len(seeds) < OWN_SPREAD_SEEDS)


def best_set(screening: Screening) -> tuple[str, ...]:
    """The losses to train with: those that help, then those that depend on another, the largest average first, where they help.

    A loss that depends on another is taken if, with the partner in or out as the set so far has it, its effect's plain interval
    lies above 0. Confirmation on fresh seeds decides whether the set is better; this only chooses what it is tried with.
    """
    chosen = {effect.loss for effect in screening.effects if effect.kind == "helps" and not effect.control}
    depending = [effect for effect in screening.effects if effect.kind == "depends"]
    for effect in sorted(depending, key=lambda effect: -effect.shown.mean):
        given = effect.with_partner if effect.partner in chosen else effect.without_partner
        if given.low > 0:
            chosen.add(effect.loss)
    return tuple(loss for loss in screening.design.losses if loss in chosen)


def _of_loss(design: Design, loss: str, cells: Cells) -> dict[str, Contrast | None]:
    kinds = {"beside": contrasts.beside, "average": contrasts.average, "in_full": contrasts.in_full, "change": contrasts.change}
    return {name: contrast(weights(design, loss), cells) for name, weights in kinds.items()}


def _of_control(values: np.ndarray, cells: Cells) -> dict[str, Contrast | None]:
    """A control's own missing trials are left out; those of the rows that it is compared with are filled in."""
    found: dict[str, Contrast | None] = {}
    for name, control, row in (("beside", values[:, 0], 0), ("in_full", values[:, 1], -1)):
        per_seed, there = control - cells.filled[:, row], ~np.isnan(control)
        seeds = there.sum() - cells.absent[there, row].sum() / 2
        lost = int((~there).sum() + cells.absent[there, row].sum())
        found[name] = Contrast(per_seed, 2.0, float(seeds), lost, cells.grain) if np.isfinite(per_seed).any() else None
    return found


def _interactions(design: Design, cells: Cells) -> list[Interaction]:
    groups = [*design.aliased, *((pair,) for pair in design.pairs() if not any(pair in group for group in design.aliased))]
    groups = sorted(groups, key=lambda group: design.pairs().index(group[0]))
    founds = [(group, contrast(contrasts.interaction(design, group[0]), cells)) for group in groups]
    return [Interaction(group, plain(found)) for group, found in founds if found is not None]


def _row(loss: str, control: bool, found: dict[str, Contrast | None], margin: float, design: Design, pairs: list[Interaction]) -> Effect:
    judged = "beside" if control else contrasts.judged(design, loss)
    shown, change = found[judged], found.get("change")
    imputed = max((member.imputed for member in found.values() if member is not None), default=0)
    estimates = {name: member.estimate() if member else None for name, member in found.items()}
    effect = Effect(loss, control, estimates["beside"], estimates.get("average"), estimates["in_full"], estimates.get("change"),
                    judged, "undecided", words("undecided", 0, 0, margin), imputed,
                    modelled=not control and found["in_full"] is not None and not contrasts.is_row(design, loss))  # fmt: skip
    if shown is None:
        return effect
    kind = kind_of(shown.low, shown.high, margin)
    partner = _partner(loss, change.mean, pairs) if change and _depends(kind, found, margin) else None
    if partner:
        link = next(pair.estimate.per_seed for pair in pairs if set(pair.pairs[0]) == {loss, partner})
        out, into = (plain(replace(found["average"], per_seed=shown.per_seed + sign * link / 2)) for sign in (-1, 1))
        effect, kind = replace(effect, partner=partner, without_partner=out, with_partner=into), "depends"
    more = seeds_to_tell(shown.mean, (shown.high - shown.low) / 2, shown.seeds, shown.value, shown.limit, margin)
    return replace(effect, kind=kind, verdict=words(kind, shown.low, shown.high, margin, more, partner))


def _depends(kind: str, found: dict[str, Contrast | None], margin: float) -> bool:
    change, ends = found["change"], (found["beside"].mean, found["in_full"].mean)
    if not (change.low > 0 or change.high < 0) or abs(change.mean) <= margin:
        return False
    throughout = {"helps": min(ends) >= margin, "harms": max(ends) <= -margin}.get(kind, False)
    return not throughout


def _partner(loss: str, change: float, pairs: list[Interaction]) -> str | None:
    """The other of the pair whose interaction does most for the change, which is minus the sum of the loss's interactions."""
    of_loss = [pair for pair in pairs if len(pair.pairs) == 1 and loss in pair.pairs[0]]
    if not of_loss:
        return None
    most = min(of_loss, key=lambda pair: pair.estimate.mean * np.sign(change))
    return next(other for other in most.pairs[0] if other != loss)
