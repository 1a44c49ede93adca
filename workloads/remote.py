"""Outputs in object storage, as commands see them: an address on the command line is a folder here, from or to which files are copied."""

from __future__ import annotations

import atexit
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from meltr_ray.config import Config
from meltr_ray.errors import ConfigError, check, first_line
from meltr_ray.storage.address import is_address, parsed
from meltr_ray.storage.store import Store, answered, opened
from meltr_ray.storage.twin import Twin, pulled

BEGUN = ("settings.yaml", "config.yaml")
"""Of a sweep, and of a run: one of them is there from the beginning."""
SCORED = ("best.safetensors", "config.yaml", ".config.yaml.copy")
"""What evaluate.py reads of a run, beside the text of its workload."""
FETCHED: dict[Path, str] = {}
"""Folder -> address, of runs that were fetched to be scored."""
ABOVE = 2
"""Folders from a trial to its sweep, which has that text."""


def fetched(split: list[tuple[str, str]], own: Iterable[str]) -> list[tuple[str, str]]:
    """The settings of a command line, with addresses to go on from, or to score, fetched and replaced by folders.

    Raises:
        ConfigError: an address isn't supported, or can't be fetched.
    """
    given = dict(split)
    here = {key: given[key] for key in ("resume", "checkpoint") if key not in own and is_address(given.get(key, ""))}
    if "resume" in here:
        here["resume"] = str(fetched_run(given["resume"], given.get("working_folder", Config.working_folder)))
        split = [(key, value) for key, value in split if key != "working_folder"]
    if "checkpoint" in here:
        here["checkpoint"] = str(fetched_weights(given["checkpoint"]))
    return [(key, here.get(key, value)) for key, value in split]


def fetched_run(text: str, working_folder: str) -> Path:
    """The folder here of a run or sweep at an address, which is made what that has."""
    store = opened("resume", text)
    folder = store.address.below(working_folder).absolute()
    if pulled("resume", store, folder, BEGUN):
        print(f"fetched {store.address} -> {folder}", flush=True)
    return folder


def fetched_weights(text: str) -> Path:
    """A folder, until the end of this process, with what is needed to score the run at an address."""
    store = opened("checkpoint", text)
    top = Path(tempfile.mkdtemp(prefix="scored-"))
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    folder = top.joinpath(*["above"] * ABOVE, store.address.name or "run")
    try:
        there = [name for name in SCORED if store.holds(name)]
        for name in there:
            store.fetch(name, folder / name)
        for place, one in zip((folder, *folder.parents), above(store)):
            for name in one.names():
                one.fetch(name, place / "workload" / name)
    except OSError as error:
        raise ConfigError(f"checkpoint={text}: can't be fetched ({first_line(error)}); try again") from None
    check("config.yaml" in there and "best.safetensors" in there, "checkpoint", text,
          "holds no config.yaml and best.safetensors; give the address of a run that was evaluated")  # fmt: skip
    FETCHED[folder] = str(store.address)
    return folder


def above(store: Store) -> list[Store]:
    """The texts of the workload of a run, or of the sweep around it."""
    found = []
    while store.address.path and len(found) <= ABOVE:
        found.append(store / "workload")
        store = store.parent
    return found


def send_back(folder: Path, page: Path) -> str:
    """Copy a page, and what lies beside it, that was made in a folder that was fetched to where that came from. Returns its address.

    Raises:
        ConfigError: it can't be written.
    """
    uri = FETCHED[folder]
    store, name = opened("checkpoint", uri), page.relative_to(folder).as_posix()
    try:
        for file in sorted(page.parent.rglob("*")):
            if file.is_file():
                store.send(file, file.relative_to(folder).as_posix())
    except OSError as error:
        raise ConfigError(
            f"checkpoint={uri}: {name} can't be written there ({first_line(error)}); copy the run here and score that"
        ) from None
    return str(store.address / name)


def is_taken(config: Config, name: str) -> bool:
    """Whether there is something at `<output>/<name>` in object storage."""
    store = opened("output", config.output)
    return answered("output", config.output, lambda: store.holds(name))


def check_working_folder(given: dict[str, str], config: Config) -> None:
    check("working_folder" not in given or is_address(config.output), "working_folder", config.working_folder,
          f"is of outputs in object storage, and output={config.output} is a folder; leave it out")  # fmt: skip


def twin_of(config: Config, kind: str, folder: Path) -> Twin | None:
    """What a run or sweep in `folder` knows of its copy; None: outputs are a folder.

    Raises:
        ConfigError: it should have a copy and knows of none, as it was copied by hand.
    """
    found = Twin.of(folder)
    if found or not is_address(config.output):
        return found
    check(not any((folder / name).exists() for name in BEGUN), "resume", folder,
          f"was taken from {config.output} by hand, and wouldn't be copied back; give its address in resume=")  # fmt: skip
    return Twin(str(parsed("output", config.output) / kind / folder.name))


def place_of(folder: Path, twin: Twin | None) -> str:
    """What `resume=` takes, as a shell does."""
    return shlex.quote(twin.uri) if twin else str(folder)


def told(twin: Twin | None) -> None:
    """One line: where the copy is."""
    if twin:
        print(f"copied to {twin.uri}", file=sys.stdout, flush=True)
