"""Ray: one trial as a Tune function trainable or by itself, in its own process or on Ray Train workers.

Tune's and Train's own histories are not relied on: rank 0 writes the results table, and a run that starts again goes on
from the checkpoint that it finds in its folder.
"""

from __future__ import annotations

import os
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Callable

import ray.train
import ray.tune

from meltr_ray.cluster.failures import CERTAIN, cause_of
from meltr_ray.cluster.garbage import collect, keep_imports
from meltr_ray.cluster.rungs import Rungs
from meltr_ray.cluster.standing import train_on_workers
from meltr_ray.cluster.trainer import Trainer
from meltr_ray.combining.named import WAYS
from meltr_ray.config import Config, recorded
from meltr_ray.config import file as config_file
from meltr_ray.config.user_code import in_words
from meltr_ray.errors import ConfigError
from meltr_ray.loggers.logger import Tracked
from meltr_ray.loggers.named import opened
from meltr_ray.results import table as results
from meltr_ray.results.columns import Columns
from meltr_ray.storage import put
from meltr_ray.storage.stop import Asked
from meltr_ray.storage.writers import ShutOut, Starts
from meltr_ray.training.shared import check_shared, named
from meltr_ray.training.statistics import Diverged
from meltr_ray.training.stopping import End, Stop

ENDING = 300
"""Seconds that this process waits for the last of a trial before it takes the next; at Tune's own 2 a busy machine loses the next trial."""
_failed = False
"""Whether a trial failed in this process: what is left in it may be anything, such as a CUDA context that fails every trial to come."""


def trainable(tune_config: dict[str, Any]) -> None:
    """Tune's function trainable: run `tune_config["trial"]`, and record how it failed rather than stop the sweep."""
    global _failed
    if _failed:
        os._exit(1)  # Tune takes a new process for this trial
    trial, end = tune_config["trial"], End.FINISHED
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", str(ENDING))
    try:
        starts = Starts(Path(trial["folder"]))
        if starts.number > trial["max_failures"] + 1:
            raise RuntimeError(f"its process died {starts.number - 1} times, and train.max_failures={trial['max_failures']}")
        end = run_trial(trial, ray.tune.report)
        if end is End.LEAVING:
            starts.take_back()
    except Exception as error:  # whatever it is, the other trials go on and the table says what happened
        _failed = not isinstance(cause_of(error), CERTAIN)
        with suppress(OSError):  # of a full disk: without its last row the trial runs again when the sweep goes on
            record_failure(trial, error)
        ray.tune.report({"step": -1, "score": float("nan")})
    finally:
        collect()
    if end is End.LEAVING:
        os._exit(1)  # Tune starts the trial again, elsewhere: Ray gives a machine that leaves nothing more to do


def run_trial(trial: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> End:
    """Run one trial to its end, on `train.num_workers` Ray Train workers or, if 0, in this process.

    Workers that were told that their machine leaves have saved their step and are started anew elsewhere.

    Args:
        trial: folder (absolute, reachable by every worker), arm, phase, test, the folder in which the driver asks it to stop, and under
            Tune how often its process may die; its settings are read from `<folder>/config.yaml`.
        report: takes {"step", "split", "score"} after each evaluation.

    Returns:
        How it ended; `End.LEAVING`: the machine of this process will be taken away.
    """
    config = config_file.read(Path(trial["folder"]) / "config.yaml")
    if config.train.num_workers == 0:
        return _run(trial, config, rank=0, report=report, leaving=this_machine_leaves if ray.is_initialized() else None)
    while True:
        if report is ray.tune.report:
            end = train_on_workers(trial, config, _worker, report)
        else:
            end = End(Trainer(config, _worker, trial, trial["folder"]).fit().return_value)
        if end is not End.LEAVING or this_machine_leaves():
            return end


def _worker(trial: dict[str, Any]) -> str:
    """One Ray Train worker; the error of one ends all. Returns the name of an `End`."""
    config = config_file.read(Path(trial["folder"]) / "config.yaml")
    rank = ray.train.get_context().get_world_rank()
    return _run(trial, config, rank, ray.train.report, lambda: ray.train.get_preemption_info() is not None).value


def this_machine_leaves() -> bool:
    """Whether the cluster was told that it will be taken away, as machines of a spot market are."""
    try:
        return ray.get_runtime_context().get_node_id() in ray._private.state.state.get_draining_nodes()
    except Exception:  # a cluster that doesn't answer just now is asked again
        return False


def _run(trial: dict[str, Any], config: Config, rank: int, report: Callable[[dict[str, Any]], None],
         leaving: Callable[[], bool] | None) -> End:  # fmt: skip
    from meltr_ray.training.run import run  # imports DeepSpeed, which reads the ranks that Ray has set by now

    keep_imports()
    check_shared(config.workload, trial.get("shared", {}), named(config.workload))
    folder, columns, rungs, asked = Path(trial["folder"]), columns_of(config), Rungs.of(trial), Asked(trial["stop"])
    ended: list[str] = []
    tracked = Tracked(Path(trial["stop"]), trial["name"], trial["arm"], trial["phase"], recorded(config))

    def record(row: dict[str, Any]) -> None:
        if rank == 0:
            if rungs and (why := rungs.why_stop(row)):
                ended.append(why)
                row = row | {"status": "stopped", "error": why}
            results.append(folder, row, columns)
            loggers.add(row)
        report({name: row[name] for name in ("step", "split", "score")})

    try:
        shown = config.loggers if rank == 0 else []
        with opened(shown, tracked, results.read_trial(folder) if shown else ()) as loggers:
            end = run(config, folder, record, trial["phase"], trial["arm"], trial["test"], Stop(lambda: bool(ended) or asked(), leaving))
            loggers.status = "finished" if end is End.FINISHED else "stopped"
        return end
    except SystemExit as error:  # a thread of Ray's would take it for the end of the trial
        raise ConfigError(f"workload={config.workload.source}: its code asks for the end of the process in training "
                          f"({in_words(error)}); raise an error in place of it") from error  # fmt: skip


def columns_of(config: Config) -> Columns:
    """Of the results table of a run."""
    by_loss = not config.workload.per_example
    return Columns.of(config.workload.metrics, config.losses.set, recorded(config), by_loss, by_loss and WAYS[config.combiner.name].learns)


def record_failure(trial: dict[str, Any], error: Exception) -> None:
    """Write the last row of a trial that ended badly, and the whole traceback beside it; nothing, where a later attempt writes the trial."""
    folder, cause = Path(trial["folder"]), cause_of(error)
    if isinstance(cause, ShutOut):
        return
    config = config_file.read(folder / "config.yaml")
    put(folder / "error.txt", "".join(traceback.format_exception(error)))
    results.set_aside(folder)
    rows = results.read_trial(folder)
    status = "diverged" if isinstance(cause, Diverged) else "failed"
    row = {key: trial[key] for key in ("arm", "phase")}
    row |= {"trial": folder.name, "split": "none", "status": status, "time": datetime.now(UTC)}
    last = str(cause).strip().splitlines() or [type(cause).__name__]
    error_line = last[0] if isinstance(cause, ConfigError) else f"{type(cause).__name__}: {last[0]}"
    row |= {"step": rows[-1]["step"] if rows else 0, "error": error_line}
    results.append(folder, row, columns_of(config))
