"""Score the best weights of a run or a trial on a split, and write its predictions to look at.

    <checkpoint>/predictions/<split>/   predictions.parquet, metrics.json and predictions.html, which needs no network

    python workloads/evaluate.py checkpoint=outputs/sweeps/digits/best split=validation
    python workloads/evaluate.py checkpoint=<run> split=test data.folder=<elsewhere> task.beam_size=1

The run's own settings hold, but for those that the workload lets evaluation change (video: where data are, how predictions are
made), and train.use_gpu.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from meltr_ray.config import Config
from meltr_ray.config import file as config_file
from meltr_ray.config.paths import check_writable
from meltr_ray.config.user_code import called
from meltr_ray.config.workload_file import changed_since
from meltr_ray.errors import ConfigError, check
from meltr_ray.storage import sealed
from meltr_ray.workload import Workload
from workloads import checks, cli, remote
from workloads.ending import as_process

OTHER_SETTINGS = ("checkpoint", "split", "train.use_gpu")


def evaluate(request: cli.Request) -> int:
    """Print the split's metrics and their intervals as JSON, and write the predictions. Returns the exit code."""
    config = request.config
    if config.checkpoint is None:
        raise ConfigError("checkpoint=None: a run to score is needed; give its folder, such as outputs/sweeps/digits/best")
    check(isinstance(config.checkpoint, str), "checkpoint", config.checkpoint, "one run is scored at a time; give its folder")
    folder = Path(config.checkpoint).absolute()
    if not (folder / "best.safetensors").is_file():
        best = folder / "best" / "best.safetensors"
        mend = f"give {config.checkpoint}/best" if best.is_file() else "give the folder of a run that was evaluated"
        raise ConfigError(f"checkpoint={config.checkpoint}: holds no best.safetensors; {mend}")
    check_writable("checkpoint", config.checkpoint, folder / "predictions")
    if config.train.use_gpu:
        checks.check_machine(config)
    trained, changed = read_run(folder, request)
    if copy := changed_since(trained.workload, folder):
        print(f"note: {trained.workload.source} has changed since this run was trained (its text then: {copy})", file=sys.stderr)
    print(json.dumps(scored(folder, trained, changed, config), indent=1, ensure_ascii=False))
    return 0


def read_run(folder: Path, request: cli.Request) -> tuple[Config, list[str]]:
    """The settings of the run in `folder`, with what the command line may change; and the names of the settings that it changes.

    Raises:
        ConfigError: the command line names another setting, or the settings don't go together.
    """
    settings = sealed.whole_of(folder / "config.yaml")
    trained = config_file.read(settings)
    allowed = [as_given(trained.workload, name) for name in trained.workload.prediction_settings]
    changes = [key for key in request.given if key in allowed]
    for key, value in request.given.items():
        check(key in (*OTHER_SETTINGS, *allowed), key, value, "evaluation takes the run's own; leave it out")
    if changes:
        trained = config_file.read(settings, [f"{key}={request.given[key]}" for key in changes])
    checks.make_paths_absolute(trained)
    return trained, [key for key in changes if key not in trained.workload.paths]


def as_given(workload: Workload, name: str) -> str:
    """How a command line writes a setting of the workload: those that are no group's with `workload.` in front."""
    return name if name.partition(".")[0] in (*workload.groups, "workload") else f"workload.{name}"


def scored(folder: Path, trained: Config, changed: list[str], config: Config) -> dict[str, Any]:
    """Score `config.split`, write what there is to look at, and return what was measured, without numbers that JSON lacks."""
    import torch

    from meltr_ray.results import predictions
    from meltr_ray.training.evaluation import Measured, checked, finite, measured, predicted, saved_module
    from meltr_ray.training.splits import examples

    device, workload = torch.device("cuda" if config.train.use_gpu else "cpu"), trained.workload
    called(workload, "verify", workload.verify)
    module = saved_module(trained, folder / "best.safetensors", device)
    found = examples(workload, config.split)
    ways = [f"{name}={value_of(trained, name)}" for name in changed]
    about = {
        "workload": workload.source,
        "split": config.split,
        "data": workload.describe().get("name"),
        "checkpoint": remote.FETCHED.get(folder, str(config.checkpoint)),
    }
    where = f"{len(found)} {config.split} examples"
    if not workload.defines("predict"):
        scores = called(workload, "evaluate", lambda: measured(workload, module, found, device))
        return predictions.finite(about | {"metrics": finite(workload, scores, where).metrics})
    from analysis.predictions import write_page
    from meltr_ray.results.bootstrap import RESAMPLES
    from meltr_ray.results.bootstrap import intervals as bootstrapped

    rows = called(workload, "predict", lambda: predicted(workload, module, found, device))
    if workload.defines("report"):
        metrics, intervals, notes = called(workload, "report", lambda: workload.report(rows))
    else:
        metrics = checked(workload, called(workload, "measure", lambda: workload.measure(rows)), "measure")
        finite(workload, Measured(metrics), where)
        intervals = bootstrapped(rows, workload.measure)
        notes = [
            f"{len(rows)} examples.",
            f"Intervals: {RESAMPLES} bootstrap resamples of what the rows name as their source, else of rows.",
        ]
    metrics |= {"score": workload.score(metrics)}
    facts = about | dict(metrics=metrics, intervals=intervals, notes=notes + [f"With {way}." for way in ways])
    target = folder / "predictions" / ",".join([config.split, *(way.removeprefix("task.") for way in ways)])
    declared = {**workload.metrics, **workload.reported_metrics}
    predictions.write(
        target,
        workload.title(),
        rows,
        workload.pictures(config.split),
        facts,
        declared,
        workload.prediction_columns,
        workload.prediction_view,
    )
    page = write_page(target)
    return predictions.finite(facts | {"page": remote.send_back(folder, page) if folder in remote.FETCHED else str(page)})


def value_of(config: Config, name: str) -> Any:
    """The value of a setting of the workload."""
    value: Any = config.workload
    for part in name.removeprefix("workload.").split("."):
        value = getattr(value, part)
    return value


def main() -> None:
    cli.main(evaluate, __doc__)


if __name__ == "__main__":
    as_process(main)
