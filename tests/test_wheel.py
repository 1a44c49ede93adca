"""The wheel: all that its commands read is in it, the version is one, and what isn't installed is said in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from meltr_ray import extras
from workloads import cli, console

ROOT = Path(__file__).parents[1]
PACKAGES = ("meltr_ray", "tune_spaces", "analysis", "workloads")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy, so that nothing that an earlier build left is in it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, folder / "source"], check=True, timeout=300)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_has_every_file_that_is_read(wheel):
    expected = {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*")
                if path.is_file() and path.suffix not in (".pyc", ".ipynb")}  # fmt: skip
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"meltr_ray/py.typed", "workloads/conf/config.yaml", "analysis/page/report.css", "workloads/examples/primes.py"} <= held


def test_the_wheel_says_what_it_is(wheel):
    folder = f"meltr_ray-{PROJECT['version']}.dist-info"
    assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    about = metadata.PathDistribution(zipfile.Path(wheel, f"{folder}/"))
    assert about.metadata["License-Expression"] == "Apache-2.0"
    assert [line for line in about.requires if "extra ==" not in line] == ["torch>=2.7", "numpy>=1.26"]
    commands = {point.name: point.value for point in about.entry_points}
    assert commands == {f"meltr-{name}": f"workloads.console:{name}" for name in ("sweep", "train", "evaluate", "prepare")}
    assert all(callable(getattr(console, value.partition(":")[2])) for value in commands.values())


def test_one_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {PROJECT['version']}\n" in citation and f"\n## {PROJECT['version']}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_a_missing_extra_is_one_line(monkeypatch, capsys):
    """Of the packages that this installation says it asks for, as if two were not there."""
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=2", 'ray[tune]<3,>=2; extra == "sweep"', "hydra-core; extra=='sweep'",
                                                            'torchjd; extra == "methods"', 'pytest>=8; extra == "sweep"'])  # fmt: skip
    present = metadata.distribution("pytest")

    def distribution(name):
        if name != "pytest":
            raise metadata.PackageNotFoundError(name)
        return present

    monkeypatch.setattr(metadata, "distribution", distribution)
    assert extras.lacking("methods") == ["torchjd"] and extras.lacking("none") == []
    with pytest.raises(SystemExit) as stopped:
        console.train()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: meltr-train: needs ray and hydra-core; pip install 'meltr-ray[sweep]'\n"
    with pytest.raises(ImportError, match="^meltr_ray.sweep needs ray and hydra-core; pip install 'meltr-ray.sweep.'$"):
        from meltr_ray import sweep  # noqa: F401


def test_many_missing_packages_are_counted():
    assert extras.needs("sweep", list("abcde")) == "needs a, b, c and 2 more packages; pip install 'meltr-ray[sweep]'"


def test_commands_are_named_as_they_were_started(monkeypatch):
    text = "prepare it with workloads/prepare.py; python workloads/sweep.py resume=a; sweep.py makes nothing of it; workload=train.py:Mine /x/train.py"
    assert cli.as_called(text) == text
    monkeypatch.setattr(sys, "argv", ["/env/bin/meltr-sweep", "sweep.seeds=3", "name=a b"])
    assert cli.as_called(text) == (
        "prepare it with meltr-prepare; meltr-sweep resume=a; meltr-sweep makes nothing of it; workload=train.py:Mine /x/train.py"
    )
    assert cli.Request(None, None, {}).command == "meltr-sweep sweep.seeds=3 'name=a b'"


def test_a_console_command_helps_by_its_own_name(tmp_path):
    program = "import sys; sys.argv[0] = '/env/bin/meltr-train'; from workloads.console import train; train()"
    done = subprocess.run([sys.executable, "-c", program, "--help"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0 and "\nmeltr-train train.steps=300" in done.stdout and "train.py" not in done.stdout
