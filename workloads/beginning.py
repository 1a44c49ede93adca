"""Where a sweep begins: a new one, or one that was interrupted and goes on."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from meltr_ray.config import Config
from meltr_ray.config import file as config_file
from meltr_ray.errors import ConfigError
from meltr_ray.storage import sealed
from workloads import cli
from workloads.growing import grow


def planned(request: cli.Request) -> tuple[DictConfig, Config, Path]:
    """A new sweep: its settings with absolute folders, and where it will be written."""
    settings, config = request.settings, request.config
    cli.make_paths_absolute(config, settings)
    return settings, config, cli.new_folder(config, "sweeps", chosen="name" in request.given)


def resumed(request: cli.Request) -> tuple[DictConfig, Config, Path]:
    """A sweep that was interrupted or has ended: the settings that it was started with, perhaps with more of some, and its folder.

    Raises:
        ConfigError: there is none, or settings were given that would make it another sweep.
    """
    folder = Path(request.config.resume).absolute()
    if not (folder / "settings.yaml").exists():
        raise ConfigError(f"resume={request.config.resume}: no sweep was started there; give a folder under outputs/sweeps")
    old = config_file.load(sealed.whole_of(folder / "settings.yaml"))
    grow(old, request)
    return old, config_file.make(old), folder
