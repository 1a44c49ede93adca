"""What the commands share: compose the settings, document them, and end every error in one line with exit code 2."""

from __future__ import annotations

import difflib
import functools
import io
import os
import re
import shlex
import signal
import sys
import typing
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Iterator, TextIO

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from meltr_ray.config import ABOUT_THE_COMMAND, Config
from meltr_ray.config import file as config_file
from meltr_ray.config.fields import Field, fields, own_fields
from meltr_ray.config.own_file import settings_file
from meltr_ray.config.paths import LONGEST_PATH
from meltr_ray.config.references import check_length, check_references
from meltr_ray.config.workload_file import absolute, find
from meltr_ray.config.written import how_to_quote, override, value_of
from meltr_ray.errors import ConfigError, check, shown
from meltr_ray.storage import disk, sealed
from meltr_ray.storage.saying import also_said_to
from meltr_ray.workload import Workload
from workloads import own_experiment
from workloads.remote import fetched

CONF = Path(__file__).parent / "conf"
DEFAULT_WORKLOAD = "video"
OFTEN = {"lr": "learning_rate", "wd": "weight_decay", "eps": "epsilon", "bs": "batch_size", "epochs": "steps", "max_steps": "steps"}
"""What settings are often called elsewhere."""
SCRIPT = re.compile(r"(?<![\w/.=-])(?:python )?(?:workloads/)?(sweep|train|evaluate|prepare)\.py(?!\w|:\w)")
"""How texts name the commands."""


@dataclass
class Request:
    """What a command line asks for."""

    settings: DictConfig
    """As given, with defaults, before anything is derived from anything."""
    config: Config
    """Checked, everything derived."""
    given: dict[str, str]
    """The settings on the command line, by the names of today."""
    own: Any = None
    """Those that the command alone has."""

    @property
    def command(self) -> str:
        """The line that asks for it again."""
        name = installed_name()
        return shlex.join([name, *sys.argv[1:]]) if name else "python " + shlex.join(sys.argv)


def main(command: Callable[[Request], int], description: str, arguments: list[str] | None = None, own: type | None = None,
         experiment: str | None = None) -> typing.NoReturn:  # fmt: skip
    """Run a command line: overrides `key=value`, or `--help`; exit code 0, 2 for wrong input, 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        own: dataclass of settings that this command alone has; they go before others of the same name.
        experiment: what the command does where nothing says what it is about (`is_open`).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding shows what it lacks as an escape
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if {"-h", "--help"} & set(arguments):
            print(as_called(help_text(description, [a for a in arguments if "=" in a], own)))
            sys.exit(0)
        check_once(arguments)
        given = [f"experiment={experiment}"] if experiment and is_open(arguments) else []
        sys.exit(command(configure([*given, *arguments], own)))
    except ConfigError as error:
        print(as_called(f"error: {' '.join(str(error).split(chr(10)))}"), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if (line := disk.in_words(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interruption:
        print("stopped; what was finished is saved", file=sys.stderr)
        sys.exit(143 if isinstance(interruption, _Terminated) else 130)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, where a command has no better end for it than for Ctrl-C."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def installed_name() -> str | None:
    """`meltr-sweep`, where the command was started by such a name and not as `python workloads/sweep.py`."""
    name = Path(sys.argv[0]).name
    return name if name.startswith("meltr-") else None


def as_called(text: str) -> str:
    """A text that names commands as `python workloads/sweep.py`, with the names by which the user starts them."""
    return SCRIPT.sub(r"meltr-\1", text) if installed_name() else text


def configure(arguments: list[str], own: type | None = None) -> Request:
    """The settings and the checked configuration of a command line.

    Raises:
        ConfigError: an argument is not `key=value`, or a setting is unknown, of the wrong type or out of range.
    """
    split = fetched([_split(argument) for argument in arguments], [item.name for item in own_fields(own)] if own else [])
    source = workload_of(dict(split))
    cls = find(source)
    split = [(cls.aliases.get(key, key), value) for key, value in split]
    given = {key: value for key, value in split if key != "workload"}
    mine, overrides = {item.name: item for item in own_fields(own)} if own else {}, []
    kinds = {field.name: field.kind for field in fields(cls)}
    for key, value in given.items():
        check_length(key, value)
        if key in mine:
            continue
        _check_key(cls, key, value, list(mine))
        if key == "experiment" and own_experiment.is_file(value):
            continue
        written = key.removeprefix("workload.") if key.startswith(tuple(f"workload.{group}." for group in cls.groups)) else key
        overrides.append(override(written, kinds.get(written, kinds.get(f"workload.{written}", "")), value))
    overrides += [f"{old}=null" for old, new in cls.aliases.items() if new in given]  # else a file's older name would win
    store_settings(cls)
    check(
        (CONF / f"{cls.conf}.yaml").is_file(),
        "workload",
        source,
        f"conf names {cls.conf}, and there is no such file in {CONF}; leave it out",
    )
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"), own_experiment.found_by_hydra(given) as more:
            settings = compose(cls.conf, overrides=[*more, *overrides])
        OmegaConf.update(settings, "workload.source", absolute(source))
        chosen = own and OmegaConf.merge(own, {key: _own_value(item, given[key]) for key, item in mine.items() if key in given})
        if own:
            check_references(chosen)
            chosen = OmegaConf.to_object(chosen)
        return Request(settings, config_file.make(settings), given, chosen)
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(_one_line(cls, error, given, [*mine.values(), *fields(cls)])) from None


def is_open(arguments: list[str]) -> bool:
    """Whether a command line names no experiment, workload or folder, and nothing that chooses a part of the default workload."""
    given = {_split(argument)[0] for argument in arguments}
    return not given & {"experiment", "workload", "resume", "checkpoint"} and not given & set(find(DEFAULT_WORKLOAD).groups)


def workload_of(given: dict[str, str]) -> str:
    """The workload that a command line is about: the one that it names, that of the folder it goes on with, or video."""
    if "workload" in given:
        return given["workload"]
    for key, name in (("resume", "settings.yaml"), ("resume", "config.yaml"), ("checkpoint", "config.yaml")):
        check(len(os.fsencode(given.get(key, ""))) < LONGEST_PATH, key, given.get(key), "is too long for a path; shorten it")
        path = Path(given.get(key, "")) / name
        if key in given and (path.is_file() or sealed.copy_of(path).is_file()):
            found = settings_file(path.parent) if name == "settings.yaml" else sealed.whole_of(path)
            return config_file.load(found).workload.source
    return DEFAULT_WORKLOAD


@functools.lru_cache(1)
def store_settings(cls: type[Workload]) -> None:
    """Tell Hydra the settings' types and defaults; a group with several classes is told them all, of which every run takes one."""
    settings = config_file.schema(cls, {})
    for group, kind in cls.groups.items():
        settings[group] = kind
        for name, node in cls.choices.get(group, {}).items():
            ConfigStore.instance().store(name, group=group, node=node)
    ConfigStore.instance().store("schema", node=settings)


def help_text(description: str, arguments: list[str], own: type | None = None) -> str:
    source = workload_of(dict(_split(argument) for argument in arguments))
    cls = find(source)
    groups = [group for group in (*cls.groups, "experiment") if _options(cls, group)]
    lines = [description, "", "Settings are given as key=value. workload=<file.py:Class> takes a model, losses and data of your own "
             f"(docs/workloads.md); those below are of workload={source}, {_first_line(cls)}",
             f"{', '.join(f'{group}=<name>' for group in groups)} choose:"]  # fmt: skip
    lines += [f"  {group}: {', '.join(_options(cls, group))}" for group in groups]
    section, mine = None, own_fields(own) if own else []
    if mine:
        lines += ["", "of this command alone", *map(_described, mine)]
    for field in fields(cls):
        if field.name in [item.name for item in mine]:
            continue
        if (head := (field.name.rpartition(".")[0], field.choice)) != section:
            section = head
            lines += ["", f"{head[0] or 'run'}" + (f" ({head[1]})" if head[1] else "")]
        lines.append(_described(field))
    return "\n".join(lines)


def check_once(arguments: list[str]) -> None:
    """Raises ConfigError: a setting stands twice on a command line, where one of the two would be lost."""
    known: dict[str, str] = {}
    for key, value in map(_split, arguments):
        check(key not in known, key, value, f"is given twice, and was {shown(known.get(key))} before; leave one of them out")
        known[key] = value


def check_taken(request: Request, command: str, takes: tuple[str, ...]) -> None:
    """Refuse settings of other commands. `takes`: those of `ABOUT_THE_COMMAND` that this one looks at."""
    refused = {*ABOUT_THE_COMMAND, *request.config.workload.preparation_settings} - {*takes}
    for key, value in request.given.items():
        check(key not in refused, key, value, f"{command} makes nothing of it; leave it out")


@contextmanager
def chatter_to(path: Path) -> Iterator[TextIO]:
    """Send all that this process and its children print to `path`; what it says, to both. Yields a file that still writes to the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sealed.check_file(path)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with (
        open(path, "ab", buffering=0) as log,
        os.fdopen(os.dup(saved[0]), "w", buffering=1, encoding="utf-8", errors="backslashreplace") as terminal,
    ):
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            with also_said_to(saved[1]):
                yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, copy in zip((1, 2), saved):
                os.dup2(copy, descriptor)
                os.close(copy)


def _split(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals:
        raise ConfigError(f"{argument}: not a setting; write key=value, or --help for all of them")
    return key.lstrip("+"), value


def _options(cls: type[Workload], group: str) -> list[str]:
    if group in cls.choices:
        return list(cls.choices[group])
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _check_key(cls: type[Workload], key: str, value: str, mine: list[str]) -> None:
    if key == "experiment" and own_experiment.is_file(value):
        return own_experiment.check_file(value)
    if key in (*cls.groups, "experiment"):
        if value not in _options(cls, key):
            raise ConfigError(
                f"{key}={value}: unknown; use one of {', '.join(_options(cls, key))}{', or a YAML file of yours' * (key == 'experiment')}"
            )
        return
    group, _, inner = key.partition(".")
    if group in cls.choices and inner == "name":
        raise ConfigError(f"{key}={value}: is chosen with all that hangs on it; write {group}={value}")
    known = [*mine, *(field.name for field in fields(cls) if field.name != "workload.source")]
    if key.startswith("sweep.arms"):
        raise ConfigError(f"{key}={value}: arms are not given on the command line; write them into a file, experiment=<file>.yaml")
    if key == "workload.source" or (key not in known and not key.startswith("workload.") and f"workload.{key}" in known):
        raise ConfigError(f"{key}={value}: unknown setting; did you mean workload{'' if key == 'workload.source' else '.' + key}")
    if key not in known and not (key.startswith("workload.") and key.removeprefix("workload.") in known):
        close = [each for each in [f"{group}.{OFTEN.get(inner, '')}", OFTEN.get(key, "")] if each in known] or difflib.get_close_matches(
            key, known, 1
        )
        raise ConfigError(f"{key}={value}: unknown setting; {f'did you mean {close[0]}' if close else 'see --help for all of them'}")


def _own_value(field: Field, text: str) -> Any:
    """The value of a setting of the command alone; what may be a text or a list of texts is a text unless it begins with a bracket."""
    kind = "str" if field.kind == "Any" and not text.startswith("[") else field.kind
    return value_of(field.name, kind, text)


def _one_line(cls: type[Workload], error: Exception, given: dict[str, str], known: list[Field]) -> str:
    """Hydra's and OmegaConf's several lines as `field=value: rule; mend`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigError):
            return str(cause)
        if getattr(cause, "full_key", None) is not None:
            key, first = cause.full_key, str(cause).splitlines()[0]
            if " not in '" in first:  # known, or it would have been refused above: of another choice of its group
                group = key.partition(".")[0]
                if key not in given and own_experiment.is_file(given.get("experiment", "")):
                    return f"experiment={given['experiment']}: sets {key}, which is no setting of this workload or of a run; correct it"
                if key not in given and "experiment" in given:
                    return f"experiment={given['experiment']}: sets {key}, which this workload lacks; name the one that it is for, workload=<file.py:Class>"
                chosen = given.get(group, next(iter(cls.choices.get(group, {"": None}))))
                return f"{key}={given.get(key, '')}: no setting of {group}={chosen}; see --help for those of each"
            kind = next((field.kind for field in known if field.name == key), "setting")
            return f"{key}={shown(given.get(key, getattr(cause, 'value', '')))}: {shown(first[0].lower() + first[1:])}; give a value of type {kind}"
        cause = cause.__cause__ or cause.__context__
    return _unreadable(error, given, {field.name: field.kind for field in known})


def _unreadable(error: Exception, given: dict[str, str], kinds: dict[str, str]) -> str:
    """Of what the parser couldn't read at all: which setting that was, and how to quote it."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    near = [key for key, value in given.items() if f"{key}={value}" in str(error)] or list(given)
    if own_experiment.is_file(given.get("experiment", "")) and own_experiment.ALIAS in str(error):
        return f"experiment={given['experiment']}: {shown(first.rpartition(': ')[2].rstrip('.'))}; correct it"
    if len(near) == 1:
        key, kind = near[0], kinds.get(near[0], "setting")
        mend = how_to_quote(key, shown(given[key])) if any(word in kind for word in ("str", "Any")) else f"give a value of type {kind}"
        return f"{key}={shown(given[key])}: can't be read; {mend}"
    return f"{' '.join(f'{k}={shown(v)}' for k, v in given.items())}: {shown(first)}; see --help"


def _described(field: Field) -> str:
    return f"  {field.name}  ({_kind(field)}{f', {field.bounds}' if field.bounds else ''}, default {field.default})\n      {field.text}"


def _kind(field: Field) -> str:
    return field.kind.removeprefix("Optional[").removesuffix("]") if field.kind.startswith("Optional[") else field.kind


def _first_line(cls: type[Workload]) -> str:
    text = (cls.__doc__ or "").strip().split("\n")[0]
    return f"{text.rstrip('.')}." if text and not text.startswith(f"{cls.__name__}(") else f"{cls.__name__}."
