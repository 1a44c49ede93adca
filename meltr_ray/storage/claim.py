"""One writer of a folder in object storage: whoever writes says so there, again and again, and looks whether it is still the one.

`pyarrow.fs` has no write that hangs on what is there, so two who begin within the same second, or one who was halted for longer than
`SILENT` seconds, are told apart when they look, and not when they write.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
from datetime import UTC, datetime
from typing import Any

from meltr_ray.errors import ConfigError
from meltr_ray.storage.store import Store, answered
from meltr_ray.storage.writers import WRITER

BEAT = 4.0
"""Seconds between two signs of life of a writer."""
SILENT = 3.5 * BEAT
"""Seconds without one after which a writer counts as dead."""
SETTLED = 1.0
"""Seconds after which one of two who claimed at once finds the other's claim."""


class Taken(RuntimeError):
    """Another process writes there: this one must not."""


def said(store: Store) -> dict[str, Any]:
    """What the last writer said: `token`, `beat`, `released`, `host`, `process`, `since`; nothing where there was none."""
    text = store.read(WRITER)
    try:
        found = json.loads(text or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class Claim:
    """The right to write `store`, by a token that is drawn anew for each process."""

    def __init__(self, store: Store):
        self.store, self.beats = store, 0
        self.about = {"token": secrets.token_hex(8), "host": platform.node(), "process": os.getpid(),
                      "since": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip

    @property
    def token(self) -> str:
        return str(self.about["token"])

    def look(self, known: set[str]) -> list[str]:
        """The token of the writer before this one, if there was any. `known`: tokens of the writers whose files are here.

        Raises:
            ConfigError: another process writes there, or has written there since.
        """
        uri = self.store.address
        before = answered("output", str(uri), lambda: said(self.store))
        if not before:
            return []
        if before.get("token") not in known:
            raise ConfigError(f"output={uri}: {_who(before)} has written there since these files were; go on with resume={uri}")
        if not before.get("released"):
            time.sleep(SILENT)
            now = answered("output", str(uri), lambda: said(self.store))
            if now != before:
                raise ConfigError(f"output={uri}: {_who(now)} writes there; wait until that has ended, or end it first")
        return [str(before["token"])]

    def take(self) -> None:
        """Begin.

        Raises:
            ConfigError: another process has begun at the same moment; the storage can't be written.
        """
        uri = self.store.address
        answered("output", str(uri), self.beat)
        time.sleep(SETTLED)
        now = answered("output", str(uri), lambda: said(self.store))
        if not now:
            raise ConfigError(
                f"output={uri}: what was written there can't be read again; give the credentials of the environment the right to read"
            )
        if now.get("token") != self.token:
            raise ConfigError(f"output={uri}: {_who(now)} began to write there at the same moment; end one of the two")

    def beat(self, released: bool = False) -> None:
        """A sign of life."""
        self.beats += 1
        self.store.write(WRITER, json.dumps(self.about | {"beat": self.beats, "released": released}).encode())

    def check(self) -> None:
        """Raises Taken: another process has begun to write there; OSError: nothing was heard of the storage."""
        now = said(self.store)
        if now.get("token") != self.token:
            raise Taken(f"{_who(now)} writes there now")


def _who(about: dict[str, Any]) -> str:
    return f"process {about.get('process', '?')} on {about.get('host', '?')}, since {about.get('since', '?')},"
