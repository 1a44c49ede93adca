"""The phases of a sweep: search the learning rates, run the comparison, gather, keep the best."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf

from meltr_ray.cluster.progress import Progress
from meltr_ray.cluster.tune import connected, run_trials
from meltr_ray.config import Config
from meltr_ray.config import file as config_file
from meltr_ray.config.workload_file import keep_text
from meltr_ray.results import table as results
from meltr_ray.storage import put
from meltr_ray.training import splits
from tune_spaces.arms import comparison, learning_rate_search


def start(folder: Path, settings: DictConfig, config: Config, command: str) -> None:
    """Write what a resumed sweep and the analysis read.

    Raises:
        ConfigError: a resumed sweep's workload has another text now.
    """
    keep_text(config.workload, folder / "workload")
    if not (folder / "settings.yaml").exists():
        put(folder / "settings.yaml", OmegaConf.to_yaml(settings))
        config_file.write(folder / "config.yaml", config)
    describe(folder, config, best_learning_rates(folder), command, ended=None)


def run(folder: Path, settings: DictConfig, config: Config, command: str, terminal: TextIO) -> bool:
    """All trials that are left, and what the analysis reads of them. Returns whether Ctrl-C ended it early."""
    search, trials = learning_rate_search(settings, config), comparison(settings, config, {})
    metric = next(iter(config.workload.metrics.values()))
    progress = Progress(terminal, len(search) + len(trials), config.sweep.progress_every, metric)
    interrupted = False
    try:
        with connected(config):
            run_trials(search, folder, config, progress)
            rates = best_learning_rates(folder)
            describe(folder, config, rates, command, ended=None)
            run_trials(comparison(settings, config, rates), folder, config, progress)
    except KeyboardInterrupt:
        interrupted = True
        results.mark_stopped(folder)
    results.gather(folder)
    describe(folder, config, best_learning_rates(folder), command, ended=now())
    keep_best(folder)
    return interrupted


def best_learning_rates(folder: Path) -> dict[str, float]:
    """Arm -> the searched learning rate with the highest mean best validation score; arms without a finished trial: none."""
    scores: dict[str, dict[float, list[float]]] = {}
    rows = [row for row in results.gather(folder).to_pylist() if row["phase"] == "learning_rate_search"]
    for row in rows:
        if row["status"] == "finished" and row["split"] == "validation":
            best = max(r["score"] for r in rows if r["trial"] == row["trial"] and r["score"] is not None)
            scores.setdefault(row["arm"], {}).setdefault(row["setting.optimizer.learning_rate"], []).append(best)
    return {arm: max(found, key=lambda rate: statistics.mean(found[rate])) for arm, found in scores.items()}


def describe(folder: Path, config: Config, rates: dict[str, float], command: str, ended: str | None) -> None:
    """`sweep.json` and `baselines.json`: what the analysis needs to know besides the results table."""
    path, workload = folder / "sweep.json", config.workload
    known: dict[str, Any] = dataclasses.asdict(config.sweep) | {
        "metrics": {name: dataclasses.asdict(metric) for name, metric in workload.metrics.items()},
        "losses": {"primary": config.losses.primary, "set": list(config.losses.set), "controls": list(workload.planted())},
        "workload": workload.source,
        "started": json.loads(path.read_text())["started"] if path.exists() else now(),
        "ended": ended,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "command": command,
        "data": workload.describe(),
        "caveats": [*workload.caveats(), *splits.said(workload)],
        "learning_rate_chosen": rates,
    }
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
