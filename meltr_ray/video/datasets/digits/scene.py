"""What moves in a clip, and its frames: one to three enlarged, coloured handwritten digits on a dark canvas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIDE, FRAMES = 64, 28
"""Pixels of a frame's edge, frames of a clip."""

COLOURS = {
    "red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 90, 250), "yellow": (240, 220, 40),
    "purple": (170, 60, 220), "orange": (250, 140, 20), "white": (245, 245, 245), "cyan": (40, 220, 230),
}  # fmt: skip
SIZES = {"small": 16, "large": 26}
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
SPEEDS = {"slow": 0.45, "fast": 1.3}
EVENTS = ("pass", "bounce", "turn", "stop", "vanish", "appear", "grow", "shrink", "wait")
MET = "meet"
"""The event of two digits that run into each other and back."""

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass
class Digit:
    """One moving digit: what can be said of it, and its path."""

    image: np.ndarray
    """(8, 8) handwriting, 0 to 1."""
    value: int
    colour: str
    size: str
    direction: str
    speed: str
    event: str
    turn: str
    """Direction after a turn."""
    centre: np.ndarray
    """(2,) row and column of its middle when the event happens."""
    moment: int
    """Frame of the event."""

    def side(self) -> np.ndarray:
        """(frames,) its edge in pixels."""
        progress = np.linspace(0, 1, FRAMES)
        factor = {"grow": 0.6 + 0.8 * progress, "shrink": 1.4 - 0.8 * progress}.get(self.event, np.ones(FRAMES))
        return SIZES[self.size] * factor

    def offsets(self) -> np.ndarray:
        """(frames, 2) way from `centre`, rows and columns."""
        before = SPEEDS[self.speed] * np.array(DIRECTIONS[self.direction], float)
        after = before
        if self.event in ("bounce", MET):
            after = -before
        elif self.event == "turn":
            after = SPEEDS[self.speed] * np.array(DIRECTIONS[self.turn], float)
        elif self.event == "stop":
            after = 0 * before
        elif self.event == "wait":
            before = after = 0 * before
        time = np.arange(FRAMES)[:, None] - self.moment
        return np.where(time < 0, time * before, time * after)

    def opacity(self) -> np.ndarray:
        """(frames,) 0 to 1."""
        since = np.arange(FRAMES) - self.moment
        if self.event == "vanish":
            return np.clip(1 - since / 3, 0, 1)
        return np.clip(since / 3, 0, 1) if self.event == "appear" else np.ones(FRAMES)


def draw_clip(images: np.ndarray, values: np.ndarray, random: np.random.Generator) -> list[Digit]:
    """What moves in one clip, from handwriting (N, 8, 8) and its values (N,)."""
    count = random.choice(3, p=(0.4, 0.4, 0.2)) + 1
    meet = count == 2 and random.random() < 0.3
    colours = random.choice(list(COLOURS), count, replace=False)
    digits: list[Digit] = []
    for at in range(count):
        sample = random.integers(len(images))
        direction = random.choice(("left", "right") if meet else list(DIRECTIONS))
        event = MET if meet else random.choice(EVENTS)
        turns = ("up", "down") if direction in ("left", "right") else ("left", "right")
        digit = Digit(images[sample], int(values[sample]), str(colours[at]), str(random.choice(list(SIZES))),
                      str(direction), str(random.choice(list(SPEEDS))), str(event), str(random.choice(turns)),
                      np.zeros(2), int(random.integers(11, 17)))  # fmt: skip
        if meet and at == 1:  # the second comes the other way, as fast and at the same moment
            first = digits[0]
            digit.direction = {"left": "right", "right": "left"}[first.direction]
            digit.speed, digit.moment = first.speed, first.moment
        digits.append(digit)
    if meet:
        _place_meeting(digits, random)
    else:
        for at, digit in enumerate(digits):
            places = [_place(digit, random) for _ in range(8)]  # the one of eight that hides the others least
            digit.centre = max(places, key=lambda place: _clearance(digit, place, digits[:at]))
    return digits


def _place(digit: Digit, random: np.random.Generator) -> np.ndarray:
    """A place for the event such that the whole path stays on the canvas; a bounce happens at the wall."""
    offsets, half = digit.offsets(), digit.side().max() / 2
    low, high = half - offsets.min(0), SIDE - half - offsets.max(0)
    place = random.uniform(np.minimum(low, high), np.maximum(low, high))
    if digit.event == "bounce":
        axis = 1 if digit.direction in ("left", "right") else 0
        place[axis] = half if digit.direction in ("left", "up") else SIDE - half
    return place


def _place_meeting(digits: list[Digit], random: np.random.Generator) -> None:
    halves = [SIZES[digit.size] / 2 for digit in digits]
    line, column = random.uniform(max(halves), SIDE - max(halves)), random.uniform(28, 36)
    for digit, half in zip(digits, halves):
        digit.centre = np.array([line, column - half if digit.direction == "right" else column + half])


def _clearance(digit: Digit, place: np.ndarray, others: list[Digit]) -> float:
    """Mean distance to the nearest of `others` over the frames, as a share of touching; at most 1."""
    path = place + digit.offsets()
    gaps = [np.abs(path - other.centre - other.offsets()).max(1) * 2 / (digit.side() + other.side()) for other in others]
    return float(np.minimum(1, gaps).min(0).mean()) if gaps else 1.0


def paint(digits: list[Digit], random: np.random.Generator) -> np.ndarray:
    """Frames (28, 64, 64, 3) uint8 over a dark, grainy background."""
    grain = random.uniform(0, 14, (SIDE, SIDE, 1)) + random.uniform(10, 34, 3)
    canvas = np.broadcast_to(grain, (FRAMES, SIDE, SIDE, 3)).astype(np.float32)
    for digit in digits:
        mask = _masks(digit)[..., None] * digit.opacity()[:, None, None, None].astype(np.float32)
        canvas = canvas + mask * (np.array(COLOURS[digit.colour], np.float32) - canvas)
    return np.rint(np.clip(canvas, 0, 255)).astype(np.uint8)


def _masks(digit: Digit) -> np.ndarray:
    """(frames, 64, 64) float32 coverage: the 8 x 8 handwriting at its size and sub-pixel place, bilinear."""
    corners = digit.centre + digit.offsets() - digit.side()[:, None] / 2
    weights = []
    for axis in (0, 1):  # bilinear sampling is a product of two (frames, 64, 8) matrices, one for rows, one for columns
        at = (np.arange(SIDE) + 0.5 - corners[:, axis, None]) * (8 / digit.side()[:, None]) - 0.5
        weights.append(np.maximum(0, 1 - np.abs(at[..., None] - np.arange(8))))
    soft = weights[0] @ digit.image @ weights[1].swapaxes(1, 2)
    return np.clip(1.6 * soft, 0, 1).astype(np.float32)  # strokes of the scans are faint: bring them to full colour
