"""The trials of a screening: the rows of a design over the auxiliary losses, and the confirmation of the set that it chose.

Every row trains with weight 1 for each of its losses, on the same seeds: initial weights, data order and masks are paired. Controls
are no factors, as one that costs more beside the primary loss than in the full set would shift every other average: each joins
the two corners of the design alone.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from meltr_ray.config import Config
from meltr_ray.config.file import make
from meltr_ray.errors import check
from meltr_ray.workload import CONSTANT
from tune_spaces import designs
from tune_spaces.arms import SEARCH_SEED_OFFSET, Trial, Tried, search_trials

NONE, ALL, BEST = "primary_only", "uniform", "best"
"""The corners of a design, which are the usual baselines, and what it chose."""
CONFIRMATION_SEED_OFFSET = 2000
"""Seeds of the confirmation start here: a set is never called better on the trials that chose it."""


def factors(config: Config) -> tuple[list[str], list[str]]:
    """(genuine auxiliary losses, controls) of the loss set; `constant`, which has no gradient, is left out."""
    planted, auxiliary = config.workload.planted(), [loss for loss in config.losses.set if loss != config.losses.primary]
    return [loss for loss in auxiliary if loss not in planted], [loss for loss in auxiliary if loss in planted and loss != CONSTANT]


def design_of(config: Config) -> designs.Design:
    """The design over the losses of a configuration.

    Raises:
        ConfigError: no auxiliary loss, or more than a design holds.
    """
    return designs.of(config.sweep.design, factors(config)[0])


def rows(config: Config) -> dict[str, list[str]]:
    """Arm -> its losses, the primary first: the design's rows, then the corners with each control."""
    design, (_, controls) = design_of(config), factors(config)
    primary, every = config.losses.primary, design.losses
    found = {arm_of(row, every): [primary, *row] for row in design.rows}
    for control in controls:
        found |= dict(zip(arms_of_control(control), ([primary, control], [primary, *every, control])))
    return found


def arm_of(row: tuple[str, ...], losses: tuple[str, ...]) -> str:
    """The name of a row of the design."""
    return NONE if not row else ALL if len(row) == len(losses) else f"with_{'_and_'.join(row)}"


def arms_of_control(control: str) -> tuple[str, str]:
    """Beside the primary alone, and beside it and all losses."""
    return f"{NONE}_with_{control}", f"{ALL}_with_{control}"


def screening(settings: DictConfig, config: Config, rates: dict[str, float]) -> list[Trial]:
    """Every row on every seed, block by block, so that what is there early is whole blocks; and the sweep's own arms beside them.

    `rates`: those found for the corners, of which all rows take `common_rate`.
    """
    rate = common_rate(rates)
    changes = {arm: fixed(losses, rate) for arm, losses in rows(config).items()}
    changes |= {arm: ({"optimizer.learning_rate": rate} if rate else {}) | own for arm, own in config.sweep.arms.items()}
    return [Trial(f"{arm}-seed{seed}", arm, "screening", make(settings, changed | {"seed": seed}))
            for seed in range(config.seed, config.seed + config.sweep.seeds) for arm, changed in changes.items()]  # fmt: skip


def common_rate(rates: dict[str, float]) -> float | None:
    """One learning rate for all rows, or effects of losses would be mixed with those of rates: that of the full set."""
    return rates.get(ALL)


def search(settings: DictConfig, config: Config, arms: list[str], tried: Tried) -> list[Trial]:
    """The same learning rates for each of `arms`."""
    return search_trials(settings, config, {arm: settings_of(config, arm, ()) for arm in arms}, tried)


def confirmed(config: Config, best: tuple[str, ...] | None) -> list[str]:
    """Arms of the confirmation, `best` first; none where no loss helps. The full set isn't compared with itself."""
    if not best or not config.sweep.confirm:
        return []
    all_help = set(best) == set(factors(config)[0])
    return [BEST, *(arm for arm in config.sweep.confirm if not (arm == ALL and all_help))]


def search_of_best(settings: DictConfig, config: Config, best: tuple[str, ...] | None, tried: Tried) -> list[Trial]:
    """The learning rates for the chosen set, unless it is the full one, whose are known."""
    if not confirmed(config, best) or set(best) == set(factors(config)[0]):
        return []
    return search_trials(settings, config, {label(config, best): settings_of(config, BEST, best)}, tried)


def label(config: Config, best: tuple[str, ...]) -> str:
    """The name of a chosen set in names of trials: another look may choose another."""
    return f"{BEST}_{arm_of(best, tuple(factors(config)[0]))}"


def confirmation(settings: DictConfig, config: Config, rates: dict[str, float], best: tuple[str, ...] | None) -> list[Trial]:
    """`best` and the arms that it is compared with, on fresh seeds. The test split is scored once."""
    trials, names = [], {BEST: label(config, best or ())}
    same_as = {BEST: ALL if set(best or ()) == set(factors(config)[0]) else names[BEST]}  # of which the rate was searched
    for seed in range(CONFIRMATION_SEED_OFFSET, CONFIRMATION_SEED_OFFSET + config.sweep.confirmation_seeds):
        for arm in confirmed(config, best):
            rate = rates.get(same_as.get(arm, arm))
            changes = settings_of(config, arm, best) | ({"optimizer.learning_rate": rate} if rate else {})
            trials.append(
                Trial(f"{names.get(arm, arm)}-seed{seed}", arm, "confirmation", make(settings, changes | {"seed": seed}), test=True)
            )
    return trials


def settings_of(config: Config, arm: str, best: tuple[str, ...]) -> dict[str, Any]:
    """Settings of an arm of the confirmation."""
    primary, losses = config.losses.primary, factors(config)[0]
    sets = {BEST: [primary, *best], NONE: [primary], ALL: [primary, *losses]}
    return fixed(sets[arm], None) if arm in sets else dict(config.sweep.arms[arm])


def fixed(losses: list[str], rate: float | None) -> dict[str, Any]:
    """Weight 1 for each of `losses`."""
    return {"combiner.name": "fixed", "combiner.weights": "uniform", "losses.set": losses} | (
        {"optimizer.learning_rate": rate} if rate else {}
    )


def check_plan(config: Config) -> None:
    """Refuse a screening that can't be.

    Raises:
        ConfigError: names the setting and the mend.
    """
    sweep = config.sweep
    design_of(config)
    for arm in sweep.confirm:
        check(arm in (NONE, ALL, *sweep.arms), "sweep.confirm", arm, f"no such arm; use {NONE}, {ALL} or one of sweep.arms")
    for arm, changes in sweep.arms.items():
        check(not {"losses.set", "losses.primary"} & set(changes), "sweep.arms", arm,
              "changes the loss set, which the design does; leave that out, or use sweep.design=none")  # fmt: skip
        check(arm not in {*rows(config), BEST}, "sweep.arms", arm, "is the name of a row of the design; call it otherwise")
    check(config.seed + sweep.seeds <= SEARCH_SEED_OFFSET, "seed", config.seed,
          f"seeds from {SEARCH_SEED_OFFSET} on are those of searches and of the confirmation; lower it")  # fmt: skip
