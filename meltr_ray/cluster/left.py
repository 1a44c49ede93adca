"""What an earlier start has left of a trial: gone on with where its parts belong together and to the trial, else set aside.

A checkpoint is of one moment. A table that lacks rows from before it, other best weights than those that it speaks of, or other settings
would make a trial that nobody has run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from meltr_ray.cluster.copied import CHECKPOINTS
from meltr_ray.config import Config, recorded
from meltr_ray.config import file as config_file
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from meltr_ray.results.columns import METRIC, SETTING
from meltr_ray.storage import sealed
from meltr_ray.storage.saying import say
from meltr_ray.training import checkpoint
from meltr_ray.training.checkpoint import BEST
from meltr_ray.training.loop import is_due
from tune_spaces.arms import Trial

FACTS, DAMAGED = "facts.json", "damaged"


def check_left(trial: Path, config: Config) -> None:
    """Before the trial in a folder goes on: its checkpoints are set aside where they don't go with the rest, so that it begins anew; one line
    says why."""
    rows, root = results.read_trial(trial), trial / CHECKPOINTS
    try:
        complete = checkpoint.complete(root)
    except PermissionError:  # who loads them says so
        return
    if not complete:
        last = max((row["step"] for row in rows if row["split"] == "validation"), default=0)
        if 0 < config.train.checkpoint_every < last:  # one was saved, as rows came after it
            say(f"{root}: the checkpoints are gone; the trial begins anew")
    facts = newest(complete)
    if facts and (why := apart(trial, config, rows, facts)):
        say(f"{why}; {root} is set aside as {set_aside(root)}, and the trial begins anew")


def newest(complete: list[Path]) -> dict[str, Any] | None:
    """Facts of the newest of these checkpoints whose facts are as they were written; other files are checked where it is loaded."""
    for folder in reversed(complete):
        try:
            known = json.loads((folder / checkpoint.MARKER).read_bytes() or b"{}")
            if known.get(FACTS, digest := sealed.sha256(folder / FACTS)) == digest:
                return dict(json.loads((folder / FACTS).read_bytes()))
        except (OSError, ValueError, AttributeError):
            continue
    return None


def apart(trial: Path, config: Config, rows: list[dict[str, Any]], facts: dict[str, Any]) -> str | None:
    """Why the checkpoint with these facts doesn't go with the trial, its table or its best weights; None: it does."""
    aliases, progress, train = config.workload.aliases, facts["progress"], config.train
    before = {aliases.get(name, name): value for name, value in facts["settings"].items()}
    for name, value in checkpoint.settings(config).items():
        if before.get(name, value) != value:
            return f"{trial / CHECKPOINTS}: is of a trial with {name}={before[name]}, where this one has {value}"
    seen = {row["step"] for row in rows if row["split"] == "validation"}
    lacking = [step for step in range(1, progress["step"] + 1) if is_due(step, train.evaluate_every, train.steps) and step not in seen]
    if lacking:
        return f"{trial / results.FILE}: lacks the evaluation of step {lacking[0]}, which came before the newest checkpoint"
    if progress["best_step"]:
        try:
            checkpoint.load_weights_file(trial / BEST)
            known = checkpoint.weights_facts(trial / BEST)
        except (OSError, ConfigError):
            return f"{trial / BEST}: is gone or isn't as it was written"
        others = trial.parent.name == "trials" and known.get("trial", trial.name) != trial.name  # a run by itself may have been renamed
        if others or known.get("step", progress["best_step"]) < progress["best_step"]:
            return f"{trial / BEST}: isn't of step {progress['best_step']} of this trial"
    return None


def set_aside(path: Path, within: Path | None = None) -> Path:
    """Move a part of a trial, or what else lies in the folder `within`, to a folder there that nothing reads. Returns where it is."""
    number, aside = 1, (within or path.parent) / DAMAGED / path.name
    while aside.exists():
        number += 1
        aside = aside.with_name(f"{path.name}-{number}")
    aside.parent.mkdir(exist_ok=True)
    os.replace(path, aside)
    return aside


def check_settings(folder: Path, trials: Iterable[Trial]) -> None:
    """Tables of planned trials are of their settings. One that a trial of this name has written in another sweep is set aside, so that the trial
    runs again. Where all ended trials of an arm have run otherwise, the plan has changed since, and they stay. Lines say so."""
    apart: dict[str, dict[Path, tuple[str, Any, Any] | None]] = {}
    for trial in trials:
        place = folder / "trials" / trial.name
        if rows := results.read_trial(place):
            apart.setdefault(trial.arm, {})[place] = differing(rows[-1], trial.config)
    for of_arm in apart.values():
        names = {differs and differs[0] for place, differs in of_arm.items() if results.is_final(place)}
        for place, differs in of_arm.items():
            if differs is None:
                continue
            name, ran, planned = differs
            if names == {name} and results.is_final(place) and its_own(place, results.read_trial(place)[-1]):
                say(f"{place}: it ran with {name}={ran}, and the plan has {planned} now; it stays as it is")
                continue
            say(f"{place / results.FILE}: is of a trial with {name}={ran}, where this one has {planned}; it is set aside as "
                       f"{set_aside(place / results.FILE)}, and its trial runs again")  # fmt: skip


def differing(row: dict[str, Any], config: Config) -> tuple[str, Any, Any] | None:
    """The first setting that a row of a table has otherwise than `config`: its name, and both values. What one of them lacks isn't compared."""
    for name, value in recorded(config).items():
        cell = row.get(SETTING + name)
        if cell is not None and name not in checkpoint.MAY_CHANGE and cell not in (value, json.dumps(value)):
            return name, cell, value
    return None


def its_own(trial: Path, row: dict[str, Any]) -> bool:
    """Whether the settings that lie in a trial's folder are those of its table."""
    try:
        return differing(row, config_file.read(sealed.whole_of(trial / "config.yaml"))) is None
    except (OSError, ConfigError):
        return False


def has_best(trial: Path) -> bool:
    """Whether a trial's best weights and settings are as they were written, and go with its table."""
    try:
        checkpoint.load_weights_file(trial / BEST)
        checkpoint.check_weights_of(trial.name, trial / BEST)
        known, rows = checkpoint.weights_facts(trial / BEST), results.read_trial(trial)
        settings = sealed.whole_of(trial / "config.yaml")
    except (OSError, ConfigError):
        return False
    try:
        if differing(rows[-1], config_file.read(settings)):
            return False
    except ConfigError:  # of another version
        pass
    measured = {METRIC + name: value for name, value in known.items() if value == value}  # a metric that isn't the score may be NaN
    of_its_step = [row for row in rows if row["split"] == "validation" and row["step"] == known.get("step", row["step"])]
    return any(all(row.get(name, value) == value for name, value in measured.items()) for row in of_its_step)
