"""What the commands share: compose the settings, document them, and end every error in one line with exit code 2."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import os
import sys
import typing
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, TextIO

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from meltr_ray.config import BACKBONES, TASKS, BackboneConfig, Config, ConfigError, check
from meltr_ray.config import file as config_file
from tune_spaces.arms import make_config

CONF = Path(__file__).parent / "conf"
PATHS = (("", "output"), ("data", "folder"), ("data", "vocabulary"), ("backbone", "weights"))
GROUPS = ("data", "backbone", "task", "experiment")
CLASSES = {"backbone": BACKBONES, "task": TASKS}
"""Groups whose members are settings' classes or names, not files."""


def main(command: Callable[[DictConfig, Config], int], description: str, arguments: list[str] | None = None) -> typing.NoReturn:
    """Run a command line: overrides `key=value`, or `--help`; exit code 0, 2 for wrong input, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(help_text(description))
        sys.exit(0)
    try:
        composed, config = configure(arguments)
        sys.exit(command(composed, config))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; what was finished is saved", file=sys.stderr)
        sys.exit(130)


def configure(arguments: list[str]) -> tuple[DictConfig, Config]:
    """(settings as given, the checked configuration made from them).

    Raises:
        ConfigError: an argument is not `key=value`, or a setting is unknown, of the wrong type or out of range.
    """
    given = dict(_split(argument) for argument in arguments)
    for key, value in given.items():
        _check_key(key, value)
    store_settings()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides=arguments)
        return composed, make_config(composed, {})
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error, given)) from None


def store_settings() -> None:
    """Tell Hydra the settings' types and defaults: the group `backbone` has a class each, of which every run takes one."""
    settings = config_file.schema("univl")
    settings.backbone = BackboneConfig
    ConfigStore.instance().store("schema", node=settings)
    for name, node in BACKBONES.items():
        ConfigStore.instance().store(name, group="backbone", node=node)
    for name in TASKS:
        ConfigStore.instance().store(name, group="task", node={"name": name})


def fields(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """(dotted name, type, default, documentation) of every setting, read from the text under each field."""
    texts = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(inspect.getsource(base)).body[0].body
        texts |= {first.target.id: second.value.value for first, second in zip(body, body[1:])
                  if isinstance(first, ast.AnnAssign) and isinstance(second, ast.Expr)}  # fmt: skip
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if hint is BackboneConfig:
            for backbone in BACKBONES.values():
                yield from fields(backbone, f"{prefix}{item.name}.")
        elif dataclasses.is_dataclass(hint):
            yield from fields(hint, f"{prefix}{item.name}.")
        else:
            default = item.default if item.default is not dataclasses.MISSING else item.default_factory()
            kind = str(getattr(hint, "__name__", hint)).replace("typing.", "") if "[" not in str(hint) else str(hint).replace("typing.", "")
            yield prefix + item.name, kind, default, texts[item.name]


def help_text(description: str) -> str:
    lines = [description, "", "Settings are given as key=value; experiment=<name> and data=<name> load a file from workloads/conf/:"]
    for group in GROUPS:
        lines.append(f"  {group}: {', '.join(_options(group))}")
    section = None
    for name, kind, default, text in fields():
        if (head := name.rpartition(".")[0]) != section or name == "backbone.name":
            section = head
            lines += ["", f"{section or 'run'}" + (f" ({default})" if name == "backbone.name" else "")]
        lines.append(f"  {name}  ({kind.removeprefix('Optional[').removesuffix(']')}, default {default})\n      {text}")
    return "\n".join(lines)


def new_folder(config: Config, kind: str, chosen: bool) -> Path:
    """A folder for the output that does not exist yet: `<output>/<kind>/<name>`, numbered unless the name was given.

    Raises:
        ConfigError: the name was given and its folder exists; nothing is overwritten.
    """
    name = config.name or (config.data.name if config.task.name == "retrieval" else f"{config.data.name}_{config.task.name}")
    folder = Path(config.output) / kind / name
    if folder.exists() and chosen:
        raise ConfigError(f"name={name}: {folder} exists; go on with resume={folder} or choose another name")
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{name}-{number}")
    return folder.absolute()


def make_paths_absolute(*settings: Any) -> None:
    """In place, of a configuration or of settings: workers run in other folders."""
    for each in settings:
        for group, name in PATHS:
            holder = getattr(each, group) if group else each
            if (path := getattr(holder, name)) is not None:
                setattr(holder, name, str(Path(path).absolute()))


def check_machine(config: Config) -> None:
    """Refuse what this machine can't run.

    Raises:
        ConfigError: no GPU where one was asked for.
    """
    if config.train.use_gpu:
        import torch

        if config.cluster == "local" and not torch.cuda.is_available():
            raise ConfigError("train.use_gpu=True: this machine has no GPU that torch can use; set train.use_gpu=false")
    workers, available = config.train.num_workers * config.train.threads, os.cpu_count() or 1
    if config.cluster == "local" and workers > available:
        raise ConfigError(f"train.num_workers={config.train.num_workers}: {workers} CPUs are needed and this machine has {available}; "
                          "lower it or train.threads")  # fmt: skip


def check_models(configs: Iterable[Config]) -> None:
    """Refuse what the models of these configurations can't take, and make what they need; on prepared data.

    Raises:
        ConfigError: as `make_ready` does; or a split can't fill a batch.
    """
    from meltr_ray.training.model import make_ready

    seen: list[tuple[Any, dict[str, int]]] = []
    for config in configs:
        key = (config.backbone, config.data, config.task, config.tuning)
        sizes = next((known for other, known in seen if other == key), None)
        if sizes is None:
            sizes = make_ready(config)
            seen.append((key, sizes))
        check_batches(config, sizes)


def check_batches(config: Config, sizes: dict[str, int]) -> None:
    """Refuse batches that a split can't fill; `sizes` is split -> examples."""
    wanted = config.train.batch_size * max(1, config.train.num_workers)
    needed = ["train"] + (["meta"] if config.draws_from_meta else [])
    for split in needed:
        check(sizes[split] >= wanted, "train.batch_size", config.train.batch_size,
              f"all workers together take {wanted} examples at once and the {split} split has {sizes[split]}; lower it")  # fmt: skip


@contextmanager
def chatter_to(path: Path) -> Iterator[TextIO]:
    """Send all that this process and its children print to `path`; yields a file that still writes to the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with open(path, "ab", buffering=0) as log, os.fdopen(os.dup(saved[0]), "w", buffering=1) as terminal:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
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


def _options(group: str) -> list[str]:
    if group in CLASSES:
        return list(CLASSES[group])
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _check_key(key: str, value: str) -> None:
    if key in GROUPS:
        if value not in _options(key):
            raise ConfigError(f"{key}={value}: unknown; use one of {', '.join(_options(key))}")
        return
    known = [name for name, *_ in fields()]
    if key.startswith("sweep.arms"):
        raise ConfigError(f"{key}={value}: arms are not given on the command line; write a file in workloads/conf/experiment/")
    if key not in known:
        close = difflib.get_close_matches(key, known, 1)
        raise ConfigError(f"{key}={value}: unknown setting; {f'did you mean {close[0]}' if close else 'see --help for all of them'}")


def _one_line(error: Exception, given: dict[str, str]) -> str:
    """Hydra's and OmegaConf's several lines as `field=value: rule; mend`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigError):
            return str(cause)
        if getattr(cause, "full_key", None) is not None:
            key, first = cause.full_key, str(cause).splitlines()[0]
            if " not in '" in first:  # known, or it would have been refused above: of another backbone
                return f"{key}={given.get(key, '')}: no setting of backbone={given.get('backbone', 'univl')}; see --help for those of each"
            kind = {name: kind for name, kind, *_ in fields()}.get(key, "setting")
            return f"{key}={given.get(key, getattr(cause, 'value', ''))}: {first[0].lower() + first[1:]}; give a value of type {kind}"
        cause = cause.__cause__ or cause.__context__
    return f"{' '.join(f'{k}={v}' for k, v in given.items())}: {str(error).splitlines()[0]}; see --help"
