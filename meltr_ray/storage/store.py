"""A folder of object storage: whole files to it and from it, by `pyarrow.fs`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from meltr_ray.errors import ConfigError, first_line, shown
from meltr_ray.storage.address import Address, parsed
from meltr_ray.storage.whole import put_by_path

ANSWER_SECONDS = 20
"""In which object storage has to say whether a bucket is there."""
T = TypeVar("T")


class Store:
    """The folder at `address`. Every method raises OSError where the storage refuses or doesn't answer.

    An object is there whole or not at all: it shows when its last part has come. What a process that was killed has sent of one stays as
    parts that nothing shows.
    """

    def __init__(self, address: Address, system: Any, base: str):
        self.address, self.system, self.base = address, system, base

    def __truediv__(self, name: str) -> Store:
        return Store(self.address / name, self.system, f"{self.base}/{name}")

    @property
    def parent(self) -> Store:
        return Store(self.address.parent, self.system, self.base.rpartition("/")[0])

    def names(self) -> dict[str, int]:
        """Name below the folder -> bytes, of all files. A name that leads out of the folder, as only a stranger's would, is an OSError."""
        from pyarrow.fs import FileSelector, FileType

        found = self.system.get_file_info(FileSelector(self.base, recursive=True, allow_not_found=True))
        names = {each.path.removeprefix(f"{self.base}/"): each.size for each in found if each.type == FileType.File}
        if outside := next((name for name in names if {"", ".", ".."} & set(name.split("/"))), None):
            raise OSError(f"{outside!r} is no name of a file below a folder")
        return names

    def holds(self, name: str) -> bool:
        """Whether there is a file, or anything below such a folder."""
        from pyarrow.fs import FileType

        return self.system.get_file_info(f"{self.base}/{name}").type != FileType.NotFound

    def read(self, name: str) -> bytes | None:
        """A small file; None: there is none."""
        try:
            with self.system.open_input_stream(f"{self.base}/{name}") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        with self.system.open_output_stream(f"{self.base}/{name}") as file:
            file.write(content)

    def send(self, file: Path, name: str) -> None:
        """Copy a file that doesn't change meanwhile."""
        from pyarrow.fs import LocalFileSystem, copy_files

        copy_files(str(file), f"{self.base}/{name}", source_filesystem=LocalFileSystem(), destination_filesystem=self.system)

    def fetch(self, name: str, to: Path) -> None:
        """Copy a file to here, whole or not at all."""
        from pyarrow.fs import LocalFileSystem, copy_files

        put_by_path(to, lambda temporary: copy_files(f"{self.base}/{name}", str(temporary), source_filesystem=self.system,
                                                     destination_filesystem=LocalFileSystem()))  # fmt: skip

    def delete(self, name: str) -> None:
        self.system.delete_file(f"{self.base}/{name}")


def opened(setting: str, text: str) -> Store:
    """The folder at an address, whose bucket has answered.

    Raises:
        ConfigError: the address isn't supported, or nothing answers, or there is no such bucket, or it isn't for this user; in
            `ANSWER_SECONDS`.
    """
    address = parsed(setting, text)

    def begin() -> Store:
        from pyarrow.fs import FileSystem, FileType

        system, base = FileSystem.from_uri(str(address))
        bucket = base.partition("/")[0]
        if system.get_file_info(bucket).type == FileType.NotFound:  # else what is below it would only seem to be missing
            raise FileNotFoundError(f"there is no bucket {bucket}")
        return Store(address, system, base.rstrip("/"))

    return answered(setting, text, begin)


def answered(setting: str, text: str, ask: Callable[[], T]) -> T:
    """What `ask` gives; in a thread, as the clients of object storage try again for minutes, and nothing stops them.

    Raises:
        ConfigError: it failed, or gave nothing in `ANSWER_SECONDS`.
    """
    found: list[T] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            found.append(ask())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if found:
        return found[0]
    why = first_line(failed[0]) if failed else f"it didn't answer in {ANSWER_SECONDS} s"
    raise ConfigError(f"{setting}={shown(text)}: can't be used ({why}); correct the bucket, the options behind the ?, or the credentials "
                      "of the environment, or give a folder")  # fmt: skip
