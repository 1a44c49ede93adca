"""Run the phases of a sweep, gather what its trials wrote, keep the best."""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Callable, Iterator, TextIO

from omegaconf import DictConfig, OmegaConf

from meltr_ray.cluster.asking import Asking, begun, then
from meltr_ray.cluster.budget import Budget
from meltr_ray.cluster.connection import connected
from meltr_ray.cluster.interruption import Interruption
from meltr_ray.cluster.left import has_best
from meltr_ray.cluster.lost import NoMachine
from meltr_ray.cluster.machines import check_machines
from meltr_ray.cluster.placement import at_once, check_holds
from meltr_ray.cluster.progress import Progress
from meltr_ray.cluster.searches import best_scores, chosen_rates, learning_rates_tried
from meltr_ray.cluster.tune import run_source, run_trials
from meltr_ray.config import Config, SweepConfig, own_file
from meltr_ray.config import file as config_file
from meltr_ray.config.workload_file import keep_text
from meltr_ray.loggers.named import begin
from meltr_ray.results import table as results
from meltr_ray.storage import put, sealed
from meltr_ray.storage.saying import say
from meltr_ray.training import splits
from meltr_ray.training.checkpoint import BEST
from meltr_ray.training.overlap import overlap
from meltr_ray.training.shared import check_shared, shared
from tune_spaces import equal_budgets, plan, screening, space_search
from tune_spaces.arms import Trial
from tune_spaces.cost import Timed
from tune_spaces.plan import Known, Phase


def start(folder: Path, settings: DictConfig, config: Config, command: str, counted: Mapping[str, int] | None = None) -> None:
    """Write what a resumed sweep and the analysis read. `counted`: arm -> candidates that `sweep.budget_each` buys.

    Raises:
        ConfigError: a resumed sweep's workload has another text now, or other data.
    """
    keep_text(config.workload, folder / "workload")
    said, found = said_before(folder), shared(config.workload)
    check_shared(config.workload, said.get("shared", {}), found)
    check_tables(folder, space_search.SpaceSearch(settings, config, {}) if space_search.asks(config) else None)
    before = folder / "settings.yaml"
    grown = (
        growth(config_file.make(config_file.load(own_file.settings_file(folder))).sweep, config.sweep)
        if sealed.there(before) and any(folder.glob(f"trials/*/{results.FILE}"))
        else {}
    )
    sealed.put_twice(folder / "settings.yaml", OmegaConf.to_yaml(settings))
    config_file.write(folder / "config.yaml", config)
    describe(
        folder,
        config,
        chosen_rates(learning_rates_tried(folder)),
        command,
        ended=None,
        candidates=counted or {},
        shared=found | said.get("shared", {}),
        grown=[*said.get("grown", []), {"when": now(), "what": grown}] if grown else [],
    )


def check_tables(folder: Path, search: space_search.SpaceSearch | None) -> None:
    """Of a sweep that goes on: tables of trials that are damaged are mended or set aside, and lines say of these, and of what is gone, what
    becomes of their trials."""
    gathered, trials = results.whole_gathered(folder), folder / "trials"
    for name in [] if gathered is None else gathered["trial"].unique().to_pylist():
        if not (trials / name / results.FILE).exists():
            gone = trials / name / results.FILE if (trials / name).exists() else trials / name
            say(f"{gone}: is gone; {then(search, trials / name)}")
    for trial in sorted(trials.glob("*")):
        results.set_aside(trial, gathered, lambda trial=trial: then(search, trial))


def growth(before: SweepConfig, now: SweepConfig) -> dict[str, list[Any]]:
    """Setting -> [what it was, what it is], of those by which a comparison has grown after results were there."""
    names = ("seeds", "other_seeds", "samples") if now.design == "none" else ()
    found = {name: [getattr(before, name), getattr(now, name)] for name in names}
    found["arms"] = [list(before.arms), list(now.arms)]
    return {f"sweep.{name}": pair for name, pair in found.items() if pair[0] != pair[1]}


def said_before(folder: Path) -> dict[str, Any]:
    """What `sweep.json` says; nothing where there is none, or, with a line, where neither it nor its copy is as it was written."""
    try:
        return own_file.facts(folder)
    except sealed.Damaged as error:
        say(f"{error}; it is written anew, and when the sweep was started and how it has grown is lost")
        return {}


def candidates_of(folder: Path) -> dict[str, int]:
    """Arm -> candidates of its search, as they were counted when the sweep was started: times taken again would give others.

    Raises:
        Damaged: neither `sweep.json` nor its copy is as it was written.
    """
    return own_file.facts(folder).get("candidates", {})


class Ending(Enum):
    """Why a sweep came to its end."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    BUDGET = "at the end of its budget"


def run(folder: Path, settings: DictConfig, config: Config, command: str, terminal: TextIO, total: int,
        choose: Callable[[Path], tuple[str, ...]], interruption: Interruption, timed: Timed | None = None) -> Ending:  # fmt: skip
    """All trials that are left, and what the analysis reads of them.

    `total`: trials that there can be. `choose`: from the folder of a sweep whose screening is done to the auxiliary losses that help.
    `interruption`: what asks running trials to stop. `timed`: what trials cost, where `sweep.budget` limits that.
    """
    metric, counted = next(iter(config.workload.metrics.values())), candidates_of(folder)
    equal = equal_budgets.EqualBudgets(settings, config, counted) if config.sweep.budget_each else None
    progress = Progress(terminal, total, config.sweep.progress_every, metric)
    progress.take_up(results.read_trial(trial) for trial in folder.glob("trials/*"))
    budget = Budget.of(folder, config.sweep.budget_seconds)
    ending = Ending.FINISHED
    begin(config.loggers, folder)
    try:
        with connected(config):
            check_machines(config, folder)
            check_holds(config)
            config.sweep.max_concurrent = at_once(config)
            for phase in plan.phases(settings, config, counted):
                if phase.asks and not (budget.exhausted or interruption.asked):
                    source = Asking(phase.asks(known_of(folder)), folder)
                    progress.skip(len(source.tried) - len(source.waiting))
                    run_source(source, folder, config, progress, budget, timed.cost if timed else lambda trial: 0.0)
                    continue
                for number, (known, trials) in enumerate(rounds(phase, settings, config, folder, choose)):
                    if budget.exhausted or interruption.asked:
                        break
                    begun = [] if number else phase.trials(dataclasses.replace(known, tried={}, weighed={}))  # the plan has as many
                    progress.expect(0 if phase.is_counted else len(trials) - len(begun))
                    describe(
                        folder,
                        config,
                        known.rates,
                        command,
                        ended=None,
                        best=known.best,
                        settings_chosen=equal.chosen(known.halved) if equal else {},
                    )
                    run_trials(trials, folder, config, progress, budget, timed.cost if timed else lambda trial: 0.0)
    except NoMachine:
        say("the cluster has no machine left: Ray's raylet was killed, or its machine is gone")
        interruption.begin(signal.SIGTERM)
    except KeyboardInterrupt:  # at once, or trials that take too long to stop
        pass
    interruption.trials_ended()
    if interruption.asked:
        ending = Ending.INTERRUPTED
        results.mark_stopped(folder)
    results.gather(folder)
    describe(folder, config, chosen_rates(learning_rates_tried(folder)), command, ended=now(),
             settings_chosen=equal.chosen(best_scores(folder, equal_budgets.PHASE)) if equal else {})  # fmt: skip
    keep_best(folder)
    return Ending.BUDGET if budget.exhausted else ending


def known_of(folder: Path, best: tuple[str, ...] | None = None) -> Known:
    """What the trials of a sweep have found so far."""
    tried = learning_rates_tried(folder)
    return Known(chosen_rates(tried), best, tried, best_scores(folder, "weight_search"), best_scores(folder, equal_budgets.PHASE),
                 best_scores(folder, "comparison"))  # fmt: skip


def rounds(
    phase: Phase, settings: DictConfig, config: Config, folder: Path, choose: Callable[[Path], tuple[str, ...]]
) -> Iterator[tuple[Known, list[Trial]]]:
    """Trials of a phase, and those that it asks for when they have ended, until there are no new ones."""
    seen: set[str] = set()
    while True:
        known = known_of(folder, choose(folder) if phase.needs_best else None)
        if space_search.asks(config):
            known = dataclasses.replace(known, searched=begun(space_search.SpaceSearch(settings, config, known.rates), folder))
        trials = [trial for trial in phase.trials(known) if trial.name not in seen]
        if not trials:
            return
        seen |= {trial.name for trial in trials}
        yield known, trials


def describe(
    folder: Path, config: Config, rates: dict[str, float], command: str, ended: str | None, best: tuple[str, ...] | None = None, **more: Any
) -> None:
    """`sweep.json` and `baselines.json`: what the analysis needs to know besides the results table; `more` of it stays until it is given anew."""
    path, workload = folder / "sweep.json", config.workload
    before = said_before(folder)
    kept = {name: before[name] for name in ("candidates", "settings_chosen", "grown", "shared") if before.get(name)} | {
        name: value for name, value in more.items() if value
    }
    known: dict[str, Any] = (
        dataclasses.asdict(config.sweep)
        | kept
        | {
            "metrics": {name: dataclasses.asdict(metric) for name, metric in workload.metrics.items()},
            "losses": {"primary": config.losses.primary, "set": list(config.losses.set), "controls": list(workload.planted())},
            "workload": workload.source,
            "started": before.get("started") or now(),
            "ended": ended,
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
            "command": command,
            "data": workload.describe(),
            "caveats": [*workload.caveats(), *splits.said(workload), *overlap(workload)],
            "learning_rate_chosen": rates,
            "best": list(best) if best is not None else before.get("best"),
        }
    )
    if config.sweep.design != "none":
        design = screening.design_of(config)
        known["confirmation"] = screening.confirmed(config, known["best"])
        known["screening"] = {"kind": design.kind, "losses": list(design.losses), "rows": screening.rows(config),
                              "controls": screening.factors(config)[1]}  # fmt: skip
    sealed.put_json(path, known)
    sealed.put_json(folder / "baselines.json", workload.baselines())


def keep_best(folder: Path) -> None:
    """Copy weights and settings of the trial with the highest validation score to `<folder>/best/`."""
    rows = [
        row
        for row in results.gather(folder).to_pylist()
        if row["split"] == "validation" and row["score"] is not None and row["score"] == row["score"]
    ]
    by_score = sorted(rows, key=lambda row: row["score"], reverse=True)
    trials = [folder / "trials" / name for name in dict.fromkeys(row["trial"] for row in by_score)]
    there = next((number for number, trial in enumerate(trials) if has_best(trial)), None)
    if there is None:
        if trials:
            say(f"{trials[0]}: its best weights or settings are gone or damaged, as are all others; {folder / 'best'} isn't written")
        return
    trial = trials[there]
    if there > 0:
        say(f"{trials[0]}: its best weights or settings are gone or damaged, or another's; {folder / 'best'} has those of {trial.name}")
    put(folder / "best" / BEST, (trial / BEST).read_bytes())
    put(folder / "best/config.yaml", sealed.whole_of(trial / "config.yaml").read_bytes())


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
