"""A folder here and its copy in object storage: which files are the same in both, by size and checksum.

`.store.json` of the folder says where its copy is. It isn't copied itself.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from meltr_ray.errors import ConfigError
from meltr_ray.storage import sealed
from meltr_ray.storage.claim import said
from meltr_ray.storage.saying import say
from meltr_ray.storage.store import Store, answered
from meltr_ray.storage.whole import put
from meltr_ray.storage.writers import only_writer

FILE = ".store.json"


@dataclass
class Twin:
    """What the folder knows of its copy."""

    uri: str
    tokens: list[str] = field(default_factory=list)
    """Of the writers whose files these are: the last one, and the one before it, whose place it may not have taken."""
    sent: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Name -> bytes and SHA-256, of files that are alike in both."""

    @classmethod
    def of(cls, folder: Path) -> Twin | None:
        """None: the folder has no copy.

        Raises:
            ConfigError: what it knew can't be read.
        """
        sealed.check_file(folder / FILE)
        try:
            found = json.loads((folder / FILE).read_bytes())
            return cls(str(found["uri"]), list(found["tokens"]), {name: tuple(each) for name, each in found["sent"].items()})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{folder / FILE}: isn't as it was written; move {folder} away and give the address in resume=") from None

    def keep(self, folder: Path) -> None:
        put(folder / FILE, json.dumps(asdict(self)))

    def forget_missing(self, there: dict[str, int]) -> None:
        """What isn't in the copy any more, or has another size there, is to be sent again."""
        self.sent = {name: known for name, known in self.sent.items() if there.get(name) == known[0]}


def pulled(setting: str, store: Store, folder: Path, marks: Iterable[str]) -> bool:
    """Make `folder` what the store has, unless it is that or more already. Returns whether anything was fetched.

    What is here was written by the same process as what is there: then it stays, and is at least as new. A folder of another one is
    moved away, and a line says so.

    Args:
        marks: files of which the store must have one.

    Raises:
        ConfigError: it has none, or can't be read.
    """
    uri, last = str(store.address), answered(setting, str(store.address), lambda: said(store))
    here = Twin.of(folder) if folder.exists() else None
    if here and last and last.get("token") in here.tokens:
        here.uri = uri
        here.keep(folder)
        return False
    try:
        there = store.names()
        if not set(marks) & set(there):
            raise ConfigError(f"{setting}={uri}: no run or sweep is there; give the address of one's folder")
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        twin = Twin(uri, [last["token"]] if last else [])
        for name, size in sorted(there.items()):
            if name.rpartition("/")[2].startswith(".") and not name.endswith(".copy"):
                continue
            store.fetch(name, unfinished / name)
            found = (unfinished / name).stat().st_size
            if found != size:
                raise OSError(f"{name} came with {found} bytes of {size}")
            twin.sent[name] = size, sealed.sha256(unfinished / name)
        twin.keep(unfinished)
    except OSError as error:
        shutil.rmtree(folder.with_name(f".{folder.name}.{os.getpid()}.tmp"), ignore_errors=True)
        raise ConfigError(f"{setting}={uri}: can't be fetched ({str(error).splitlines()[0]}); try again") from None
    set_aside(folder, uri)
    os.replace(unfinished, folder)
    return True


def set_aside(folder: Path, uri: str) -> None:
    """Rename a folder of which `uri` isn't the copy; one line says so."""
    if not folder.exists():
        return
    with only_writer(folder):
        number = 1
        while (aside := folder.with_name(f"{folder.name}.before-{number}")).exists():
            number += 1
        os.replace(folder, aside)
        say(f"note: {folder} wasn't what {uri} has; it is now {aside}")
