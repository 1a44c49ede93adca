"""A length of time as people write it: `2h`, `90m`, `1h30m`, `45s`, or a number of seconds."""

from __future__ import annotations

import re

from meltr_ray.errors import check

UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
LONGEST = 3650 * UNITS["d"]
FORM = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in UNITS))


def seconds(name: str, text: str) -> float:
    """The seconds of `text`, the value of setting `name`.

    Raises:
        ConfigError: it is no length of time, or none that has passed.
    """
    written = str(text).replace(" ", "").lower()
    found = FORM.fullmatch(f"{written}s" if written.replace(".", "", 1).isdigit() else written)
    total = sum(float(value) * UNITS[unit] for unit, value in found.groupdict("0").items()) if found else 0.0
    check(total > 0, name, text, "is no length of time; use such as 2h, 90m or 1h30m")
    check(total <= LONGEST, name, text, f"is longer than {LONGEST / UNITS['d']:.0f} days; lower it, or leave it out")
    return total


def in_words(length: float) -> str:
    """`45 s`, `12 min`, `1 h 30 min`."""
    if length < 100:
        return f"{length:.0f} s"
    minutes = round(length / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
