"""Extracted features in the files that others write: one array (frames, D) a video, by its id.

    *.npz           `video_id` (N,) and `feat` (N, frames, D) or any other array of ids beside one of numbers; or one array an id
    *.npy           one id a file, named by it
    *.h5, *.hdf5    one dataset an id, or as npz
    *.pkl, *.pickle a dictionary id -> array (UniVL), read by `data.pickles`: no code is run

Files that hold one array each, all of one name such as `features`, are named by their id, as .npy are. Integers are read as floats.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from meltr_ray.errors import ConfigError, check
from meltr_ray.video.datasets.array_headers import check_npz, load_npy
from meltr_ray.video.datasets.hdf5_inside import datasets_of
from meltr_ray.video.datasets.pickles import read_pickle

PICKLES, HDF5 = (".pkl", ".pickle", ".p"), (".h5", ".hdf5", ".hdf")
ENDINGS = (".npz", ".npy", *HDF5, *PICKLES)
LARGEST = float(np.finfo(np.float16).max)
VIDEO_ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".gif", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp", ".ogv")


@dataclass
class FeatureFiles:
    """Features by id, read when they are asked for."""

    files: list[Path] = field(default_factory=list)
    """Files that hold features of many ids."""
    single: list[Path] = field(default_factory=list)
    """Files of one id each, named by it."""
    ignored: list[Path] = field(default_factory=list)
    """Files of these endings that hold anything else."""
    found: dict[str, tuple[Path, Callable[[], Any]]] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        return key in self.found

    def __getitem__(self, key: str) -> np.ndarray:
        """(frames, D) of any float type; a vector (D,) is one frame. Raises ConfigError where the file is damaged."""
        path, read = self.found[key]
        values = np.asarray(_guarded(path, read))
        values = values.astype(np.float32) if values.dtype.kind in "iu" else values
        values = values[None] if values.ndim == 1 else values
        values = values[0] if values.ndim == 3 and len(values) == 1 else values
        check(
            is_features(values), "source", path, f"{key} is {values.dtype} of shape {values.shape}, not numbers (frames, D); mend the file"
        )
        return values


def find_features(paths: Iterable[Path], source: Path = Path()) -> FeatureFiles:
    """What feature files there are among `paths`, below `source`. Raises ConfigError for a damaged one, and for an id in two files."""
    result, opened, alone = FeatureFiles(), {}, {}
    for path in paths:
        suffix = path.suffix.lower()
        if suffix not in ENDINGS:
            continue
        if suffix == ".npy":
            opened[path] = {path.stem: lambda path=path: load_npy(path)}
            continue
        arrays = _guarded(path, lambda: _open(path, suffix))
        opened[path] = _by_id(path, arrays)
        if len(arrays) == 1 and opened[path]:  # opened anew when it is read: there may be more such files than can be open
            alone[path] = next(iter(arrays))
            opened[path] = {alone[path]: lambda path=path, suffix=suffix: np.asarray(next(iter(_open(path, suffix).values())))}
    shared = {name for name, files in Counter(alone.values()).items() if files > 1}
    for path, arrays in opened.items():
        if alone.get(path) in shared:
            arrays = {path.stem: arrays[alone[path]]}
        single = path.suffix.lower() == ".npy" or alone.get(path) in shared
        (result.ignored if not arrays else result.single if single else result.files).append(path)
        for key, read in arrays.items():
            stem = key[: -len(Path(key).suffix)] if Path(key).suffix.lower() in VIDEO_ENDINGS else key
            other = result.found.get(stem, (None,))[0]
            check(other != path, "source", path, f"holds features of {stem} twice; leave one")
            check(other is None, "source", source, _told_apart(source, other or path, path, stem))
            result.found[stem] = path, read
    return result


def _told_apart(source: Path, first: Path, second: Path, stem: str) -> str:
    """Of two files that hold features of one id: both by their paths from the source, and how one is chosen."""
    places = [path.relative_to(source) if path.is_relative_to(source) else path for path in (first, second)]
    folder = next((parent for parent in (place.parent for place in places) if parent != Path()), None)
    apart = folder is not None and places[0].parent != places[1].parent
    mend = f"choose one kind with data.features={folder}, or leave" if apart else "leave"
    return f"{places[0]} and {places[1]} both hold features of {stem}; {mend} one of them in the folder"


def problem(values: np.ndarray) -> str:
    """Why features (frames, D) can't be stored in float16; empty where they can."""
    if not values.size:
        return "features of no frame"
    if not np.isfinite(values).all():
        return "features with NaN or infinity"
    return f"features beyond float16's {LARGEST:.0f}" if np.abs(values).max() > LARGEST else ""


def is_features(values: np.ndarray) -> bool:
    return values.ndim == 2 and np.issubdtype(values.dtype, np.floating)


def _open(path: Path, suffix: str) -> Mapping[str, Any]:
    """Name -> array, or what gives it when indexed."""
    if suffix == ".npz":
        check_npz(path)
        return np.load(path, allow_pickle=False)
    if suffix in PICKLES:
        content = read_pickle(path)
        return content if isinstance(content, dict) and all(isinstance(key, str) for key in content) else {}
    try:
        import h5py
    except ImportError:
        raise ConfigError(f"source={path}: is HDF5, which needs h5py; pip install h5py") from None
    datasets = datasets_of(path)
    file = h5py.File(path, "r")
    leaves = [name.rsplit("/", 1)[-1] for name in datasets]
    by_leaf = len(set(leaves)) == len(leaves)  # otherwise a group an id, with datasets of equal names
    names = leaves if by_leaf else [name.split("/", 1)[0] for name in datasets]
    check(len(set(names)) == len(names), "source", path, "has several arrays in a group; leave one a video")
    return {name: file[place] for name, place in zip(names, datasets)}


def _by_id(path: Path, arrays: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """Id -> what reads its array; empty where the file holds no features."""
    names = list(arrays)
    if 2 <= len(names) <= 8:  # few enough to be columns, not ids
        columns = {name: _guarded(path, lambda: np.asarray(arrays[name])) for name in names}
        ids = [name for name in names if columns[name].ndim == 1 and columns[name].dtype.kind in "USO"]
        if ids:
            keys = [key.decode() if isinstance(key, bytes) else str(key) for key in columns[ids[0]].tolist()]
            check(len(set(keys)) == len(keys), "source", path, f"has one of its ids ({ids[0]}) twice; leave one row an id")
            rows = [column for column in columns.values() if column.ndim in (2, 3) and len(column) == len(keys)]
            floats, integers = ([column for column in rows if column.dtype.kind in kinds] for kinds in ("f", "iu"))
            values = floats or integers
            chosen = columns.get("feat", values[0] if len(values) == 1 else None)
            whole = chosen is not None and len(chosen) == len(keys) and chosen.ndim in (2, 3)
            check(
                whole,
                "source",
                path,
                f"has ids ({ids[0]}) and no one array of as many features; leave video_id (N,) and feat (N, frames, D)",
            )
            return {key: lambda at=at: chosen[at] for at, key in enumerate(keys)}
    first = np.asarray(_guarded(path, lambda: arrays[names[0]])) if names else np.zeros(0)
    # one row of integers may be labels or lengths, and more axes of them visual tokens
    numbers = first.ndim in (1, 2, 3) if first.dtype.kind == "f" else first.ndim == 2 and first.dtype.kind in "iu"
    return {name: lambda name=name: arrays[name] for name in names} if numbers else {}


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns; what a damaged file raises ends as a ConfigError of one line."""
    try:
        return read()
    except ConfigError:
        raise
    except (KeyError, OSError, ValueError, EOFError, RuntimeError, MemoryError, OverflowError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):  # numpy's words, of a file that is whole
            raise ConfigError(f"source={path}: holds an array of Python objects, which may run code; save numbers and text") from None
        raise ConfigError(f"source={path}: is no whole {path.suffix} file of arrays; fetch the file again") from None
