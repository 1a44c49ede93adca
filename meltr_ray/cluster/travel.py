"""The code of a run, sent along to the machines of a cluster: none of them needs a copy of this project or of the workload."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from meltr_ray.config.workload_file import SHIPPED, TRAVELLED, parted
from meltr_ray.errors import check
from meltr_ray.workload import Workload

PACKAGES = ("meltr_ray", "tune_spaces", "analysis", "workloads")
"""Ours, as they stand in a clone or in an installed wheel."""
LARGEST = 64 * 2**20
"""Bytes that a user's code may have."""
left_out = shutil.ignore_patterns("__pycache__", "*.pyc", "*.ipynb", ".*")


@contextmanager
def packed(workload: Workload) -> Iterator[list[str]]:
    """Folders for Ray's `py_modules`, which the driver may take away as soon as it has joined.

    Raises:
        ConfigError: what lies beside the workload is too much to be sent.
    """
    with TemporaryDirectory(prefix="travels-") as scratch:
        folder = Path(scratch)
        for name in PACKAGES:
            shutil.copytree(package_folder(name), folder / name, ignore=left_out)
        place, _ = parted(SHIPPED.get(workload.source, workload.source))
        if place.endswith(".py"):
            send(workload, beside(Path(place)), folder / TRAVELLED)
        elif (top := own_package(workload)) is not None:
            send(workload, [package_folder(top)], folder)
        yield [str(each) for each in sorted(folder.iterdir())]


def package_folder(name: str) -> Path:
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


def own_package(workload: Workload) -> str | None:
    """Name of the user's package that has the workload; None where it is ours, or installed as machines have it installed, too."""
    place, _ = parted(SHIPPED.get(workload.source, workload.source))
    top = place.partition(".")[0]
    if place.endswith(".py") or top in PACKAGES or "." not in place:
        return None
    installed = {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
    return None if installed & set(package_folder(top).parents) else top


def beside(file: Path) -> list[Path]:
    """What a workload may import by its name: modules and packages of its folder, and itself."""
    return [path for path in sorted(file.parent.iterdir()) if path.suffix == ".py" or (path / "__init__.py").is_file()]


def send(workload: Workload, paths: list[Path], to: Path) -> None:
    """Copy them, unless that is more than code."""
    size = sum(each.stat().st_size for each in files(paths))
    check(size <= LARGEST, "workload", workload.source,
          f"modules and packages beside it have {size >> 20} MiB, and {LARGEST >> 20} travel at most; move it to a folder of its own")  # fmt: skip
    to.mkdir(exist_ok=True)
    for path in paths:
        if path.is_dir():
            shutil.copytree(path, to / path.name, ignore=left_out)
        else:
            shutil.copy(path, to / path.name)


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """All of them that would be copied."""
    for path in paths:
        if path.is_dir():
            inside = sorted(path.iterdir())
            yield from files(each for each in inside if each.name not in left_out(str(path), [one.name for one in inside]))
        elif path.is_file():
            yield path
