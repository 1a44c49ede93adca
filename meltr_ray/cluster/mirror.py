"""The copy of a run or sweep in object storage: a thread of the driver follows its folder, so that no training waits for a network."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from meltr_ray.cluster.copied import CHECKPOINTS, Held, Looker
from meltr_ray.errors import ConfigError, first_line
from meltr_ray.storage import sealed
from meltr_ray.storage.claim import BEAT, Claim, Taken
from meltr_ray.storage.saying import say
from meltr_ray.storage.store import Store, opened
from meltr_ray.storage.twin import Twin
from meltr_ray.training.checkpoint import MARKER

EVERY = 3.0
"""Seconds between two looks at the folder, at least."""
SHARE = 10
"""A look takes this part of the time at most: with thousands of trials it takes seconds."""
LAST_SECONDS = 60
"""In which object storage that fails at the end has to take the rest."""


class Mirror:
    """Copies what has changed in `folder` to `store`, until the end of the command."""

    def __init__(self, folder: Path, twin: Twin, store: Store, claim: Claim):
        self.folder, self.twin, self.store, self.claim = folder, twin, store, claim
        self.looker, self.begun, self.ended, self.taken = Looker(folder), False, threading.Event(), ""
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self.follow, self.keep_claim)]

    def begin(self) -> None:
        """Send what is there, and follow from now on.

        Raises:
            ConfigError: it can't be sent.
        """
        self.threads[1].start()
        if failed := self.until_sent(0):
            raise ConfigError(f"output={self.store.address}: can't be written ({failed}); mend that, or give a folder")
        self.begun = True
        self.threads[0].start()

    def end(self) -> None:
        """Send the rest.

        Raises:
            ConfigError: it can't be sent; it stays in the folder here.
        """
        self.ended.set()
        for thread in self.threads:
            if thread.is_alive():
                thread.join()
        failed = self.taken or (self.until_sent(LAST_SECONDS) if self.begun else "")
        shutil.rmtree(self.looker.staged, ignore_errors=True)
        if failed:
            raise ConfigError(f"output={self.store.address}: hasn't all that was written ({failed}); it is in {self.folder}, go on with "
                              f"resume={shlex.quote(self.twin.uri)}")  # fmt: skip
        with suppress(OSError):
            self.claim.beat(released=True)

    def until_sent(self, seconds: float) -> str:
        """Why not all could be sent in a thread of its own: a signal there would leave half an object."""
        found: list[str] = []

        def run() -> None:
            deadline = time.monotonic() + seconds
            while (why := self.sent(with_log=True)) and not self.taken and time.monotonic() < deadline:
                time.sleep(1)
            found.append(why)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join()
        return found[0]

    def follow(self) -> None:
        """A thread: send what changes."""
        pause, before = EVERY, ""
        while not self.ended.wait(pause) and not self.taken:
            began = time.monotonic()
            why = self.sent()
            if bool(why) != bool(before):
                say(f"output={self.store.address}: {f'not reached ({why}); tried again' if why else 'reached again'}")
            before, pause = why, max(EVERY, min(60.0, SHARE * (time.monotonic() - began)))

    def keep_claim(self) -> None:
        """A thread: say that this process writes; end the command where another one does."""
        while not self.ended.wait(BEAT):
            with suppress(OSError):
                try:
                    self.claim.check()
                    self.claim.beat()
                except Taken as error:
                    self.taken = str(error)
                    os.kill(os.getpid(), signal.SIGTERM)  # what trains saves its step, here, and stops
                    return

    def sent(self, with_log: bool = False) -> str:
        """Send what has changed. Returns why that failed."""
        try:
            for held in self.looker.look(with_log):
                self.send(held)
        except (OSError, Taken) as error:
            return first_line(error)
        return ""

    def send(self, held: Held) -> None:
        """One part, in its order."""
        known = {name: (place.stat().st_size, sealed.sha256(place)) for name, place in held.files}
        changed = [(name, place) for name, place in held.files if self.twin.sent.get(name) != known[name]]
        if changed:
            self.claim.check()
        if held.marker in self.twin.sent and any(Path(name).parent == Path(held.marker).parent for name, _ in changed):
            self.drop([held.marker])  # a checkpoint of the same step, written anew: it is invalid until all of it is there
            changed += [(name, place) for name, place in held.files if name == held.marker and (name, place) not in changed]
        for name, place in changed:
            self.store.send(place, name)
            self.twin.sent[name] = known[name]
        self.looker.done(held)
        self.drop(self.outdated(held))
        if changed:
            self.twin.keep(self.folder)

    def outdated(self, held: Held) -> list[str]:
        """Files of checkpoints that are gone here and older than the newest that the copy has, their markers first."""
        prefix = f"{held.part}/{CHECKPOINTS}/".lstrip("/")
        newest = max((folder for folder in held.checkpoints if f"{folder}/{MARKER}" in self.twin.sent), default="")
        of_others = [name for name in self.twin.sent if name.startswith(prefix) and name.rpartition("/")[0] not in held.checkpoints]
        return sorted((name for name in of_others if name < newest), key=lambda name: not name.endswith(f"/{MARKER}"))

    def drop(self, names: list[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                self.store.delete(name)
            self.twin.sent.pop(name)


@contextmanager
def mirrored(folder: Path, twin: Twin | None) -> Iterator[Mirror | None]:
    """Around all that is written in `folder`, where it has a copy in object storage; `begin` is to be called when there is something to go on from.

    Raises:
        ConfigError: the storage can't be used, another process writes there, or at the end it hasn't all.
    """
    if twin is None:
        yield None
        return
    store = opened("output", twin.uri)
    claim = Claim(store)
    before = claim.look(set(twin.tokens))
    twin.tokens = [claim.token, *before]
    twin.keep(folder)
    claim.take()
    try:
        twin.forget_missing(store.names())
    except OSError as error:
        raise ConfigError(f"output={store.address}: can't be read ({first_line(error)}); try again") from None
    mirror = Mirror(folder, twin, store, claim)
    try:
        yield mirror
    except BaseException:
        with suppress(ConfigError):  # what went wrong first is said
            mirror.end()
        raise
    mirror.end()
