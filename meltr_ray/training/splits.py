"""The four splits of a workload: its own, and those split off its train examples where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from meltr_ray.config.user_code import called
from meltr_ray.errors import ConfigError, check
from meltr_ray.workload import Workload

SPLITS = ("train", "meta", "validation", "test")
SPLIT_OFF = {"meta": 0.1, "test": 0.1}
"""Share of the train examples that a split takes where the workload has none."""
SEED = 20230613
"""Of which examples are split off: the same in every run, so that runs compare."""


@dataclass(frozen=True)
class Part(Sequence):
    """Some of a sequence's examples, by their numbers; a slice is another part."""

    whole: Sequence[Any]
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int | slice) -> Any:
        return Part(self.whole, self.numbers[index]) if isinstance(index, slice) else self.whole[self.numbers[index]]


def examples(workload: Workload, split: str) -> Sequence[Any]:
    """The examples of one split.

    Raises:
        ConfigError: the workload has no train or validation examples, or what it gave is no sequence.
    """
    absent = [name for name in SPLIT_OFF if own(workload, name) is None]
    if split not in ("train", *absent):
        return _needed(workload, split)
    train = _needed(workload, "train")
    if not absent:
        return train
    order = np.random.default_rng(SEED).permutation(len(train))
    start, parts = 0, {}
    for name in absent:
        stop = start + max(1, round(SPLIT_OFF[name] * len(train)))
        parts[name], start = order[start:stop], stop
    parts["train"] = np.sort(order[start:])
    return Part(train, tuple(int(i) for i in parts[split]))


def own(workload: Workload, split: str) -> Sequence[Any] | None:
    """What the workload itself has for a split; None, or a KeyError about its name, says that there is no such split."""

    def asked() -> Sequence[Any] | None:
        try:
            return workload.examples(split)
        except KeyError as error:
            if error.args == (split,):
                return None
            raise

    return called(workload, "examples", asked)


def said(workload: Workload) -> list[str]:
    """Which splits were split off, a sentence each, for the report."""
    return [f"The workload has no {name} examples of its own: {share:.0%} of its train examples, drawn once, take their place."
            for name, share in SPLIT_OFF.items() if own(workload, name) is None]  # fmt: skip


def _needed(workload: Workload, split: str) -> Sequence[Any]:
    found = own(workload, split)
    check(found is not None, "workload", workload.source, f"has no {split} examples; return some from examples({split!r})")
    if isinstance(found, (Mapping, str, bytes)) or not hasattr(found, "__len__") or not hasattr(found, "__getitem__"):
        raise ConfigError(
            f"workload={workload.source}: examples({split!r}) gave a {type(found).__name__}; return a sequence, with len() and [i]"
        )
    called(workload, "examples", lambda: len(found))
    return found
