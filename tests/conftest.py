"""Where tests run, and a small bouncing-digits data set, made once for all that train."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # of torch, numpy and what they start: there are as many test processes as cores

import pytest
from filelock import FileLock

from meltr_ray.video.datasets.digits import make_digits
from meltr_ray.video.datasets.prepare import ensure_prepared

LONGEST = ("test_sweep.py", "test_engine.py", "test_backbones.py", "test_resume.py", "test_import.py", "test_tuning_engine.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a test process takes a file at a time, and short ones fill the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


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


@pytest.fixture(autouse=True)
def forgotten(tmp_path_factory):
    """Modules that a test has written are of that test alone, and so is where it looked for them."""
    path, modules, written = list(sys.path), set(sys.modules), str(tmp_path_factory.getbasetemp().parent)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(written):
            del sys.modules[name]
