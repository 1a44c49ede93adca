"""Where a sweep begins: a new one, or one that was interrupted and goes on."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Mapping

from omegaconf import DictConfig

from meltr_ray.config import Config
from meltr_ray.config import file as config_file
from meltr_ray.config.own_file import settings_file
from meltr_ray.config.used import check_given
from meltr_ray.errors import ConfigError
from meltr_ray.storage import sealed
from meltr_ray.storage.disk import check_files
from tune_spaces import plan
from tune_spaces.arms import Trial
from tune_spaces.cost import Timed
from tune_spaces.equal_budgets import EqualBudgets
from workloads import checks, cli
from workloads.growing import grow
from workloads.remote import check_working_folder

WRITTEN = ("settings.yaml", "config.yaml", "sweep.json", "baselines.json", "results.parquet", "report.html", "log.txt")
"""Files of a sweep, each replaced as it goes on."""


def planned(request: cli.Request) -> tuple[DictConfig, Config, Path]:
    """A new sweep: its settings with absolute folders, and where it will be written."""
    settings, config = request.settings, request.config
    check_working_folder(request.given, config)
    checks.make_paths_absolute(config, settings)
    return settings, config, checks.new_folder(config, "sweeps", chosen="name" in request.given)


def resumed(request: cli.Request) -> tuple[DictConfig, Config, Path]:
    """A sweep that was interrupted or has ended: the settings that it was started with, perhaps with more of some, and its folder.

    Raises:
        ConfigError: there is none, or settings were given that would make it another sweep.
    """
    folder = Path(request.config.resume).absolute()
    if not sealed.there(folder / "settings.yaml"):
        raise ConfigError(f"resume={request.config.resume}: no sweep was started there; give a folder under outputs/sweeps")
    check_files("resume", folder, WRITTEN)
    old = config_file.load(settings_file(folder))
    grow(old, request)
    return old, config_file.make(old), folder


def checked_trials(request: cli.Request, settings: DictConfig, config: Config) -> list[Trial]:
    """Every trial of the plan, each configuration tried, before any worker starts and anything of the sweep is written.

    Raises:
        ConfigError: a setting, the machine, the data or the workload doesn't hold what a trial needs.
    """
    trials = plan.all_trials(settings, config)
    if not request.config.resume:
        plan.check_space(settings, config)
        check_given(request.given, config, (trial.config for trial in trials))
    for trial in trials:
        checks.check_machine(trial.config)
    checks.check_cluster(config)
    checks.check_loggers(config)
    checks.prepare(config)
    from meltr_ray.training.rehearsal import check_all

    check_all(trial.config for trial in trials)
    return trials


def announced(settings: DictConfig, config: Config, folder: Path, trials: list[Trial],
              plan_only: bool) -> tuple[Mapping[str, int], Timed | None, int]:  # fmt: skip
    """Print the plan, and its cost where that was asked for. Returns the candidates that `sweep.budget_each` buys each arm, what short
    trials took, and the number of trials."""
    from meltr_ray.cluster import sweep as phases

    timed, counted, words = None, {}, []
    if config.sweep.budget_each:
        counted = phases.candidates_of(folder)
        if not counted:
            timed = time_some(config, trials, folder)
            counted = EqualBudgets(settings, config, {}).count(timed.cost)
        trials, words = plan.all_trials(settings, config, counted), EqualBudgets(settings, config, counted).in_words()
    words += plan.search_in_words(settings, config)
    print(
        "\n".join([*words, *plan.in_words(config, trials), f"{len(trials)} trial{'s' * (len(trials) > 1)} in all -> {folder}"]), flush=True
    )
    if timed is None and (plan_only or config.sweep.budget):
        timed = time_some(config, trials, folder)
    if timed:
        print("\n".join(plan.cost_in_words(config, trials, timed)), flush=True)
    return counted, timed, len(trials)


def time_some(config: Config, trials: list[Trial], sweep: Path) -> Timed:
    """What the trials of the plan of `sweep` cost, from a few that are cut short; their folder, beside those of sweeps, goes again."""
    from meltr_ray.cluster.timing import timed

    sweep.parents[1].mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(prefix=".timing-", dir=sweep.parents[1], ignore_cleanup_errors=True) as folder,
        cli.chatter_to(Path(folder) / "log.txt"),
    ):
        return timed(trials, Path(folder), config)
