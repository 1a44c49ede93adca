"""Bouncing digits, the embedded data set: real handwriting moves in real encoded video under a grammar of captions.

scikit-learn's 8 x 8 handwritten digits are enlarged, coloured and moved over a 64 x 64 canvas, one to three a clip;
splits share no handwriting sample. A caption names only some of what happens, in its own words and order, so several
clips can fit it: what a method gains is in reading all of the sentence and following the motion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from meltr_ray.config import check
from meltr_ray.data import store
from meltr_ray.data.features import DESCRIPTION, FrameFeatures, shrink
from meltr_ray.data.schema import row
from meltr_ray.data.video import decode_video, encode_video, evenly_spaced
from meltr_ray.data.vocabulary import build_vocabulary

CLIPS = {"train": 1700, "meta": 250, "validation": 250, "test": 300}
GENERATOR_VERSION = 1
SIDE, FRAMES, SAMPLED_FRAMES = 64, 28, 12
CAPTIONS = 5
ABOUT = (
    "Bouncing digits: scikit-learn's handwritten digits move in encoded video (28 frames, 64 x 64), five captions a clip "
    "from a small grammar; splits share no handwriting sample"
)

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


def source(clips: dict[str, int] | None = None, seed: int = 0) -> dict[str, Any]:
    """What the clips follow from; two folders with equal sources hold the same clips."""
    return dict(generator_version=GENERATOR_VERSION, seed=seed, clips=clips or CLIPS)


def make_digits(folder: str | Path, report: Callable[[str], None] = print, clips: dict[str, int] | None = None,
                seed: int = 0) -> dict[str, Any]:  # fmt: skip
    """Make the data set in `folder` unless it is there already; returns the manifest. About half a minute on one core.

    `clips` gives the clips of each split (default: 2,500 in all), `report` takes a line of progress now and then.
    """
    folder, clips = Path(folder), clips or CLIPS
    if (folder / "manifest.json").is_file():
        manifest = store.check_folder(folder)
        check(manifest["name"] == "digits" and manifest["source"] == source(clips, seed), "data.folder", folder,
              f"holds {manifest['name']} from another source; choose another folder or delete it")
        return manifest
    shares = _share_handwriting(clips, seed)
    splits, features, words = {}, None, []
    with store.new_folder(folder) as temporary:
        for at, split in enumerate(clips):  # train first: the extractor is fitted on it
            random = np.random.default_rng([seed, at])
            clip_videos, clip_captions, sampled = [], [], []
            for number in range(clips[split]):
                digits = draw_clip(*shares[split], random)
                clip_videos.append(encode_video(paint(digits, random)))
                frames = decode_video(clip_videos[-1])  # features come from what the codec left of the frames
                sampled.append(shrink(frames[evenly_spaced(len(frames), SAMPLED_FRAMES)]))
                clip_captions.append(_captions(digits, random))
                if (number + 1) % 500 == 0 or number + 1 == clips[split]:
                    report(f"digits: {split} {number + 1}/{clips[split]} clips")
            if split == "train":
                features = FrameFeatures.fit(np.concatenate(sampled))
                words = [caption for captions in clip_captions for caption in captions]
            splits[split] = store.write_split(temporary, split, (
                row(f"{split}{number:05d}", split, captions, features(frames), video=video)
                for number, (captions, frames, video) in enumerate(zip(clip_captions, sampled, clip_videos))
            ))  # fmt: skip
        features.save(temporary / "features.npz")
        build_vocabulary(words, temporary / "vocabulary.txt", size=400)
        return store.write_manifest(temporary, name="digits", description=ABOUT, source=source(clips, seed),
                                    splits=splits, feature_size=len(features.mean), feature_extractor=DESCRIPTION)  # fmt: skip


def _captions(digits: list[Digit], random: np.random.Generator) -> list[str]:
    """Five captions, different ones as far as twenty draws find them."""
    drawn = dict.fromkeys(describe(digits, random) for _ in range(4 * CAPTIONS))
    return list(drawn)[:CAPTIONS]


def _share_handwriting(clips: dict[str, int], seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split -> handwriting (N, 8, 8) in 0 to 1 and values (N,): disjoint shares, each at least a tenth."""
    bunch = load_digits()
    order = np.random.default_rng([seed, 99]).permutation(len(bunch.images))
    shares = np.array([max(clips[split], 0.1 * sum(clips.values())) for split in clips])
    cuts = np.cumsum(shares / shares.sum() * len(order)).astype(int)[:-1]
    return {split: (bunch.images[part] / 16, bunch.target[part]) for split, part in zip(clips, np.split(order, cuts))}
