"""A new data folder: filled under another name, gone on with after an interruption, and never in another's way."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meltr_ray.errors import check
from meltr_ray.storage import put
from meltr_ray.video.clips import schema
from meltr_ray.video.clips.disk import DISK_FULL, disk_full_is_one_line


@contextmanager
def new_folder(folder: Path, source: Any = None) -> Iterator[Path]:
    """The folder `.<name>.partial` beside `folder`, which takes its name when all went well.

    Args:
        source: what the content follows from, as JSON. Where an interrupted import of an equal source left a partial folder, that
            one is gone on with; any other is deleted. None: one that fails leaves nothing.

    Raises:
        ConfigError: `folder` is in use; another process writes it; the disk is full.
    """
    folder = Path(folder)
    check(
        not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
        "data.folder",
        folder,
        "is in use; choose another folder or delete it",
    )
    partial = folder.with_name(f".{folder.name}.partial")
    with disk_full_is_one_line(folder, partial if source is not None else None):
        try:
            partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            check(error.errno in DISK_FULL, "data.folder", folder, f"can't be made ({error.strerror.lower()}); choose another folder")
            raise
        with _locked(partial, folder):
            _start_or_go_on(partial, source)
            try:
                yield partial
                _finish(partial, folder)
            except BaseException:
                if source is None:
                    shutil.rmtree(partial, ignore_errors=True)
                raise


def _start_or_go_on(partial: Path, source: Any) -> None:
    """Empty the partial folder unless it was begun for the same source."""
    begun, mark = partial / ".source.json", json.dumps([schema.VERSION, source], sort_keys=True)
    if source is not None and begun.is_file() and begun.read_text(encoding="utf-8") == mark:
        return
    for path in partial.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    put(begun, mark)


def _finish(partial: Path, folder: Path) -> None:
    """Drop what is only of use for going on, and give the folder its name."""
    for path in partial.glob(".*"):
        if path.name != ".lock":
            path.unlink()
    try:
        os.rename(partial, folder)
    except OSError:
        check(False, "data.folder", folder, f"was made by another process meanwhile; delete {partial} and use that one")
    (folder / ".lock").unlink()  # not before: another process could take it and begin in this folder


@contextmanager
def _locked(partial: Path, folder: Path) -> Iterator[None]:
    """Hold the partial folder's lock, which the system sets free when its process ends, however that happens."""
    with open(partial / ".lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(lock.fileno()), os.stat(partial / ".lock"))
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            same = False  # held by another process, or just finished by it
        check(same, "data.folder", folder, "is being prepared by another process; wait for it and start again")
        yield
