"""The grammar of captions: each names only some of what happens, in its own words and order."""

from __future__ import annotations

import numpy as np

from meltr_ray.video.datasets.digits.scene import MET, NAMES, Digit

CAPTIONS = 5
"""Captions of a clip."""
SYNONYMS = {
    "red": ("red", "crimson"), "green": ("green", "emerald"), "blue": ("blue", "navy"), "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"), "orange": ("orange", "amber"), "white": ("white", "pale"),
    "cyan": ("cyan", "turquoise"), "small": ("small", "little", "tiny"), "large": ("large", "big", "huge"),
    "left": ("to the left", "leftwards"), "right": ("to the right", "rightwards"), "up": ("up", "upwards"),
    "down": ("down", "downwards"), "slow": ("slowly", "gently"), "fast": ("quickly", "fast"),
    "pass": ("moves", "travels", "goes"), "bounce": ("bounces off the edge", "hits the wall and comes back"),
    "turn": ("takes a turn {turn}", "then heads {turn}"), "stop": ("stops halfway", "comes to a halt"),
    "vanish": ("vanishes", "fades away"), "appear": ("appears late", "shows up halfway"),
    "grow": ("grows", "gets bigger"), "shrink": ("shrinks", "gets smaller"), "wait": ("stays still", "does not move"),
    "meet": ("run into each other", "collide and part again"), "meet alone": ("bumps into another", "collides"),
}  # fmt: skip


def describe_clip(digits: list[Digit], random: np.random.Generator) -> list[str]:
    """Five captions, different ones as far as twenty draws find them."""
    drawn = dict.fromkeys(describe(digits, random) for _ in range(4 * CAPTIONS))
    return list(drawn)[:CAPTIONS]


def describe(digits: list[Digit], random: np.random.Generator) -> str:
    """One caption: some digits, in some order, some attributes of each, in some of their words."""

    def say(word: str) -> str:
        return str(random.choice(SYNONYMS[word]))

    def name(digit: Digit) -> str:
        words = [say(digit.size)] if random.random() < 0.45 else []
        colour = [say(digit.colour)] if random.random() < 0.75 else []
        words = words + colour if random.random() < 0.8 else colour + words
        noun = NAMES[digit.value] if random.random() < 0.7 else str(random.choice(("digit", "number", "figure")))
        words.append(noun)
        return " ".join(["an" if words[0][0] in "aeiou" and words[0] != "one" else "a", *words])

    def way(digit: Digit) -> str:
        words = [say(digit.direction)] if random.random() < 0.75 else []
        return " ".join(words + [say(digit.speed)] if random.random() < 0.5 else words)

    def act(digit: Digit) -> str:
        if digit.event == "wait":
            return say("wait")
        moves = f"{say('pass')} {way(digit)}".strip()
        event = say("meet alone" if digit.event == MET else digit.event).replace("{turn}", say(digit.turn))
        told = random.random()
        if digit.event == "pass" or told < 0.2:
            return moves
        return event if told < 0.4 else f"{moves} and {event}"

    order = [digits[at] for at in random.permutation(len(digits))]
    if digits[0].event == MET and random.random() < 0.8:
        first, second = order
        towards = f" {say(first.speed)}" if random.random() < 0.4 else ""
        return f"{name(first)} and {name(second)}{towards} {say(MET)}"
    parts = [f"{name(digit)} {act(digit)}" for digit in order[: 1 + random.binomial(len(order) - 1, 0.6)]]
    if len(digits) > len(parts) and random.random() < 0.3:
        parts[-1] += f" beside {name(order[len(parts)])}"
    return str(random.choice((" while ", " and ", ", "))).join(parts)
