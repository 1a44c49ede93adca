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
from meltr_ray.errors import ConfigError, shown
from meltr_ray.workload import Workload

PACKAGES = ("meltr_ray", "tune_spaces", "analysis", "workloads")
"""Ours, as they stand in a clone or in an installed wheel."""
LARGEST = 64 * 2**20
"""Bytes that a user's code may have."""
left_out = shutil.ignore_patterns("__pycache__", "*.pyc", "*.ipynb", ".*")


@contextmanager
def packed(workload: Workload) -> Iterator[list[str]]:
    """Folders for Ray's `py_modules`, which the driver may take away as soon as it has joined.

    A user's code that is larger than `LARGEST` stays: machines need a copy, which `check_machines` looks for.

    Raises:
        ConfigError: what lies beside the workload can't be read.
    """
    with TemporaryDirectory(prefix="travels-") as scratch:
        folder = Path(scratch)
        for name in PACKAGES:
            shutil.copytree(package_folder(name), folder / name, ignore=left_out)
        place, _ = parted(SHIPPED.get(workload.source, workload.source))
        try:
            if place.endswith(".py"):
                send(beside(Path(place)), folder / TRAVELLED)
            elif (top := own_package(workload)) is not None:
                send([package_folder(top)], folder)
        except OSError as error:
            raise ConfigError(
                f"workload={workload.source}: what lies beside it can't be sent ({shown(str(error))}); move it to a folder of its own"
            ) from None
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
    paths = [path for path in sorted(file.parent.iterdir()) if not path.name.startswith(".")]
    return [path for path in paths if (path.suffix == ".py" and path.is_file()) or (path / "__init__.py").is_file()]


def texts(workload: Workload) -> list[Path]:
    """Of a workload that is a file: that file, and the others that it may import by their names."""
    place, _ = parted(SHIPPED.get(workload.source, workload.source))
    if not place.endswith(".py"):
        return []
    return [Path(place), *(path for path in files(beside(Path(place))) if path.suffix == ".py" and path != Path(place))]


def send(paths: list[Path], to: Path) -> None:
    """Copy them, unless that is more than code."""
    if sum(each.stat().st_size for each in files(paths)) > LARGEST:
        return
    to.mkdir(exist_ok=True)
    for path in paths:
        if path.is_dir():
            shutil.copytree(path, to / path.name, ignore=left_out, ignore_dangling_symlinks=True)
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
