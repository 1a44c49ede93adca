"""The main job from Python: `meltr_ray.sweep`."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from meltr_ray.config import ABOUT_THE_COMMAND
from meltr_ray.config.workload_file import source_of
from meltr_ray.errors import ConfigError, check
from meltr_ray.workload import Workload
from workloads import checks, cli
from workloads import sweep as command

NAME = re.compile(r"[\w.+/-]+")
"""Keys of dictionaries, which no command line quotes."""
PLAIN = re.compile(r"[^\W\d][\w.+/-]*", re.ASCII)
"""Texts in a list or a dictionary that need no quotes, but for `WORDS`."""
WORDS = ("true", "false", "null", "none", "nan", "inf", "infinity", "yes", "no", "on", "off")
LONGEST = 2**17
"""Letters of a setting that Linux takes on a command line."""
_looked_for: list[str] = []
"""Classes whose file is being imported."""


def sweep(workload: type[Workload], settings: Mapping[str, Any] | None = None) -> Path:
    """`meltr_ray.sweep(Primes, {"workload.width": 64, "train.steps": 200})`: the same as the command; returns the folder.

    The class must stand in a file, from which workers make it again; a script calls this under `if __name__ == "__main__"`.

    Raises:
        ConfigError: whatever the command would end with.
        KeyboardInterrupt: Ctrl-C, after what was finished was saved and reported. SIGTERM: SystemExit, of code 143.
    """
    of = type(workload).__name__
    check(not isinstance(workload, Workload), "workload", of, "is a workload that is made; give the class itself")
    check(isinstance(workload, type) and issubclass(workload, Workload), "workload", workload,
          f"is {'no workload' if isinstance(workload, type) else f'a {of}'}; give a class derived from meltr_ray.Workload")  # fmt: skip
    check(
        settings is None or isinstance(settings, Mapping),
        "settings",
        settings,
        'is no dictionary; give such as {"train.steps": 200}',
    )
    given = [f"{key}={_written(key, value)}" for key, value in (settings or {}).items() if not (value is None and key in ABOUT_THE_COMMAND)]
    check(not _looked_for, "workload", "".join(_looked_for[:1]),
          'its file calls sweep() when it is imported; call it under if __name__ == "__main__":')  # fmt: skip
    _looked_for.append(workload.__name__)
    try:
        request = cli.configure([f"workload={source_of(workload)}", *given])
    finally:
        _looked_for.pop()
    request.config.name = request.settings.name = checks.new_folder(request.config, "sweeps", chosen="name" in request.given).name
    if code := command.sweep(request):
        raise KeyboardInterrupt if code == 130 else SystemExit(code)
    return request.config.local_output.absolute() / "sweeps" / request.config.name


def _written(key: Any, value: Any) -> str:
    """The value of a setting as it is written on a command line.

    Raises:
        ConfigError: the name is no text, is the workload's, or the value is nothing that can be written.
    """
    check(isinstance(key, str), "settings", repr(key), "is no name of a setting; give a text such as train.steps")
    check(key != "workload", key, value, "the class was given already; leave it out")
    try:
        text = _as_text(value)
    except (TypeError, ValueError, RecursionError):  # a whole number of more digits than Python writes, a list in itself
        raise ConfigError(
            f"{key}={type(value).__name__}: can't be written; give a number, a text, a list or a dictionary of these"
        ) from None
    check(len(text) <= LONGEST, key, text, f"has {len(text)} letters, where a command line takes {LONGEST}; shorten it")
    return text


def _as_text(value: Any, inside: bool = False) -> str:
    """A Python value as it is written on a command line; `inside` a list or a dictionary texts with marks are quoted."""
    if isinstance(value, (list, tuple, range)):
        return f"[{','.join(_as_text(each, True) for each in value)}]"
    if isinstance(value, Mapping):
        if odd := [key for key in value if not (isinstance(key, str) and NAME.fullmatch(key))]:
            raise TypeError(f"the key {reprlib.repr(odd[0])}")
        return "{" + ",".join(f"{key}:{_as_text(each, True)}" for key, each in value.items()) + "}"
    if value is None or isinstance(value, (bool, int, float)):
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    if isinstance(value, (str, PathLike)):
        text = str(fspath(value)) if isinstance(value, PathLike) else str(value)
        bare = not inside or (PLAIN.fullmatch(text) and text.lower() not in WORDS)
        return text if bare else "'" + text.replace("'", "\\'") + "'"
    if callable(getattr(value, "tolist", None)):  # of numpy and torch
        return _as_text(value.tolist(), inside)
    raise TypeError(type(value).__name__)
