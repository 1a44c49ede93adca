"""What can be said of a digit in one word: what questions ask for, and what they know it by."""

from __future__ import annotations

from collections.abc import Sequence

from meltr_ray.video.datasets.digits.scene import COLOURS, DIRECTIONS, MET, NAMES, Digit

DEEDS = {
    "pass": "passes", "bounce": "bounces", "turn": "turns", "stop": "stops", "vanish": "vanishes", "appear": "appears",
    "grow": "grows", "shrink": "shrinks", "wait": "waits", MET: "collides",
}  # fmt: skip
"""Event -> its word."""
VALUES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS), "digit": NAMES, "direction": tuple(DIRECTIONS), "event": tuple(DEEDS.values()),
}  # fmt: skip
"""Kind of property that is asked for -> its values."""


def value_of(digit: Digit, kind: str) -> str | None:
    """`colour`, `digit`, `size`, `event`, `direction` (in which it sets off) or `turn` (which it takes later).

    None where the digit has none: one that waits sets off nowhere, one that grows or shrinks is neither small nor large.
    """
    match kind:
        case "digit":
            return NAMES[digit.value]
        case "event":
            return DEEDS[digit.event]
        case "size":
            return None if digit.event in ("grow", "shrink") else digit.size
        case "direction":
            return None if digit.event == "wait" else digit.direction
        case "turn":
            return digit.turn if digit.event == "turn" else None
    return getattr(digit, kind)


def values(digits: Sequence[Digit], kind: str) -> list[str]:
    """Those that the digits have, each as often as it is there."""
    return [value for digit in digits if (value := value_of(digit, kind)) is not None]


def sizes_are_clear(digits: Sequence[Digit]) -> bool:
    """Whether none of the digits changes its size."""
    return len(values(digits, "size")) == len(digits)
