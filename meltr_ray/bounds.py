"""What any setting must be: a number within bounds that are declared with it and shown by `--help`, a text of one line.

    steps: int = bounded(300, 1, 10**8)
    "Optimiser steps."

A class of settings calls `check_settings` first in its `__post_init__`, before it computes with them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from meltr_ray.errors import ConfigError, check

KEY = "bounds"
MOST = 1000
"""Entries of a list or dictionary of numbers."""

LONGEST_TEXT = 2000
"""Letters of a text that is a setting; paths are texts, and Linux takes 4096 bytes."""


@dataclass(frozen=True)
class Bounds:
    """Both ends belong to it, and both are finite."""

    low: float
    high: float
    mend: str = ""
    """In place of `raise it`."""
    most: int = MOST
    """Entries that a list of such numbers may have."""

    def __str__(self) -> str:
        return f"{in_figures(self.low)} to {in_figures(self.high)}"

    def check(self, name: str, value: Any) -> None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        check(
            is_number and not math.isnan(value),
            name,
            value,
            f"is no number; give one between {in_figures(self.low)} and {in_figures(self.high)}",
        )
        mend = self.mend or "raise it" if value < self.low else "lower it"
        check(self.low <= value <= self.high, name, value, f"must lie between {in_figures(self.low)} and {in_figures(self.high)}; {mend}")


def bounded(default: Any, low: float, high: float, mend: str = "", most: int = MOST) -> Any:
    """A dataclass field whose value, or each number in whose value, lies between `low` and `high`; None and texts are let through."""
    assert low < high and math.isfinite(low) and math.isfinite(high)
    made = {"default_factory": lambda: type(default)(default)} if isinstance(default, (list, dict)) else {"default": default}
    return dataclasses.field(**made, metadata={KEY: Bounds(low, high, mend, most)})


def bounds_of(item: dataclasses.Field) -> Bounds | None:
    """Those of a dataclass's field."""
    return item.metadata.get(KEY)


def check_settings(prefix: str, settings: Any) -> None:
    """Refuse, of the settings of one dataclass, numbers outside their bounds and texts that are empty or no line. `prefix`: `train`, or empty."""
    for item in dataclasses.fields(settings):
        bounds, value = bounds_of(item), getattr(settings, item.name)
        name = f"{prefix}.{item.name}" if prefix else item.name
        if isinstance(value, str):
            check_text(name, value)
        if bounds is None or value is None:
            continue
        if isinstance(value, (list, tuple, dict)):
            check(len(value) <= bounds.most, name, f"{len(value)} entries", f"at most {bounds.most} are taken; leave the others out")
        for where, number in numbers(name, value):
            bounds.check(where, number)


def check_text(name: str, value: str) -> None:
    check(value.strip() != "", name, value, "is empty; give a text, or leave the setting out")
    check(value.isprintable(), name, value, "has a character that isn't printed, such as the end of a line; leave it out")
    check(len(value) <= LONGEST_TEXT, name, value, f"is longer than {LONGEST_TEXT} letters; shorten it")


def check_finite(name: str, value: Any) -> None:
    """Raises ConfigError: a number in `value`, of a setting without bounds, is infinite, not a number or beyond 64 bits."""
    for where, number in numbers(name, value):
        check(isinstance(number, bool) or (math.isfinite(number) if isinstance(number, float) else abs(number) < 2**63),
              where, number, "must be a finite number of 64 bits; change it")  # fmt: skip


def check_distinct(name: str, values: list[Any]) -> None:
    """Raises ConfigError: one of them stands twice."""
    twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
    check(twice is None, name, values, f"has {twice} twice; remove one")


def numbers(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(dotted name, number) of every number or truth value in a value, also inside lists and dictionaries."""
    waiting = [(name, value)]
    while waiting:
        where, each = waiting.pop()
        if isinstance(each, (int, float)):
            yield where, each
        elif isinstance(each, dict):
            waiting += [(f"{where}.{key}", inner) for key, inner in each.items()]
        elif isinstance(each, (list, tuple)):
            waiting += [(where, inner) for inner in each]
        elif isinstance(each, (bytes, complex)):
            raise ConfigError(f"{where}={each!r}: is no setting; give a number or a text")


def in_figures(number: float) -> str:
    """`0.001`, `100000000`, `1e+12`."""
    return str(number) if isinstance(number, int) and abs(number) < 10**11 else f"{number:g}"
