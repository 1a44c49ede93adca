"""An experiment of one's own: a YAML file anywhere on disk, `experiment=my_arms.yaml`, written as those in `workloads/conf/experiment/` are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from meltr_ray.config.yaml_file import read_yaml
from meltr_ray.errors import ConfigError, check, shown

HEADER = "# @package _global_\n"
"""Hydra's: the settings are those of the run, not of a group `experiment`."""
ALIAS = "experiment_of_your_own"
"""Under which Hydra finds it; a shipped one of the same name stays what it is."""


def is_file(value: str) -> bool:
    """Whether `experiment=<value>` means a file and not a shipped one by its name."""
    return value.endswith((".yaml", ".yml")) or os.sep in value


def check_file(value: str) -> None:
    """Raises ConfigError: there is no such file, or it is no YAML of settings."""
    check(Path(value).is_file(), "experiment", value, "no such file; correct the path")
    try:
        read_yaml(Path(value))
    except ConfigError as error:
        raise ConfigError(f"experiment={shown(value)}: {str(error).partition(': ')[2].partition(';')[0]}; correct it") from None


@contextmanager
def found_by_hydra(given: dict[str, str]) -> Iterator[list[str]]:
    """Overrides in place of `experiment=<file>`; none where no file is named."""
    value = given.get("experiment", "")
    if not is_file(value):
        yield []
        return
    with TemporaryDirectory(prefix="experiment-") as folder:
        copy = Path(folder, "experiment", f"{ALIAS}.yaml")
        copy.parent.mkdir()
        copy.write_text(HEADER + Path(value).read_text(encoding="utf-8"), encoding="utf-8")
        yield [f"hydra.searchpath=[file://{folder}]", f"experiment={ALIAS}"]
