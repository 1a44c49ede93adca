"""The arms that a comparison puts first, once more on fresh seeds: the best of many is flattered by the chance that made it the best."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence

from meltr_ray.config import Config
from meltr_ray.errors import check
from tune_spaces.arms import SEARCH_SEED_OFFSET, Trial, led
from tune_spaces.screening import CONFIRMATION_SEED_OFFSET


def check_leaders(config: Config) -> None:
    """Refuse more leaders than there are arms, and seeds that aren't fresh.

    Raises:
        ConfigError: names the setting.
    """
    sweep = config.sweep
    check(
        0 <= sweep.leaders <= len(led(config)),
        "sweep.leaders",
        sweep.leaders,
        f"must lie between 0 and the {len(led(config))} arms that are compared; change it",
    )
    check(not sweep.leaders or config.seed + sweep.seeds <= SEARCH_SEED_OFFSET, "seed", config.seed,
          f"seeds from {SEARCH_SEED_OFFSET} on are those of searches and of the leaders; lower it")  # fmt: skip


def leaders(config: Config, trials: Sequence[Trial], scores: Mapping[str, float]) -> list[str]:
    """The best arms of a comparison by their mean on validation, best first, then the first baseline; none before all of it has ended.

    Args:
        trials: of the comparison, arms that aren't compared included.
        scores: ended trial -> best score on validation; minus infinity where it diverged.
    """
    compared = [trial for trial in trials if trial.arm in led(config)]
    if not config.sweep.leaders or not compared or any(trial.name not in scores for trial in compared):
        return []
    means = {
        arm: statistics.mean(scores[trial.name] for trial in compared if trial.arm == arm)
        for arm in dict.fromkeys(trial.arm for trial in compared)
    }
    best = sorted(means, key=lambda arm: -means[arm])[: config.sweep.leaders]
    return list(dict.fromkeys([*best, *config.sweep.baselines[:1]]))


def fresh(config: Config, trials: Sequence[Trial], scores: Mapping[str, float]) -> list[Trial]:
    """The leaders as they were compared, on the seeds of a confirmation. The test split is scored in these alone."""
    of_arms, found = {trial.arm: trial for trial in reversed(trials)}, []
    for seed in range(CONFIRMATION_SEED_OFFSET, CONFIRMATION_SEED_OFFSET + config.sweep.confirmation_seeds):
        for arm in leaders(config, trials, scores):
            again = copy.deepcopy(of_arms[arm].config)
            again.seed = seed
            found.append(Trial(f"{arm}-seed{seed}", arm, "confirmation", again, test=True))
    return found
