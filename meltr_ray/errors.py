"""How a setting is refused: in one line, before any worker starts."""

from __future__ import annotations

from typing import Any


class ConfigError(ValueError):
    """A setting that can't be used: one line, `field=value: rule; mend`."""


def check(condition: bool, name: str, value: Any, rule: str) -> None:
    """Raise the one-line `ConfigError` of this project unless `condition` holds; `rule` reads `rule; mend`."""
    if not condition:
        raise ConfigError(f"{name}={value}: {rule}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    check(value in choices, name, value, f"unknown; use one of {', '.join(choices)}")


def check_at_least(name: str, value: float, low: float) -> None:
    check(value >= low, name, value, f"at least {low:g} is needed; raise it")
