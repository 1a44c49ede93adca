"""What is inside an HDF5 file, and nothing else: datasets may point to other files, or claim any size.

Looked at in a process of its own, as the library believes what a file says of itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from meltr_ray.errors import ConfigError, check
from meltr_ray.video.datasets.array_headers import check_size
from meltr_ray.video.datasets.confined import NotRead, shared

SECONDS = 120.0
MOST_GROWN = 1100
"""Times that a compressed array is as large as its file at most: the end of deflate's."""


def datasets_of(path: Path) -> list[str]:
    """Names of the datasets with a shape. Raises ConfigError where one of them lies in another file, or claims what isn't there."""
    try:
        found = shared().call(f"{__name__}:looked_at", os.fspath(path.absolute()), seconds=SECONDS)
    except NotRead as error:
        raise ConfigError(f"source={path}: is no whole {path.suffix} file of arrays ({error}); fetch the file again") from None
    size = path.stat().st_size
    for name, (elsewhere, claimed) in found.items():
        check(
            not elsewhere, "source", path, f"{name} is {elsewhere}, which may show other files of this machine; copy the data into the file"
        )
        check(
            claimed <= MOST_GROWN * size,
            "source",
            path,
            f"{name} claims {claimed / 2**30:.1f} GiB and the file has {size} bytes; fetch the file again",
        )
        check_size(path, name, claimed)
    return [name for name, (_, claimed) in found.items() if claimed >= 0]


def looked_at(path: str) -> dict[str, tuple[str, int]]:
    """Name of a dataset or a link -> (what it is that lies elsewhere, or nothing; bytes that it claims, -1 where it has no shape)."""
    import h5py

    found: dict[str, tuple[str, int]] = {}
    with h5py.File(path, "r") as file:
        waiting: list[tuple[str, h5py.Group]] = [("", file)]
        seen = set()
        while waiting:
            place, group = waiting.pop()
            if group.id.__hash__() in seen:  # a group that holds itself
                continue
            seen.add(group.id.__hash__())
            for key in group:
                name = f"{place}{key}"
                if isinstance(group.get(key, getlink=True), h5py.ExternalLink):
                    found[name] = ("a link to another file", 0)
                    continue
                value = group.get(key)
                if isinstance(value, h5py.Group):
                    waiting.append((f"{name}/", value))
                elif isinstance(value, h5py.Dataset):
                    found[name] = (_elsewhere(value), value.size * value.dtype.itemsize if value.shape else -1)
    return found


def _elsewhere(dataset: object) -> str:
    if dataset.external:
        return "stored in another file"
    return "made of other files" if dataset.is_virtual else ""
