"""The main job: compare ways to combine losses, on a laptop or a Ray cluster, and write an honest report.

    python workloads/sweep.py                                     the embedded data, two cores, about 10 minutes
    python workloads/sweep.py experiment=msrvtt_retrieval         MSR-VTT, after workloads/prepare.py
    python workloads/sweep.py resume=outputs/sweeps/digits        go on with an interrupted sweep
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import DictConfig, OmegaConf  # noqa: E402

from meltr_ray.config import Config, ConfigError, check  # noqa: E402
from meltr_ray.config import file as config_file  # noqa: E402
from meltr_ray.results import table as results  # noqa: E402
from meltr_ray.video.clips.store import load_manifest  # noqa: E402
from tune_spaces.arms import comparison, learning_rate_search, make_config  # noqa: E402
from workloads import cli  # noqa: E402


def sweep(settings: DictConfig, config: Config) -> int:
    """Search the learning rates, run the comparison, gather, report. Returns the exit code."""
    from analysis.report import headline, write_report
    from meltr_ray.video.datasets.prepare import ensure_prepared

    settings, config, folder = resumed(config) if config.resume else planned(settings, config)
    search = learning_rate_search(settings, config)
    trials = comparison(settings, config, {})
    for trial in [*search, *trials]:  # every configuration, before any worker starts and anything is written
        cli.check_machine(trial.config)
    ensure_prepared(config.data.name, Path(config.data.folder), print, config.data.variant)
    cli.check_models(trial.config for trial in [*search, *trials])
    start(folder, settings, config)
    print(f"{len(search) + len(trials)} trials of {len({t.arm for t in trials})} configurations -> {folder}", flush=True)

    with cli.chatter_to(folder / "log.txt") as terminal:
        from meltr_ray.cluster.progress import Progress
        from meltr_ray.cluster.tune import connected, run_trials

        progress = Progress(terminal, len(search) + len(trials), config.sweep.progress_every)
        interrupted = False
        try:
            with connected(config):
                run_trials(search, folder, config, progress)
                rates = best_learning_rates(folder)
                describe(folder, config, rates, ended=None)
                run_trials(comparison(settings, config, rates), folder, config, progress)
        except KeyboardInterrupt:
            interrupted = True
        results.gather(folder)
        describe(folder, config, best_learning_rates(folder), ended=now())
        keep_best(folder)
        report = write_report(folder)
    print(headline(folder))
    print(f"report: {report}")
    if interrupted:
        print(f"interrupted; go on with: python workloads/sweep.py resume={folder}")
        return 130
    return 0


def planned(settings: DictConfig, config: Config) -> tuple[DictConfig, Config, Path]:
    """A new sweep: its settings with absolute folders, and where it will be written."""
    check(bool(config.sweep.arms), "sweep.arms", "{}", "nothing to compare; choose an experiment with arms")
    cli.make_paths_absolute(settings, config)
    return settings, config, cli.new_folder(config, "sweeps", chosen=any(a.startswith("name=") for a in sys.argv[1:]))


def resumed(config: Config) -> tuple[DictConfig, Config, Path]:
    """An interrupted sweep: the settings that it was started with, and its folder.

    Raises:
        ConfigError: there is none, or settings were given that would make it another sweep.
    """
    folder = Path(config.resume).absolute()
    if not (folder / "settings.yaml").exists():
        raise ConfigError(f"resume={config.resume}: no sweep was started there; give a folder under outputs/sweeps")
    others = [a for a in sys.argv[1:] if not a.startswith(("resume=", "sweep.max_concurrent=", "sweep.progress_every="))]
    if others:
        raise ConfigError(f"{others[0]}: a resumed sweep keeps its settings; leave it out or start a new sweep")
    old = config_file.load(folder / "settings.yaml")
    old.sweep.max_concurrent, old.sweep.progress_every = config.sweep.max_concurrent, config.sweep.progress_every
    return old, make_config(old, {}), folder


def start(folder: Path, settings: DictConfig, config: Config) -> None:
    """Write what a resumed sweep and the analysis read."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "settings.yaml").exists():
        OmegaConf.save(settings, folder / "settings.yaml")
        config_file.write(folder / "config.yaml", config)
    describe(folder, config, best_learning_rates(folder), ended=None)


def best_learning_rates(folder: Path) -> dict[str, float]:
    """Arm -> the searched learning rate with the highest mean best validation score; arms without a finished trial: none."""
    scores: dict[str, dict[float, list[float]]] = {}
    rows = [row for row in results.gather(folder).to_pylist() if row["phase"] == "learning_rate_search"]
    for row in rows:
        if row["status"] == "finished" and row["split"] == "validation":
            best = max(r["score"] for r in rows if r["trial"] == row["trial"] and r["score"] is not None)
            scores.setdefault(row["arm"], {}).setdefault(row["optimizer.learning_rate"], []).append(best)
    return {arm: max(found, key=lambda rate: statistics.mean(found[rate])) for arm, found in scores.items()}


def describe(folder: Path, config: Config, rates: dict[str, float], ended: str | None) -> None:
    """`sweep.json` and `baselines.json`: what the analysis needs to know besides the results table."""
    from meltr_ray.training.model import caveats, task_module

    path = folder / "sweep.json"
    manifest = load_manifest(Path(config.data.folder))
    known: dict[str, Any] = dataclasses.asdict(config.sweep) | {
        "task": config.task.name,
        "metric": dataclasses.asdict(task_module(config).METRIC),
        "started": json.loads(path.read_text())["started"] if path.exists() else now(),
        "ended": ended,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "command": "python " + shlex.join(sys.argv),
        "data": {key: manifest[key] for key in ("name", "description", "rows")},
        "loss_set": list(config.task.loss_set),
        "primary": config.task.primary,
        "backbone": f"{config.backbone.name}, size {config.backbone.size}",
        "caveats": caveats(config),
        "learning_rate_chosen": rates,
    }
    write_json(path, known)
    write_json(folder / "baselines.json", manifest["baselines"].get(config.task.name, {}))


def keep_best(folder: Path) -> None:
    """Copy weights and settings of the trial with the highest validation score to `<folder>/best/`."""
    rows = [row for row in results.gather(folder).to_pylist() if row["split"] == "validation" and row["score"] is not None]
    rows = [row for row in rows if (folder / "trials" / row["trial"] / "best.safetensors").exists()]
    if not rows:
        return
    trial = folder / "trials" / max(rows, key=lambda row: row["score"])["trial"]
    (folder / "best").mkdir(exist_ok=True)
    for name in ("best.safetensors", "config.yaml"):
        temporary = folder / "best" / f".{name}.tmp"
        shutil.copyfile(trial / name, temporary)
        os.replace(temporary, folder / "best" / name)


def write_json(path: Path, content: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


if __name__ == "__main__":
    cli.main(sweep, __doc__)
