"""What a task draws its batches from: clips, or clips with one question each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from meltr_ray.errors import check
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.store import ClipStore


class Examples:
    """Those rows of a store that a task can use, each as often as it says.

    `count`: how many examples a clip gives; `pick`: (clip, number of the example) -> the example; functions of a module, so that
    worker processes find them.
    Raises ConfigError where the split has none.
    """

    def __init__(self, store: ClipStore, task: str, count: Callable[[Clip], int], pick: Callable[[Clip, int], Clip] | None = None):
        self.store, self.split, self.pick = store, store.split, pick
        texts = ClipStore(store.folder, store.split)  # the same clips without their videos
        self.places = [(at, number) for at in range(len(texts)) for number in range(count(texts[at]))]
        check(bool(self.places), "data.folder", store.folder, f"has nothing for task={task} in its {store.split} split; choose another task or data set")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Clip:
        at, number = self.places[index]
        clip = self.store[at]
        return self.pick(clip, number) if self.pick else clip


def count_captioned(clip: Clip) -> int:
    """One example a clip that has a caption."""
    return min(len(clip.captions), 1)


def in_parts(examples: Sequence[Clip], size: int) -> Iterator[list[Clip]]:
    """All examples in their order, `size` at once, as evaluation reads them."""
    for start in range(0, len(examples), size):
        yield [examples[index] for index in range(start, min(start + size, len(examples)))]
