"""The loggers by name, and all that a run was asked to show its rows in."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from meltr_ray.errors import ConfigError, check, check_choice, shown
from meltr_ray.loggers.logger import STEP, Logger, Tracked, numbers, token
from meltr_ray.storage.saying import say

LOGGERS = {"tensorboard": "tensorboard:TensorBoard", "mlflow": "mlflow:MLflow", "wandb": "wandb:WandB"}
"""Name -> module of this package and class in it, which is imported when it is asked for."""
ENVIRONMENT = ("MLFLOW_", "WANDB_")
"""Environment variables that begin so are the trackers' own, and go from the driver to every worker."""


def logger(name: str) -> type[Logger]:
    module, _, cls = LOGGERS[name].partition(":")
    return getattr(importlib.import_module(f"meltr_ray.loggers.{module}"), cls)


def check_loggers(names: Sequence[str]) -> None:
    """Refuse, before anything starts, what shows nothing.

    Raises:
        ConfigError: a package is missing, nobody is logged in, or a server doesn't answer.
    """
    for name in names:
        cls = logger(name)
        try:
            metadata.distribution(cls.package)
        except metadata.PackageNotFoundError:
            raise ConfigError(f"loggers={name}: needs {cls.package}; pip install 'meltr-ray[loggers]'") from None
        cls.check()


def begin(names: Sequence[str], folder: Path) -> None:
    """Once, on the driver, when `folder` of the run or sweep is there.

    Raises:
        ConfigError: a tracker can't make what the trials share.
    """
    if names:
        token(folder)
    for name in names:
        try:
            logger(name).begin(folder)
        except Exception as error:
            raise ConfigError(f"loggers={name}: can't begin ({_why(error)}); mend that, or leave it out") from None


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)}


class Loggers:
    """Those of one trial. One that fails is left out from then on, with a line that says so: it must not end the training."""

    status = "failed"
    """How the trial ended, unless it is said otherwise."""

    def __init__(self, names: Sequence[str], tracked: Tracked, before: Iterable[Mapping[str, Any]] = ()):
        self.open: dict[str, Logger] = {}
        for name in names:
            self._try(name, lambda name=name: self.open.update({name: logger(name)(tracked)}))
        self.before = list(before)

    def add(self, row: Mapping[str, Any]) -> None:
        """A row of the results table; before the first one, those of earlier attempts that it doesn't void."""
        earlier = [one for one in self.before if one[STEP] < row[STEP] or (one[STEP] == row[STEP] and one["split"] != row["split"])]
        self.before = []
        for each in (*earlier, row):
            shown = numbers(each)
            for name, tracker in list(self.open.items()):
                self._try(name, lambda tracker=tracker, each=each, shown=shown: tracker.add(each[STEP], shown))

    def close(self) -> None:
        for name, each in list(self.open.items()):
            self._try(name, lambda each=each: each.close(self.status))

    def _try(self, name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self.open.pop(name, None)
            say(f"loggers: {name} shows no more of this trial ({_why(error)}); the results table has all of it")


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {shown((str(error).strip().splitlines() or [''])[0])}"


@contextmanager
def opened(names: Sequence[str], tracked: Tracked, before: Iterable[Mapping[str, Any]] = ()) -> Iterator[Loggers]:
    """The loggers of a trial, which are told how it ended.

    Args:
        before: rows of earlier attempts. They are shown again, as a tracker that writes in the background may have lost some when it was killed.
    """
    loggers = Loggers(names, tracked, before)
    try:
        yield loggers
    finally:
        loggers.close()


def check_names(names: Sequence[str]) -> None:
    """Raises ConfigError: one is unknown, or stands twice."""
    for name in names:
        check_choice("loggers", name, tuple(LOGGERS))
    check(len(set(names)) == len(names), "loggers", list(names), "has one twice; remove it")
