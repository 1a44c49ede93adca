"""Configurations made from settings, saved as YAML and read back."""

from __future__ import annotations

import dataclasses
import os
import typing
from pathlib import Path
from typing import Any, Optional, Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from meltr_ray.config import BACKBONES, BackboneConfig, Config, ConfigError, check_choice


def schema(backbone: str) -> DictConfig:
    """All settings with their types and defaults, those of one backbone among them.

    Raises:
        ConfigError: there is no such backbone.
    """
    check_choice("backbone.name", backbone, tuple(BACKBONES))
    settings = OmegaConf.structured(Config)
    for name, kind in typing.get_type_hints(Config).items():
        if dataclasses.is_dataclass(kind):  # from the class: an instance has filled in defaults that depend on other settings
            settings[name] = BACKBONES[backbone] if kind is BackboneConfig else kind
    return settings


def load(path: Path) -> DictConfig:
    """Settings saved as YAML, typed; not resolved and not checked."""
    found = OmegaConf.load(path)
    return OmegaConf.merge(schema(OmegaConf.select(found, "backbone.name", default="univl")), found)


def make(settings: DictConfig, changes: Optional[dict[str, Any]] = None) -> Config:
    """The checked configuration of `settings`, with the dotted `changes` of an arm put over it.

    Made from the settings as they were given, before sizes and other derived defaults were filled in, so that a change of
    `backbone.size` reaches every width.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range.
    """
    changed = settings.copy()
    for key, value in (changes or {}).items():
        try:
            OmegaConf.update(changed, key, value, merge=False)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}={value}: {str(error).splitlines()[0]}; see --help") from None
    return OmegaConf.to_object(changed)


def read(path: Path, changes: Sequence[str] = ()) -> Config:
    """The configuration that `write` saved, with `changes`, `key=value`, put over it.

    Raises:
        ConfigError: the file is missing or was made by another version of the settings.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(load(path), OmegaConf.from_dotlist(list(changes))))
    except (OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}; give the folder of a run of this version") from None


def write(path: Path, config: Config) -> None:
    """Save `config`, everything resolved, as YAML; atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    OmegaConf.save(OmegaConf.structured(config), temporary)
    os.replace(temporary, path)
