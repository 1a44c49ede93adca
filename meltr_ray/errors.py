"""How a setting is refused: in one line, before any worker starts."""

from __future__ import annotations

from typing import Any

LONGEST = 160
"""Letters of a value that a message shows."""


class ConfigError(ValueError):
    """A setting that can't be used: one line, `field=value: rule; mend`."""

    def __init__(self, line: str):
        super().__init__(" ".join(line.splitlines()) if "\n" in line else line)


def check(condition: bool, name: str, value: Any, rule: str) -> None:
    """Raise the one-line `ConfigError` of this project unless `condition` holds; `rule` reads `rule; mend`."""
    if not condition:
        raise ConfigError(f"{name}={shown(value)}: {rule}")


def shown(value: Any) -> str:
    """A value in a message: in one line, and cut where it is long."""
    try:
        text = str(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = "a number of thousands of digits"
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[: LONGEST + 1])
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def first_line(error: BaseException) -> str:
    """What it says first; its name, where it says nothing."""
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0].rstrip("."))


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    check(value in choices, name, value, f"unknown; use one of {', '.join(choices)}")


def check_at_least(name: str, value: float, low: float) -> None:
    check(value >= low, name, value, f"at least {low:g} is needed; raise it")
