"""Score the best weights of a run or a trial on a split, and write its predictions to look at.

    <checkpoint>/predictions/<split>/   predictions.parquet, metrics.json and predictions.html, which needs no network

    python workloads/evaluate.py checkpoint=outputs/sweeps/digits/best split=validation
    python workloads/evaluate.py checkpoint=<run> split=test data.folder=<elsewhere> task.beam_size=1

The run's own settings hold, but for where the data are and how predictions are made.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import DictConfig  # noqa: E402

from meltr_ray import config_file  # noqa: E402
from meltr_ray.config import Config, ConfigError, check  # noqa: E402
from workloads import cli  # noqa: E402

PREDICTION_SETTINGS = ("evaluate_captions", "dual_softmax", "rerank", "beam_size", "length_penalty", "max_caption_words")
"""Of the task: those that may be given anew."""


def evaluate(settings: DictConfig, config: Config) -> int:
    """Print the split's metrics and their intervals as JSON, and write the predictions. Returns the exit code."""
    if config.checkpoint is None:
        raise ConfigError("checkpoint=None: a run to score is needed; give its folder, such as outputs/sweeps/digits/best")
    check(isinstance(config.checkpoint, str), "checkpoint", config.checkpoint, "one run is scored at a time; give its folder")
    folder = Path(config.checkpoint).absolute()
    if not (folder / "best.safetensors").exists():
        raise ConfigError(f"checkpoint={config.checkpoint}: holds no best.safetensors; give the folder of a run that was evaluated")
    trained = config_file.read(folder / "config.yaml")
    given = {argument.partition("=")[0] for argument in sys.argv[1:]}
    if "data.folder" in given:
        trained.data.folder = config.data.folder
    changed = [name for name in PREDICTION_SETTINGS if f"task.{name}" in given]
    for name in changed:
        setattr(trained.task, name, getattr(config.task, name))
    from analysis.predictions import write_page
    from meltr_ray import predictions
    from meltr_ray.data.store import check_folder
    from meltr_ray.data.thumbnails import thumbnails
    from meltr_ray.model import predict_saved, task_module

    check_folder(Path(trained.data.folder))
    rows = predict_saved(trained, folder / "best.safetensors", config.split)
    metrics, intervals, notes = task_module(trained).report(rows)
    notes += [f"With task.{name}={getattr(trained.task, name)}." for name in changed]
    facts = dict(split=config.split, data=trained.data.name, checkpoint=str(config.checkpoint), metrics=metrics, intervals=intervals, notes=notes)
    target = folder / "predictions" / config.split
    predictions.write(target, trained.task.name, rows, thumbnails(trained.data.folder, config.split), facts)
    found = {"task": trained.task.name} | facts | {"page": str(write_page(target))}
    print(json.dumps(predictions.finite(found), indent=1, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    cli.main(evaluate, __doc__)
