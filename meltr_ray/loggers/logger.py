"""What a tracker is to this project: it is told the rows of one trial, and goes on where the trial's last attempt ended.

The results table stays the record. A tracker is fed from the rows that rank 0 writes there, so it shows nothing else.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from meltr_ray.results.columns import FAMILIES, METRIC, SETTING
from meltr_ray.storage import put

STEP = "step"
"""Column of the table that is the axis of every curve."""
LONGEST_ID = 100
"""Letters; W&B takes 128."""
TOKEN = "loggers.txt"
"""File in a folder of a run or sweep: what tells it from another of the same name."""


@dataclass(frozen=True)
class Tracked:
    """The trial that a logger shows."""

    folder: Path
    """Of its sweep, or of the run where there is none; absolute."""
    trial: str
    arm: str
    phase: str
    settings: Mapping[str, Any]
    """Dotted name -> value."""

    @property
    def sweep(self) -> str:
        return self.folder.name

    @property
    def id(self) -> str:
        """Sweep and trial, the same for every attempt; another sweep of this name has another."""
        whole = f"{self.sweep}-{token(self.folder)}-{self.trial}"
        return whole if len(whole) <= LONGEST_ID else f"{whole[:80]}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"


class Logger:
    """One tracker. A new one is a file beside this one and a line in named.py."""

    package: ClassVar[str]
    """Distribution that it needs, installed by `meltr-ray[loggers]`."""

    @classmethod
    def check(cls) -> None:
        """Refuse what can be known before the start. Raises ConfigError."""

    @classmethod
    def begin(cls, folder: Path) -> None:
        """Once, on the driver, before the first trial: make what all trials of the sweep in `folder` share."""

    def __init__(self, tracked: Tracked):
        """Open the trial, which may have been opened by an earlier attempt."""

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Show numbers of one row, by name. Those of earlier attempts come again, with the numbers that they had."""
        raise NotImplementedError

    def close(self, status: str) -> None:
        """`status`: finished, stopped or failed."""
        raise NotImplementedError


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Those of a row of the results table that are finite: `validation/accuracy`, `loss/joint`, `run/seconds`.

    Of a row of the test split its scores alone: the rest stands in the last row of validation, which has the same step.
    """
    found = {}
    for column, value in row.items():
        if (
            column == STEP
            or column.startswith(SETTING)
            or isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            continue
        if column == "score" or column.startswith(METRIC):
            found[f"{row['split']}/{column.removeprefix(METRIC)}"] = float(value)
        elif row["split"] == "validation":
            found[column.replace(".", "/", 1) if column.startswith(FAMILIES) else f"run/{column}"] = float(value)
    return found


def token(folder: Path) -> str:
    """Of a run or sweep: drawn when it is first asked for, on the driver, and kept in its folder."""
    path = folder / TOKEN
    if not path.exists():
        put(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8")
