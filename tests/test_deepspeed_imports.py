"""What is left out while DeepSpeed is imported is there afterwards."""

from __future__ import annotations

import importlib
import sys

import pytest

from meltr_ray.training.deepspeed_imports import without


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
    (tmp_path / "heavy_tracker.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "heavy_tracker"
    sys.modules.pop("heavy_tracker", None)


def test_a_package_is_not_found_within_and_is_found_after(package):
    with pytest.raises(RuntimeError, match="stopped within"), without(package):
        with pytest.raises(ImportError):
            importlib.import_module(package)
        raise RuntimeError("stopped within")
    assert importlib.import_module(package).VALUE == 3


def test_a_package_that_is_imported_already_stays(package):
    loaded = importlib.import_module(package)
    with without(package):
        assert importlib.import_module(package) is loaded
    assert sys.modules[package] is loaded


def test_an_engine_brings_no_tracker_with_it():
    import meltr_ray.training.engine  # noqa: F401

    assert not hasattr(sys.modules["deepspeed.autotuning.autotuner"], "mlflow")
