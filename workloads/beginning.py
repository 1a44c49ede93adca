"""Where a sweep begins: a new one, or one that was interrupted and goes on."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from meltr_ray.config import Config
from meltr_ray.config import file as config_file
from meltr_ray.errors import ConfigError, check
from meltr_ray.storage import sealed
from workloads import cli

MAY_CHANGE = ("sweep.max_concurrent", "sweep.progress_every", "sweep.budget", "train.cpus_per_worker", "train.accelerator", "train.resources",
              "train.placement", "train.grace", "cluster")  # fmt: skip
"""Settings that a resumed sweep may have otherwise."""


def planned(request: cli.Request) -> tuple[DictConfig, Config, Path]:
    """A new sweep: its settings with absolute folders, and where it will be written."""
    settings, config = request.settings, request.config
    cli.make_paths_absolute(config, settings)
    return settings, config, cli.new_folder(config, "sweeps", chosen="name" in request.given)


def resumed(request: cli.Request) -> tuple[DictConfig, Config, Path]:
    """An interrupted sweep: the settings that it was started with, and its folder.

    Raises:
        ConfigError: there is none, or settings were given that would make it another sweep.
    """
    folder = Path(request.config.resume).absolute()
    if not (folder / "settings.yaml").exists():
        raise ConfigError(f"resume={request.config.resume}: no sweep was started there; give a folder under outputs/sweeps")
    old = config_file.load(sealed.whole_of(folder / "settings.yaml"))
    if "sweep.seeds" in request.given:
        look(old, request.config.sweep.seeds)
    for key, value in request.given.items():
        check(
            key in ("resume", "sweep.seeds", *MAY_CHANGE),
            key,
            value,
            "a resumed sweep keeps its settings; leave it out or start a new sweep",
        )
        if key in MAY_CHANGE:
            OmegaConf.update(old, key, OmegaConf.select(request.settings, key), merge=False)
    return old, config_file.make(old), folder


def look(old: DictConfig, seeds: int) -> None:
    """More seeds for a screening, in place, at a look that was planned before its first.

    Raises:
        ConfigError: it wasn't, or there are fewer than before.
    """
    planned = [look for look in old.sweep.looks if look >= old.sweep.seeds]
    check(seeds in planned, "sweep.seeds", seeds, f"was no look that this sweep planned; use one of {', '.join(map(str, planned))}" if planned else
          "this sweep planned no further look, so its intervals would not hold; start a new one with such as sweep.looks=[6,9,12]")  # fmt: skip
    old.sweep.seeds = seeds
