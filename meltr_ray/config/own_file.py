"""Which of two files is a sweep's own: one and its copy are both whole and differ, as where the file of another sweep was put in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from omegaconf import OmegaConf

from meltr_ray.config.yaml_file import read_yaml
from meltr_ray.errors import ConfigError
from meltr_ray.storage import sealed
from meltr_ray.storage.saying import say

Flat = dict[str, Any]
"""Dotted name of a setting -> value."""


def settings_file(folder: Path) -> Path:
    """The settings of the sweep in `folder`, as they were given.

    Raises:
        Damaged: they and their copy are.
    """
    return sealed.whole_of(own(folder / "settings.yaml", _settings_in))


def facts(folder: Path) -> dict[str, Any]:
    """What `sweep.json` says; nothing where there is none.

    Raises:
        Damaged: it and its copy are.
    """
    path = folder / "sweep.json"
    return sealed.read_json(own(path, _plan_in)) if sealed.there(path) else {}


def own(path: Path, settings_in: Callable[[Path], Flat]) -> Path:
    """`path`, or its copy where that alone goes with `config.yaml` beside it, in the settings in which they differ; a line says so."""
    copy, config = sealed.copy_of(path), path.with_name("config.yaml")
    try:
        if path.read_bytes() == copy.read_bytes():
            return path
        first, second, known = settings_in(path), settings_in(copy), _settings_in(sealed.whole_of(config))
    except (OSError, ConfigError):  # nothing to compare
        return path
    apart = [name for name in first.keys() & second.keys() & known.keys() if first[name] != second[name]]
    wrong, wrong_in_copy = (sum(each[name] not in (None, known[name]) for name in apart) for each in (first, second))
    if wrong <= wrong_in_copy:
        return path
    say(f"{path}: is that of another sweep, by {config.name} beside it; its copy is used")
    return copy


def _settings_in(path: Path) -> Flat:
    return _flat(OmegaConf.to_container(read_yaml(path)))


def _plan_in(path: Path) -> Flat:
    return _flat({"sweep": sealed.read_json(path)})


def _flat(found: Any, prefix: str = "") -> Flat:
    flat: Flat = {}
    for name, value in found.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat
