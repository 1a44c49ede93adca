"""What a task draws its batches from: clips, or clips with one question each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow.compute as pc

from meltr_ray.errors import check
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.store import ClipStore


class Examples:
    """Those clips of a store that a task can use, each as often as it says.

    `clips`: row of the clip of each example, told from the columns that it takes, since reading whole clips takes some fifty times
    as long; `numbers`: which of its clip's examples each is, and `pick`: (clip, number) -> the example, a function of a module, so
    that worker processes find it.
    Raises ConfigError where there is none.
    """

    def __init__(self, store: ClipStore, task: str, clips: Iterable[int], numbers: Iterable[int] | None = None,
                 pick: Callable[[Clip, int], Clip] | None = None):  # fmt: skip
        self.store, self.split, self.pick = store, store.split, pick
        clips = [int(at) for at in clips]
        self.places = list(zip(clips, map(int, numbers) if numbers is not None else [0] * len(clips)))
        check(
            bool(self.places),
            "data.folder",
            store.folder,
            f"has nothing for task={task} in its {store.split} split; choose another task or data set",
        )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Clip:
        at, number = self.places[index]
        clip = self.store[at]
        return self.pick(clip, number) if self.pick else clip


def captioned(store: ClipStore) -> np.ndarray:
    """Rows of the clips that have a caption."""
    return np.flatnonzero(pc.list_value_length(store.column("captions")))


def in_parts(examples: Sequence[Clip], size: int) -> Iterator[list[Clip]]:
    """All examples in their order, `size` at once, as evaluation reads them."""
    for start in range(0, len(examples), size):
        yield [examples[index] for index in range(start, min(start + size, len(examples)))]
