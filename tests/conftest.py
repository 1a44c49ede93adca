"""Where tests run, and a small bouncing-digits data set, made once for all that train."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # of torch, numpy and what they start: there are as many test processes as cores

import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402

from meltr_ray.video.datasets.digits import make_digits  # noqa: E402
from meltr_ray.video.datasets.prepare import ensure_prepared  # noqa: E402


@pytest.hookimpl(wrapper=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """A process takes a file at a time, as fixtures are made for each; files that start Ray are one group, and the first."""
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.name))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group").args != ("ray",))
    return (yield)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    """One folder for all test processes, so no test changes it."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = root / "digits"
    with FileLock(root / "digits.lock"):
        if not folder.exists():
            make_digits(folder, lambda line: None, clips={"train": 128, "meta": 40, "validation": 40, "test": 40})
        ensure_prepared("digits", folder, lambda line: None)
    return folder
