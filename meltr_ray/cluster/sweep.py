"""Run the phases of a sweep, gather what its trials wrote, keep the best."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
from datetime import datetime, timezone
from enum import Enum
from math import inf, nan
from pathlib import Path
from typing import Any, Callable, Iterator, TextIO

from omegaconf import DictConfig, OmegaConf

from meltr_ray.cluster.budget import Budget
from meltr_ray.cluster.progress import Progress
from meltr_ray.cluster.tune import connected, run_trials
from meltr_ray.config import Config
from meltr_ray.config import file as config_file
from meltr_ray.config.workload_file import keep_text
from meltr_ray.results import table as results
from meltr_ray.storage import put
from meltr_ray.training import splits
from tune_spaces import plan, screening
from tune_spaces.arms import Trial, Tried
from tune_spaces.cost import Timed
from tune_spaces.plan import Known, Phase
from tune_spaces.rates import chosen


def start(folder: Path, settings: DictConfig, config: Config, command: str) -> None:
    """Write what a resumed sweep and the analysis read.

    Raises:
        ConfigError: a resumed sweep's workload has another text now.
    """
    keep_text(config.workload, folder / "workload")
    if not (folder / "settings.yaml").exists():
        put(folder / "settings.yaml", OmegaConf.to_yaml(settings))
        config_file.write(folder / "config.yaml", config)
    describe(folder, config, chosen_rates(learning_rates_tried(folder)), command, ended=None)


class Ending(Enum):
    """Why a sweep came to its end."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    BUDGET = "at the end of its budget"


def run(folder: Path, settings: DictConfig, config: Config, command: str, terminal: TextIO, total: int,
        choose: Callable[[Path], tuple[str, ...]], timed: Timed | None = None) -> Ending:  # fmt: skip
    """All trials that are left, and what the analysis reads of them.

    `total`: trials that there can be. `choose`: from the folder of a sweep whose screening is done to the auxiliary losses that help.
    `timed`: what trials cost, where `sweep.budget` limits that.
    """
    metric = next(iter(config.workload.metrics.values()))
    progress = Progress(terminal, total, config.sweep.progress_every, metric)
    budget = Budget.of(folder, config.sweep.budget_seconds)
    ending = Ending.FINISHED
    try:
        with connected(config):
            for phase in plan.phases(settings, config):
                for number, (known, trials) in enumerate(rounds(phase, folder, choose)):
                    if budget.exhausted:
                        break
                    progress.expect(len(trials) if number else 0)
                    describe(folder, config, known.rates, command, ended=None, best=known.best)
                    run_trials(trials, folder, config, progress, budget, timed.cost if timed else lambda trial: 0.0)
    except KeyboardInterrupt:
        ending = Ending.INTERRUPTED
        results.mark_stopped(folder)
    results.gather(folder)
    describe(folder, config, chosen_rates(learning_rates_tried(folder)), command, ended=now())
    keep_best(folder)
    return Ending.BUDGET if budget.exhausted else ending


def rounds(phase: Phase, folder: Path, choose: Callable[[Path], tuple[str, ...]]) -> Iterator[tuple[Known, list[Trial]]]:
    """Trials of a phase, and those that it asks for when they have ended, until there are no new ones."""
    seen: set[str] = set()
    while True:
        tried = learning_rates_tried(folder)
        known = Known(chosen_rates(tried), choose(folder) if phase.needs_best else None, tried, best_scores(folder, "weight_search"))
        trials = [trial for trial in phase.trials(known) if trial.name not in seen]
        if not trials:
            return
        seen |= {trial.name for trial in trials}
        yield known, trials


def learning_rates_tried(folder: Path) -> Tried:
    """Of rates whose trials have all ended: the mean of their best validation scores; minus infinity where one diverged."""
    scores: dict[str, dict[float, list[float]]] = {}
    for rows in _by_trial(folder, "learning_rate_search").values():
        scores.setdefault(rows[-1]["arm"], {}).setdefault(rows[-1]["setting.optimizer.learning_rate"], []).append(_best(rows))
    means = {arm: {rate: statistics.mean(found) for rate, found in rates.items()} for arm, rates in scores.items()}
    return {arm: {rate: mean for rate, mean in rates.items() if mean == mean} for arm, rates in means.items()}


def best_scores(folder: Path, phase: str) -> dict[str, float]:
    """Ended trial of a phase -> its best validation score; minus infinity where it diverged."""
    found = {trial: _best(rows) for trial, rows in _by_trial(folder, phase).items()}
    return {trial: score for trial, score in found.items() if score == score}


def _by_trial(folder: Path, phase: str) -> dict[str, list[dict[str, Any]]]:
    trials: dict[str, list[dict[str, Any]]] = {}
    for row in results.gather(folder).to_pylist():
        if row["phase"] == phase:
            trials.setdefault(row["trial"], []).append(row)
    return trials


def _best(rows: list[dict[str, Any]]) -> float:
    """NaN while the trial hasn't ended."""
    status = results.status_of(row["status"] for row in rows)
    best = max((row["score"] for row in rows if row["score"] is not None), default=nan)
    return {"finished": best, "diverged": -inf}.get(status, nan)


def chosen_rates(tried: Tried) -> dict[str, float]:
    """Arm -> the best learning rate; arms without one: none."""
    return {arm: rate for arm, rates in tried.items() if (rate := chosen(rates)) is not None}


def describe(folder: Path, config: Config, rates: dict[str, float], command: str, ended: str | None,
             best: tuple[str, ...] | None = None) -> None:
    """`sweep.json` and `baselines.json`: what the analysis needs to know besides the results table."""
    path, workload = folder / "sweep.json", config.workload
    before = json.loads(path.read_text()) if path.exists() else {}
    known: dict[str, Any] = dataclasses.asdict(config.sweep) | {
        "metrics": {name: dataclasses.asdict(metric) for name, metric in workload.metrics.items()},
        "losses": {"primary": config.losses.primary, "set": list(config.losses.set), "controls": list(workload.planted())},
        "workload": workload.source,
        "started": before.get("started") or now(),
        "ended": ended,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "command": command,
        "data": workload.describe(),
        "caveats": [*workload.caveats(), *splits.said(workload)],
        "learning_rate_chosen": rates,
        "best": list(best) if best is not None else before.get("best"),
    }
    if config.sweep.design != "none":
        design = screening.design_of(config)
        known["confirmation"] = screening.confirmed(config, known["best"])
        known["screening"] = {"kind": design.kind, "losses": list(design.losses), "rows": screening.rows(config),
                              "controls": screening.factors(config)[1]}  # fmt: skip
    put(path, json.dumps(known, indent=1))
    put(folder / "baselines.json", json.dumps(workload.baselines(), indent=1))


def keep_best(folder: Path) -> None:
    """Copy weights and settings of the trial with the highest validation score to `<folder>/best/`."""
    rows = [row for row in results.gather(folder).to_pylist() if row["split"] == "validation" and row["score"] is not None]
    rows = [row for row in rows if (folder / "trials" / row["trial"] / "best.safetensors").exists()]
    if not rows:
        return
    trial = folder / "trials" / max(rows, key=lambda row: row["score"])["trial"]
    for name in ("best.safetensors", "config.yaml"):
        put(folder / "best" / name, (trial / name).read_bytes())


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
