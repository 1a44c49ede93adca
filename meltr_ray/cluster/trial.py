"""Ray: one trial as a Tune function trainable or by itself, in its own process or on Ray Train workers.

Tune's and Train's own histories are not relied on: rank 0 writes the results table, and a run that starts again goes on
from the checkpoint that it finds in its folder.
"""

from __future__ import annotations

import gc
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Callable

import ray.train
import ray.tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from meltr_ray.cluster.local import LOCAL, OverLoopback
from meltr_ray.combining.named import WAYS
from meltr_ray.config import Config, recorded
from meltr_ray.config import file as config_file
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from meltr_ray.results.columns import Columns
from meltr_ray.storage import put
from meltr_ray.training.statistics import Diverged

DRIVER_CPU = 0.01
"""Ray CPUs of a trial whose work is done by Ray Train workers."""


def trainable(tune_config: dict[str, Any]) -> None:
    """Tune's function trainable: run `tune_config["trial"]`, and record how it failed rather than stop the sweep."""
    trial = tune_config["trial"]
    try:
        run_trial(trial, ray.tune.report)
    except Exception as error:  # whatever it is, the other trials go on and the table says what happened
        record_failure(trial, error)
        ray.tune.report({"step": -1, "score": float("nan")})
    finally:
        gc.collect()  # DeepSpeed's engines hold themselves in cycles, and this process runs more trials


def run_trial(trial: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    """Run one trial to its end, on `train.num_workers` Ray Train workers or, if 0, in this process.

    Args:
        trial: folder (absolute, reachable by every worker), arm, phase and test; its settings are read from
            `<folder>/config.yaml`.
        report: takes {"step", "score"} after each evaluation.
    """
    config = config_file.read(Path(trial["folder"]) / "config.yaml")
    if config.train.num_workers == 0:
        _run(trial, config, rank=0, report=report)
        return
    in_tune = report is ray.tune.report
    # A little less than whole CPUs: the trial's driver needs a share (`DRIVER_CPU`), else two workers never fit two cores.
    resources = {"CPU": config.train.threads - 2 * DRIVER_CPU} | ({"GPU": 1} if config.train.use_gpu else {})
    trainer = TorchTrainer(
        _worker,
        train_loop_config=trial,
        torch_config=(OverLoopback if config.cluster == LOCAL else TorchConfig)(backend="nccl" if config.train.use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=config.train.num_workers, use_gpu=config.train.use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name="ray",
            storage_path=trial["folder"],
            failure_config=FailureConfig(max_failures=config.train.max_failures),
            callbacks=[TuneReportCallback()] if in_tune else [],
        ),
    )
    trainer.fit()


def _worker(trial: dict[str, Any]) -> None:
    """One Ray Train worker; every rank reports, else all would wait for ever."""
    config = config_file.read(Path(trial["folder"]) / "config.yaml")
    rank = ray.train.get_context().get_world_rank()
    try:
        _run(trial, config, rank, ray.train.report)
    except Diverged as error:  # starting again would only diverge again
        if rank == 0:
            record_failure(trial, error)
        ray.train.report({"step": -1, "score": float("nan")})


def _run(trial: dict[str, Any], config: Config, rank: int, report: Callable[[dict[str, Any]], None]) -> None:
    from meltr_ray.training.run import run  # imports DeepSpeed, which reads the ranks that Ray has set by now

    folder, columns = Path(trial["folder"]), columns_of(config)

    def record(row: dict[str, Any]) -> None:
        if rank == 0:
            results.append(folder, row, columns)
        report({"step": row["step"], "score": row["score"]})

    run(config, folder, record, trial["phase"], trial["arm"], trial["test"])


def columns_of(config: Config) -> Columns:
    """Of the results table of a run."""
    by_loss = not config.workload.per_example
    return Columns.of(config.workload.metrics, config.losses.set, recorded(config), by_loss, by_loss and WAYS[config.combiner.name].learns)


def record_failure(trial: dict[str, Any], error: Exception) -> None:
    """Write the last row of a trial that ended badly, and the whole traceback beside it."""
    folder = Path(trial["folder"])
    config = config_file.read(folder / "config.yaml")
    put(folder / "error.txt", "".join(traceback.format_exception(error)))
    rows = results.read_trial(folder)
    cause = cause_of(error)
    status = "diverged" if isinstance(cause, Diverged) else "failed"
    row = {key: trial[key] for key in ("arm", "phase")}
    row |= {"trial": folder.name, "split": "none", "status": status, "time": datetime.now(UTC)}
    last = str(cause).strip().splitlines() or [type(cause).__name__]
    error_line = last[0] if isinstance(cause, ConfigError) else f"{type(cause).__name__}: {last[0]}"
    row |= {"step": rows[-1]["step"] if rows else 0, "error": error_line}
    results.append(folder, row, columns_of(config))


def cause_of(error: BaseException) -> BaseException:
    """What an error comes from; of workers that failed together, the one that says why: the others miss a partner."""
    failed = [cause_of(each) for _, each in sorted(getattr(error, "worker_failures", {}).items())]
    if failed:
        return next((each for each in failed if isinstance(each, (ConfigError, Diverged))), failed[0])
    while error.__cause__ is not None and not isinstance(error, ConfigError):
        error = error.__cause__
    return error


def ray_environment() -> dict[str, str]:
    """Environment variables of Ray's processes and of the driver."""
    return {
        "RAY_TRAIN_V2_ENABLED": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": "100",  # else trials of a searcher start one by one
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would end one phase of a sweep at Ctrl-C and go on with the next
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONHASHSEED": "0",  # a workload that walks over a set sees it in the same order in every trial
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
