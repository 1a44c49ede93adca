"""Score the best weights of a run or a trial on a split, and write its predictions to look at.

    <checkpoint>/predictions/<split>/   predictions.parquet, metrics.json and predictions.html, which needs no network

    python workloads/evaluate.py checkpoint=outputs/sweeps/digits/best split=validation
    python workloads/evaluate.py checkpoint=<run> split=test data.folder=<elsewhere> task.beam_size=1

The run's own settings hold, but for where the data are, how predictions are made, and train.use_gpu.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import DictConfig  # noqa: E402

from meltr_ray.config import Config, ConfigError, check  # noqa: E402
from meltr_ray.config import file as config_file  # noqa: E402
from workloads import cli  # noqa: E402

PREDICTION_SETTINGS = ("evaluate_captions", "dual_softmax", "rerank", "beam_size", "length_penalty", "max_caption_words")
"""Of the task: those that may be given anew."""
OTHER_SETTINGS = ("checkpoint", "split", "data.folder", "train.use_gpu")


def evaluate(settings: DictConfig, config: Config) -> int:
    """Print the split's metrics and their intervals as JSON, and write the predictions. Returns the exit code."""
    if config.checkpoint is None:
        raise ConfigError("checkpoint=None: a run to score is needed; give its folder, such as outputs/sweeps/digits/best")
    check(isinstance(config.checkpoint, str), "checkpoint", config.checkpoint, "one run is scored at a time; give its folder")
    folder = Path(config.checkpoint).absolute()
    if not (folder / "best.safetensors").exists():
        raise ConfigError(f"checkpoint={config.checkpoint}: holds no best.safetensors; give the folder of a run that was evaluated")
    if config.train.use_gpu:
        cli.check_machine(config)
    trained, changed = read_run(folder, config, sys.argv[1:])
    print(json.dumps(write_predictions(folder, trained, changed, config), indent=1, ensure_ascii=False))
    return 0


def read_run(folder: Path, config: Config, arguments: list[str]) -> tuple[Config, list[str]]:
    """The settings of the run in `folder`, with what the command line may change; and the names of the task's that it changes.

    Raises:
        ConfigError: the command line names another setting, or the settings don't go together.
    """
    trained = config_file.read(folder / "config.yaml")
    given = dict(argument.lstrip("+").partition("=")[::2] for argument in arguments)
    changed = [name for name in PREDICTION_SETTINGS if f"task.{name}" in given]
    for key, value in given.items():
        check(key in OTHER_SETTINGS or key.removeprefix("task.") in changed, key, value, "evaluation takes the run's own; leave it out")
    if "data.folder" in given:
        trained.data.folder = config.data.folder
    for name in changed:
        setattr(trained.task, name, getattr(config.task, name))
    trained.__post_init__()
    return trained, changed


def write_predictions(folder: Path, trained: Config, changed: list[str], config: Config) -> dict[str, object]:
    """Predict `config.split`, write what there is to look at, and return what was measured, without numbers that JSON lacks."""
    import torch

    from analysis.predictions import write_page
    from meltr_ray.results import predictions
    from meltr_ray.training.model import predict_saved, task_module
    from meltr_ray.video.clips.store import check_folder
    from meltr_ray.video.clips.thumbnails import thumbnails

    check_folder(Path(trained.data.folder))
    device = torch.device("cuda" if config.train.use_gpu else "cpu")
    rows = predict_saved(trained, folder / "best.safetensors", config.split, device)
    metrics, intervals, notes = task_module(trained).report(rows)
    ways = [f"{name}={getattr(trained.task, name)}" for name in changed]
    notes += [f"With task.{way}." for way in ways]
    facts = dict(split=config.split, data=trained.data.name, checkpoint=str(config.checkpoint), metrics=metrics, intervals=intervals, notes=notes)
    target = folder / "predictions" / ",".join([config.split, *ways])
    predictions.write(target, trained.task.name, rows, thumbnails(trained.data.folder, config.split), facts)
    return predictions.finite({"task": trained.task.name} | facts | {"page": str(write_page(target))})


if __name__ == "__main__":
    cli.main(evaluate, __doc__)
