"""Which clips train, and which are held out: by whole sources, in an order that hangs on the source's checksum alone."""

from __future__ import annotations

import hashlib
from collections import defaultdict

from meltr_ray.errors import check
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.schema import SPLITS

FEWEST = 2
"""Clips of the smallest batch."""
HELD_OUT = 0.1  # share of the clips to train on that each split which is held out of them takes


def hold_out(given: dict[str, list[Clip]], lost: str = "", share: float = HELD_OUT) -> tuple[dict[str, list[Clip]], list[str]]:
    """Our four splits of those that a data set has, and warnings.

    A test split that is missing is the official validation. Meta and validation (and test, where the data set has neither) are
    held out of train, each this `share` of its clips, at least one source. Where there is no train split, all clips are divided anew.
    Raises ConfigError where train has too few sources; `lost` says there which clips were left out before, if any.
    """
    given = {split: given.get(split, []) for split in SPLITS}
    warnings = []
    if not given["train"]:
        named = [split for split in SPLITS if given[split]]
        warnings.append(f"no train split, so the clips of {' and '.join(named)} were divided anew; figures don't compare with others'")
        given = dict.fromkeys(SPLITS, []) | {"train": [clip for split in named for clip in given[split]]}
    if not given["test"]:
        given |= {"test": given["validation"], "validation": []}
    fill = [split for split in SPLITS[1:] if not given[split]]
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in given["train"]:
        groups[clip.source].append(clip)
    check(len(groups) > len(fill), "source", f"{len(groups)} videos to train on{lost and f' ({lost})'}",
          f"{' and '.join(fill)} are held out of them, each at least one; add videos, or name the splits")  # fmt: skip
    most = round(share * len(given["train"]))
    order = sorted(groups, key=lambda source: hashlib.sha256(source.encode()).digest())
    taken: dict[str, list[str]] = {split: [] for split in fill}
    rest, sizes = [], dict.fromkeys(fill, 0)
    for source in order:
        room = [split for split in fill if sizes[split] + len(groups[source]) <= most]
        (taken[room[0]] if room else rest).append(source)
        if room:
            sizes[room[0]] += len(groups[source])
    for split in fill:
        if not taken[split]:  # few sources, or large ones: the smallest that can be spared
            donor = rest if len(rest) > 1 else max(taken.values(), key=len)
            donor.remove(smallest := min(donor, key=lambda source: len(groups[source])))
            taken[split].append(smallest)
    ours = {split: [clip for source in taken[split] for clip in groups[source]] for split in fill}
    splits = given | ours | {"train": [clip for source in rest for clip in groups[source]]}
    if "meta" in fill and len(splits["meta"]) < FEWEST:
        warnings.append(f"meta got {len(splits['meta'])} clip of {len(given['train'])}, and training by held-out batches needs {FEWEST}: "
                        f"for that prepare it with more, such as data.held_out={suggested(len(given['train']))}")  # fmt: skip
    return splits, warnings


def suggested(clips: int) -> float:
    """The least share, in twentieths, that gives a split more than one of `clips`."""
    return next((part / 20 for part in range(3, 9) if round(part / 20 * clips) >= FEWEST), 0.4)


def shared_sources(splits: dict[str, list[Clip]]) -> dict[str, int]:
    """How many clips of each other split share a source with train."""
    train = {clip.source for clip in splits["train"]}
    counts = {split: sum(clip.source in train for clip in splits[split]) for split in SPLITS[1:]}
    return {f"{split} clips that share a source with train": count for split, count in counts.items()}
