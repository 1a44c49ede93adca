"""Trials of a search that learns from its own trials, as Tune asks for them."""

from __future__ import annotations

from pathlib import Path

from meltr_ray.cluster.searches import tried_in
from meltr_ray.config import file as config_file
from meltr_ray.results import table as results
from meltr_ray.storage import sealed
from tune_spaces.arms import Trial
from tune_spaces.space_search import SpaceSearch
from tune_spaces.tpe import Tried


class Asking:
    """Those that a killed sweep has begun, then new ones, each from all that is known when it is asked for.

    What was begun is read from the trials' folders: their settings say what they drew, their tables how they ended.
    """

    def __init__(self, search: SpaceSearch, folder: Path):
        self.search, self.folder = search, folder
        self.tried = begun(search, folder)
        self.waiting = [number for number in self.tried if not results.is_final(self._folder(number))]

    def next(self) -> Trial | None:
        if self.waiting:
            number = self.waiting.pop(0)
            return self.search.trial(number, self.tried[number].changes)
        trial = self.search.ask(self.tried)
        if trial:
            self.tried[self.search.number_of(trial.name)] = Tried(self.search.drawn_by(trial.config))
        return trial

    def ended(self, name: str) -> None:
        number = self.search.number_of(name)
        self.tried[number] = tried_in(self._folder(number), self.tried[number].changes)

    @property
    def left(self) -> int:
        """Trials that it may still give."""
        return len(self.waiting) + max(0, self.search.samples - len(self.tried))

    def _folder(self, number: int) -> Path:
        return self.folder / "trials" / self.search.names.replace("*", str(number))


def begun(search: SpaceSearch, folder: Path) -> dict[int, Tried]:
    """Number -> trial of the search that a sweep's folder has."""
    found = {}
    for path in (folder / "trials").glob(f"{search.names}/config.yaml"):
        config = config_file.read(sealed.whole_of(path))
        found[search.number_of(path.parent.name)] = tried_in(path.parent, search.drawn_by(config))
    return dict(sorted(found.items()))
