"""The members of a workload's class: none misspelt, methods where methods are asked for, and each takes what it is called with."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from typing import Any

from meltr_ray.errors import ConfigError, check
from meltr_ray.workload import Workload

NEAR = 0.9
"""Likeness of two names from which on one counts as the other misspelt."""


def check_members(cls: type[Workload], source: str) -> None:
    """Raises ConfigError: names the member, and the mend."""
    for name, base in vars(Workload).items():
        given = inspect.getattr_static(cls, name)
        if name.startswith("_") or given is base:
            continue
        if inspect.isfunction(base):
            _check_method(cls, source, name, given, base)
        else:
            check(not inspect.isfunction(given), "workload", source,
                  f"{name} is a method; give it as a class attribute, or write @property in front of it")  # fmt: skip


def check_spelling(cls: type[Workload], source: str) -> None:
    """A member whose name is nearly that of an optional one was meant to be it: it would be left out in silence."""
    members = [name for name in vars(Workload) if not name.startswith("_")]
    settings = {item.name for item in dataclasses.fields(cls)}
    for name in vars(cls):
        if name.startswith("_") or name in members or name in settings:
            continue
        near = [member for member in difflib.get_close_matches(name, members, 1, NEAR) if member not in vars(cls)]
        check(not near, "workload", source, f"{name} is no part of a workload; did you mean {near and near[0]} (else call it otherwise)")


def _check_method(cls: type[Workload], source: str, name: str, given: Any, base: Any) -> None:
    if isinstance(given, (staticmethod, classmethod)):
        given = given.__get__(None, cls)
        arguments = list(inspect.signature(base).parameters)[1:]
    else:
        near = [each for each in difflib.get_close_matches(name, list(vars(Workload)), 3, NEAR) if each != name]
        mend = f"did you mean {near[0]}" if near else f"write def {name}({', '.join(inspect.signature(base).parameters)})"
        check(callable(given), "workload", source, f"{name} is {given!r}, where a method is asked for; {mend}")
        arguments = list(inspect.signature(base).parameters)
    try:
        inspect.signature(given).bind(*arguments)
    except TypeError:
        raise ConfigError(
            f"workload={source}: {name} takes {inspect.signature(given)}; write def {name}({', '.join(inspect.signature(base).parameters)})"
        ) from None
