"""What there is to say of every setting: read from the declarations, for `--help` and for messages."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import typing
from collections.abc import Mapping
from typing import Any, Iterator, NamedTuple

from meltr_ray.bounds import Bounds, bounds_of
from meltr_ray.config.run import Config
from meltr_ray.workload import Workload


class Field(NamedTuple):
    """One setting."""

    name: str
    """Dotted, as it is written."""
    kind: str
    default: Any
    text: str
    """The documentation under it."""
    bounds: Any = None
    """Of a number: its least and its greatest."""
    choice: str = ""
    """Name of the class of a group that it belongs to, such as `violet`."""


@functools.cache
def fields(cls: type[Workload]) -> tuple[Field, ...]:
    """Every setting of the machine and of a workload, once for each class of a group that has it."""
    return tuple(_all_of(cls))


def _all_of(cls: type[Workload]) -> Iterator[Field]:
    for item in _of(Config, ""):
        if item.name != "workload":
            yield item
            continue
        for own in _of(cls, "workload."):
            group = own.name.removeprefix("workload.")
            if group not in cls.groups:
                yield own
        for group, kind in cls.groups.items():
            kinds = {name: each for name, each in cls.choices.get(group, {}).items() if isinstance(each, type)}
            for name, each in (kinds or {"": kind}).items():
                yield from (found._replace(choice=name) for found in _of(each, f"{group}."))


def own_fields(cls: type) -> list[Field]:
    """Those of a dataclass of settings by itself, such as a command's own."""
    return list(_of(cls, ""))


def _of(cls: type, prefix: str) -> Iterator[Field]:
    texts, hints = _texts(cls), typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint) and hint is not Workload and not issubclass(cls, Workload):
            yield from _of(hint, f"{prefix}{item.name}.")
            continue
        default = item.default if item.default is not dataclasses.MISSING else item.default_factory() if hint is not Workload else None
        plain = str(hint) if "[" in str(hint) else getattr(hint, "__name__", str(hint))
        yield Field(prefix + item.name, plain.replace("typing.", ""), default, texts.get(item.name, ""), _bounds(cls, item))


def _bounds(cls: type, item: dataclasses.Field) -> Bounds | None:
    """Those beside a field, or those that a workload's class gives for it."""
    named = getattr(cls, "bounds", {})
    pair = named.get(item.name) if isinstance(named, Mapping) else None
    return bounds_of(item) or (Bounds(*pair) if isinstance(pair, (tuple, list)) and len(pair) == 2 else None)


@functools.cache
def _texts(cls: type) -> dict[str, str]:
    """Field -> the text under it, also of the classes above."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        except (OSError, TypeError):  # made in a session without a file
            continue
        found |= {first.target.id: second.value.value for first, second in zip(body, body[1:])
                  if isinstance(first, ast.AnnAssign) and isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant)}  # fmt: skip
    return found
