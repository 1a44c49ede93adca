"""Arguments that are numbers or of one class: in range, or one line, `name=value: rule; mend`."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from meltr_ray.errors import check


def check_count(name: str, value: Any, low: int = 1, mend: str = "raise it") -> None:
    """A whole number from `low` on."""
    check(isinstance(value, Integral) and not isinstance(value, bool), name, value, f"is no whole number; give one from {low} on")
    check(value >= low, name, value, f"at least {low} is needed; {mend}")


def check_number(name: str, value: Any, high: float = math.inf, above: bool = False) -> None:
    """A finite number from 0 to `high`; `above`: greater than 0."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    check(is_number, name, value, "is no finite number; give one")
    check(value > 0 if above else value >= 0, name, value, f"must {'be positive' if above else 'not be negative'}; raise it")
    check(value <= high, name, value, f"must be {high:g} at most; lower it")


def check_kind(name: str, value: Any, kind: type, mend: str) -> None:
    check(isinstance(value, kind), name, f"a {type(value).__name__}", f"is no {kind.__name__}; {mend}")


def check_passes(name: str, passes: Any) -> None:
    """Functions that run a forward pass."""
    for each in passes:
        check(callable(each), name, f"a {type(each).__name__}", "is no function; give one that runs the forward pass each time")
