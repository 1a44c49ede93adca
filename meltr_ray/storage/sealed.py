"""Files that tell whether they are as they were written: settings (YAML), facts (JSON), and listed files of any kind.

A file of an older version has no seal, and is read as it is. A text says in its first line that it has one: else a text that was cut
off would pass for one of an older version, and be filled up with defaults.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from meltr_ray.errors import ConfigError
from meltr_ray.storage.saying import say
from meltr_ray.storage.whole import put

SEAL = "# sha256: "
"""In front of the checksum in a file's last line."""
HEAD = "# its last line has the checksum of those before\n"
"""First line of a text that is sealed."""
KEY = "sha256"
"""Of the checksum in a JSON object."""


class Damaged(ConfigError):
    """A file isn't as it was written: one line."""


def check_file(path: Path) -> None:
    """A file that is there can be read.

    Raises:
        Damaged: a pipe, a device or a folder stands in its place; of the first two, reading might never end.
        OSError: it isn't ours to read, which other libraries call damaged, or missing.
    """
    if not Path(path).exists():
        return
    if not Path(path).is_file():
        raise Damaged(f"{path}: is no file; move it away, and restore the file from a copy")
    with open(path, "rb"):
        pass


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    check_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_text(path: Path, text: str) -> None:
    """Write text whose last line seals it."""
    text = HEAD + (text if text.endswith("\n") else f"{text}\n")
    put(path, f"{text}{SEAL}{_of(text)}\n")


def read(path: Path) -> str:
    """What `put_text` wrote.

    Raises:
        Damaged: the file is not as it was written.
        OSError: it can't be read.
        UnicodeDecodeError: it is no text.
    """
    check_file(path)
    text = Path(path).read_bytes().decode("utf-8")
    body, seal, known = text.rpartition(SEAL)
    if not seal or "\n" in known.strip():
        if not text:
            raise Damaged(f"{path}: is empty; restore it from a copy")
        copy = copy_of(path)
        if text.startswith(HEAD) or HEAD.startswith(text) or (copy.is_file() and SEAL.encode() in copy.read_bytes()):  # cut off
            raise _damaged(path)
        return text
    if _of(body) != known.strip():
        raise _damaged(path)
    return body.removeprefix(HEAD)


def put_json(path: Path, facts: dict[str, Any]) -> None:
    """Write a JSON object with its checksum, and a copy of it."""
    text = json.dumps(facts | {KEY: _of(_plain(facts))}, indent=1)
    put(copy_of(path), text)
    put(path, text)


def read_json(path: Path) -> dict[str, Any]:
    """What `put_json` wrote, from its copy where the first is damaged.

    Raises:
        Damaged: both are.
    """
    return _read_json(whole_of(path, _read_json))


def _read_json(path: Path) -> dict[str, Any]:
    check_file(path)
    try:
        facts = json.loads(Path(path).read_bytes().decode("utf-8"))
    except (ValueError, RecursionError):
        raise _damaged(path) from None
    if not isinstance(facts, dict):
        raise _damaged(path)
    known = facts.pop(KEY, None)
    if known is not None and known != _of(_plain(facts)):
        raise _damaged(path)
    return facts


def put_twice(path: Path, text: str) -> None:
    """Write sealed text, and a copy of it that stands in where the first is damaged."""
    put_text(copy_of(path), text)
    put_text(path, text)


def copy_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.copy")


def there(path: Path) -> bool:
    """Whether the file or its copy is."""
    return path.exists() or copy_of(path).exists()


def whole_of(path: Path, reader: Callable[[Path], object] = read) -> Path:
    """`path`, or its copy where it is damaged, gone or not ours to read; one line says so.

    Raises:
        Damaged: both are.
        PermissionError: neither can be read.
    """
    forbidden: PermissionError | None = None
    for place in (path, copy_of(path)):
        try:
            reader(place)
        except PermissionError as error:
            forbidden = forbidden or error
            continue
        except (OSError, ValueError):
            continue
        if place != path:
            why = "may not be read" if forbidden else "isn't as it was written"
            say(f"{path}: {why}; its copy is used")
        return place
    raise forbidden or _damaged(path)


def listed(folder: Path, names: Iterable[str]) -> str:
    """JSON of file names -> SHA-256."""
    return json.dumps({name: sha256(folder / name) for name in sorted(names)}, indent=1)


def differing(folder: Path, text: str) -> str | None:
    """The first file that isn't as `listed` found it; None: all are. An empty list, of an older version, says nothing."""
    if not text:
        return None
    try:
        known = json.loads(text)
        return next((name for name, value in known.items() if not (folder / name).is_file() or sha256(folder / name) != value), None)
    except (ValueError, AttributeError):
        return "the list of its files"


def _plain(facts: Any) -> str:
    return json.dumps(facts, sort_keys=True)


def _of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _damaged(path: Path) -> Damaged:
    return Damaged(f"{path}: isn't as it was written (its checksum differs); restore it from a copy")
