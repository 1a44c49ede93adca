"""Names and paths that something is written to: refused before anything is."""

from __future__ import annotations

import os
import re
from pathlib import Path

from meltr_ray.errors import check
from meltr_ray.storage.address import SCHEME, is_address, parsed

NAME = re.compile(r"\w[\w .,+=@-]*")
"""Letters of any language, digits, and marks that neither shells nor file systems take for something else."""
LONGEST_COMPONENT = 140
"""Bytes of a file's or folder's name: encrypted folders take 143, and some of ours get a number behind."""
LONGEST_PATH = 3000
"""Bytes; Linux takes 4096, and what is inside needs some of them."""


def check_name(setting: str, name: str) -> None:
    """A name of an output folder is one component of a path."""
    check(NAME.fullmatch(name) is not None and name == name.strip(), setting, name,
          "is no name of a folder; take letters, digits, _ and -, and give other folders with output=")  # fmt: skip
    check_path(setting, name)


def check_local(setting: str, path: str) -> None:
    """A path, and no address of object storage or the like, which would become a folder called `s3:` here."""
    found = SCHEME.match(path)
    check(
        found is None,
        setting,
        path,
        f"{found and found[1]} isn't supported; give a folder of a file system that every machine reaches, without {found and found[1]}:",
    )


def check_place(setting: str, text: str) -> None:
    """Where outputs are: a path of which this program makes files or folders, or an address of object storage."""
    if is_address(text):
        parsed(setting, text)
        return
    check_path(setting, text)


def check_path(setting: str, path: str) -> None:
    """A path of which this program makes files or folders."""
    check_local(setting, path)
    longest = max((len(os.fsencode(part)) for part in Path(path).parts), default=0)
    check(longest <= LONGEST_COMPONENT, setting, path, f"has a name of {longest} bytes in it; shorten it to {LONGEST_COMPONENT}")
    length = len(os.fsencode(str(Path(path).absolute())))
    check(length <= LONGEST_PATH, setting, path, f"is a path of {length} bytes; shorten it to {LONGEST_PATH}")


def check_writable(setting: str, value: str, folder: Path) -> None:
    """Refuse a folder that can't be made, or in which nothing can be; nothing is made."""
    folder = Path(folder).absolute()
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    check(there.is_dir(), setting, value, f"{there} is a file, where a folder is needed; give another path")
    check(
        os.access(there, os.W_OK | os.X_OK),
        setting,
        value,
        f"nothing can be written in {there}; give a folder of your own, or change its permissions",
    )
