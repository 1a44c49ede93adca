"""Trials of a search that learns from its own trials, as Tune asks for them."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from meltr_ray.cluster.left import check_settings, set_aside
from meltr_ray.cluster.searches import tried_in
from meltr_ray.config import file as config_file
from meltr_ray.results import table as results
from meltr_ray.storage import sealed
from meltr_ray.storage.saying import say
from tune_spaces.arms import Trial
from tune_spaces.space_search import SpaceSearch
from tune_spaces.spaces import Changes
from tune_spaces.tpe import Tried


class Asking:
    """Those that a killed sweep has begun, then new ones, each from all that is known when it is asked for.

    What was begun is read from the trials' folders: their tables say what they drew and how they ended; where there is none yet, their settings.
    A trial of which neither says what it drew is set aside, and another takes its place.
    """

    def __init__(self, search: SpaceSearch, folder: Path):
        self.search, self.folder = search, folder
        check_settings(folder, [search.trial(number, one.changes) for number, one in begun(search, folder).items()])
        self.tried = begun(search, folder)
        for place in places(search, folder):
            if search.number_of(place.name) not in self.tried:
                make_way(place)
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
    drawn = {place: drawn_in(search, place) for place in places(search, folder)}
    found = {search.number_of(place.name): tried_in(place, changes) for place, changes in drawn.items() if changes is not None}
    return dict(sorted(found.items()))


def places(search: SpaceSearch, folder: Path) -> list[Path]:
    """Folders of the search's trials; an empty one of a sweep that was killed, and what only looks like one, left out."""
    return [place for place in sorted((folder / "trials").glob(search.names)) if is_of(search, place) and any(place.iterdir())]


def is_of(search: SpaceSearch, place: Path) -> bool:
    """Whether a folder has the name of a trial of the search."""
    before, after = search.names.split("*")
    return place.is_dir() and place.name.removeprefix(before).removesuffix(after).isdecimal()


def then(search: SpaceSearch | None, trial: Path) -> str:
    """What comes of a trial of a sweep, perhaps of its search, whose table is lost."""
    if search and fnmatch(trial.name, search.names) and _by_settings(search, trial) is None:
        return "another trial takes its place"
    return "its trial runs again"


def drawn_in(search: SpaceSearch, place: Path) -> Changes | None:
    """What the trial in a folder drew: by its table, which is known to be its own, else by its settings; None: both are damaged or gone."""
    rows = results.read_trial(place)
    drawn = search.drawn_by_row(rows[-1]) if rows else None
    return _by_settings(search, place) if drawn is None else drawn


def _by_settings(search: SpaceSearch, place: Path) -> Changes | None:
    try:
        return search.drawn_by(config_file.read(sealed.whole_of(place / "config.yaml")))
    except sealed.Damaged:
        return None


def make_way(place: Path) -> None:
    """Move a trial's folder out of the way of another that may take its number; one line says so."""
    aside = set_aside(place, within=place.parents[1])
    say(f"{place}: neither its table nor its settings say what it drew; it is set aside as {aside}, and another trial takes its place")
