"""Settings as they are written (YAML, key=value), and the checked configuration that is made of them.

Written, the groups of a workload (video: data, backbone, task) stand at the top, like those of the machine; a configuration
holds them in `workload`. Older names of settings are read and put under the present ones.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from pathlib import Path
from typing import Any, Optional, Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from meltr_ray.config.fields import fields
from meltr_ray.config.references import check_references
from meltr_ray.config.run import Config
from meltr_ray.config.user_code import called
from meltr_ray.config.workload_file import find
from meltr_ray.config.written import value_of
from meltr_ray.config.yaml_file import read_yaml
from meltr_ray.errors import ConfigError, check_choice, shown
from meltr_ray.storage import sealed
from meltr_ray.workload import Workload

OF_PREPARE = ("source", "export", "extract", "extractor", "frames_per_second")
"""Settings of prepare.py, which files had before it declared its own."""


def schema(cls: type[Workload], chosen: dict[str, Any]) -> DictConfig:
    """All settings with their types and defaults, as they are written.

    `chosen`: group -> name, of groups whose class hangs on it (`{"backbone": "violet"}`); others have their first.

    Raises:
        ConfigError: a group has no such choice.
    """
    return _schema(cls, tuple(chosen.items())).copy()


def load(path: Path) -> DictConfig:
    """Settings saved as YAML, typed; not resolved and not checked.

    Raises:
        Damaged: the file is not as it was written.
        ConfigError: it was made by another version of the settings.
    """
    found = read_yaml(path)
    try:
        cls = find(OmegaConf.select(found, "workload.source") or "video")  # written before there was any other
        for key in OF_PREPARE:
            found.pop(key, None)
        chosen = {group: name for group in cls.groups if isinstance(name := OmegaConf.select(found, f"{group}.name"), str)}
        settings = OmegaConf.unsafe_merge(schema(cls, chosen), found)
        settings.workload.source = settings.workload.source or "video"
    except (OmegaConfBaseException, TypeError, AttributeError) as error:  # a number where a group is due, and such
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path}: {shown(reason)}; give the folder of a run of this version") from None
    return settings


def make(settings: DictConfig, changes: Optional[dict[str, Any]] = None) -> Config:
    """The checked configuration of `settings`, with the dotted `changes` of an arm put over it.

    Made from the settings as they were given, before sizes and other derived defaults were filled in, so that a change of
    `backbone.size` reaches every width.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range.
    """
    check_references(settings)
    cls = find(settings.workload.source)
    changed = renamed(settings, cls)
    for key, value in (changes or {}).items():
        key = cls.aliases.get(key, key)
        key = key.removeprefix("workload.") if key.startswith(tuple(f"workload.{group}." for group in cls.groups)) else key
        try:
            OmegaConf.update(changed, key, value, merge=False)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}={shown(value)}: {shown(str(error).split(' full_key')[0])}; see --help") from None
    if changes:
        check_references(changed)
    parts = {key: OmegaConf.to_object(changed[key]) if OmegaConf.is_config(changed[key]) else changed[key]
             for key in map(str, changed) if key not in (*cls.groups, "workload")}  # fmt: skip

    def workload() -> Workload:
        if not cls.groups:
            return OmegaConf.to_object(changed.workload)
        return cls(source=changed.workload.source, **{group: OmegaConf.to_object(changed[group]) for group in cls.groups})

    return Config(workload=called(cls, "__post_init__", workload, changed.workload.source), **parts)


def renamed(settings: DictConfig, cls: type[Workload]) -> DictConfig:
    """A copy with what stands under older names moved to the present ones."""
    settings = settings.copy()
    for old, new in cls.aliases.items():
        if (value := OmegaConf.select(settings, old)) is not None:
            OmegaConf.update(settings, new, value, merge=False)
            OmegaConf.update(settings, old, None)
    return settings


def read(path: Path, changes: Sequence[str] = ()) -> Config:
    """The configuration that `write` saved, with `changes`, `key=value`, put over it.

    Raises:
        ConfigError: the file is missing or was made by another version of the settings.
    """
    try:
        saved = load(path)
        kinds = {field.name: field.kind for field in fields(find(saved.workload.source))} if changes else {}
        given = dict(change.split("=", 1) for change in changes)
        return make(saved, {key: value_of(key, kinds.get(key, ""), text) for key, text in given.items()})
    except (OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}; give the folder of a run of this version") from None


def write(path: Path, config: Config) -> None:
    """Save `config`, everything resolved, as YAML; atomically."""
    sealed.put_twice(path, OmegaConf.to_yaml(OmegaConf.create(as_written(config))))


def as_written(config: Config) -> dict[str, Any]:
    """Plain nested settings, as they are written."""
    plain = dataclasses.asdict(config)
    groups = {group: plain["workload"].pop(group) for group in config.workload.groups}
    for old in config.workload.aliases:
        group, _, name = old.partition(".")
        groups[group][name] = None
    return plain | groups


@functools.lru_cache(32)
def _schema(cls: type[Workload], chosen: tuple[tuple[str, Any], ...]) -> DictConfig:
    """Made once: every trial of a process reads its settings by it."""
    settings = OmegaConf.structured(_written_form(cls))
    hints = typing.get_type_hints(Config)
    for name, kind in hints.items():
        if dataclasses.is_dataclass(kind):  # from the class: an instance has filled in defaults that depend on other settings
            settings[name] = kind
    settings.workload = Workload if cls.groups else cls
    for group, kind in cls.groups.items():
        settings[group] = _chosen(cls, group, kind, dict(chosen).get(group))
    return settings


def _written_form(cls: type[Workload]) -> type:
    groups = [(group, kind, dataclasses.field(default_factory=kind)) for group, kind in cls.groups.items()]
    return dataclasses.make_dataclass("Settings", groups, bases=(Config,), kw_only=True)


def _chosen(cls: type[Workload], group: str, kind: type, name: str | None) -> type:
    classes = cls.choices.get(group, {})
    if name is None or group not in cls.choices or not isinstance(next(iter(classes.values())), type):
        return next((value for value in classes.values() if isinstance(value, type)), kind)
    check_choice(f"{group}.name", name, tuple(classes))
    return classes[name]
