"""A small bouncing-digits data set, made once for all tests that train."""

from __future__ import annotations

from pathlib import Path

import pytest

from meltr_ray.video.datasets.digits import make_digits
from meltr_ray.video.datasets.prepare import ensure_prepared


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digits(folder, lambda line: None, clips={"train": 128, "meta": 40, "validation": 40, "test": 40})
    ensure_prepared("digits", folder, lambda line: None)
    return folder
