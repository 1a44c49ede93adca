"""The code travels: machines of a cluster need neither a checkout of ours nor the user's file, and where they have one it is the driver's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from meltr_ray.cluster import travel
from meltr_ray.cluster.machines import asker, compare
from meltr_ray.config.workload_file import TRAVELLED, find, make
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from tests.ends import EVERY, SETTINGS, machines
from tests.engine_toy import toy_config
from tests.forks import ENVIRONMENT, ROOT
from tests.test_wheel import wheel  # noqa: F401 - a fixture

OWN = """
import helping
from workloads.examples.primes import Primes

class Own(Primes):
    factor: float = helping.FACTOR
"""


@pytest.fixture
def mine(tmp_path) -> Path:
    """A user's folder: a workload, a module and a package that it imports, and what isn't code."""
    folder = tmp_path / "mine"
    (folder / "package").mkdir(parents=True)
    (folder / "own.py").write_text(OWN)
    (folder / "helping.py").write_text("from package.inner import FACTOR\n")
    (folder / "package/__init__.py").touch()
    (folder / "package/inner.py").write_text("FACTOR = 2.0\n")
    (folder / "videos").mkdir()
    (folder / "videos/one.mp4").write_bytes(b"0" * 100)
    return folder


def test_our_code_and_what_lies_beside_the_workload_travel(mine):
    with travel.packed(make(f"{mine}/own.py:Own")) as folders:
        names = {Path(each).name: sorted(str(path.relative_to(each)) for path in Path(each).rglob("*.*")) for each in folders}
        assert set(names) == {*travel.PACKAGES, TRAVELLED}
        assert names[TRAVELLED] == ["helping.py", "own.py", "package/__init__.py", "package/inner.py"]
        assert {"cluster/travel.py", "py.typed"} <= set(names["meltr_ray"]) and "conf/config.yaml" in names["workloads"]
        assert not [path for each in names.values() for path in each if path.endswith((".pyc", ".ipynb"))]
    assert not Path(folders[0]).exists()


def test_a_workload_is_found_where_its_files_were_sent(mine, tmp_path, monkeypatch):
    """As on a machine that lacks the user's folder."""
    gone = tmp_path / "elsewhere/own.py"
    with pytest.raises(ConfigError, match="no such file"):
        find(f"{gone}:Own")
    mine.rename(tmp_path / TRAVELLED)
    monkeypatch.syspath_prepend(tmp_path)
    assert make(f"{gone}:Own").factor == 2.0


def test_the_package_of_a_workload_travels_whole(mine, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (mine / "__init__.py").touch()
    (mine / "own.py").write_text(OWN.replace("import helping", "from mine.package import inner as helping"))
    workload = make("mine.own:Own")
    assert travel.own_package(workload) == "mine" and travel.own_package(make("video")) is None
    with travel.packed(workload) as folders:
        assert "mine" in [Path(each).name for each in folders] and TRAVELLED not in [Path(each).name for each in folders]


def test_what_is_no_file_stays_and_what_is_more_than_code_does(mine):
    workload = make(f"{mine}/own.py:Own")
    (mine / "gone.py").symlink_to(mine / "nowhere.py")
    with travel.packed(workload) as folders:
        assert TRAVELLED in [Path(each).name for each in folders]
    with open(mine / "package/table.bin", "wb") as file:
        file.truncate(65 * 2**20)
    with travel.packed(workload) as folders:
        assert TRAVELLED not in [Path(each).name for each in folders]


def test_another_text_of_the_code_on_a_machine_is_one_line(mine, monkeypatch):
    monkeypatch.syspath_prepend(mine)
    (mine / ".seen").write_text(".seen")
    config, own = toy_config(0), [str(path) for path in travel.texts(make(f"{mine}/own.py:Own"))]
    asked = (str(mine / ".seen"), {}, own, ["package"], TRAVELLED, ["torch"])
    here = asker()(*asked)

    def refused() -> str:
        with pytest.raises(ConfigError, match="^cluster=local: machine a has ") as line:
            compare("a", asker()(*asked), here, config, mine)
        return str(line.value)

    compare("a", asker()(*asked), here, config, mine)
    (mine / "helping.py").write_text("FACTOR = 2.0\n")
    assert f"another text of own.py, or of what lies beside it, at {mine}; take it away there" in refused()
    (mine / "own.py").unlink()
    assert "no own.py, and what lies beside it is more than the 64 MiB that are sent; copy it there" in refused()
    (mine / "package/inner.py").write_text("FACTOR = 3.0\n")
    assert f"another text of package, or of what lies beside it, at {mine}/package; take it away there" in refused()


def hiding(folders: list[Path]) -> list[str]:
    """The beginning of a command that sees empty folders in their places."""
    mounts = " && ".join(f"mount -t tmpfs none {folder}" for folder in folders)
    return ["unshare", "-m", "--kill-child", "sh", "-c", f'{mounts} && exec "$@"', "sh"]


def checkouts() -> list[Path]:
    """Folders of our packages that this Python could import: of this checkout, and of an installation of another."""
    program = (
        f"import importlib.util as u; print(*(u.find_spec(n).submodule_search_locations[0] for n in {travel.PACKAGES} if u.find_spec(n)))"
    )
    without = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    installed = subprocess.run([sys.executable, "-c", program], cwd="/", env=without, capture_output=True, text=True, check=True).stdout
    return list(dict.fromkeys(Path(each) for each in [*(ROOT / name for name in travel.PACKAGES), *installed.split()]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0, reason="may make no mount namespace")
@pytest.mark.parametrize("of", ["a clone", "a wheel"])
def test_a_machine_without_our_code_and_the_users_runs_the_trials(of, mine, tmp_path, request):
    """All of them: the other machine, on which the command runs, has no CPU to give. It has the dependencies, and what was sent to it."""
    environment, command = os.environ | ENVIRONMENT, [sys.executable, str(ROOT / "workloads/sweep.py")]
    if of == "a wheel":
        archive: zipfile.ZipFile = request.getfixturevalue("wheel")
        archive.extractall(tmp_path / "installed")
        environment["PYTHONPATH"] = str(tmp_path / "installed")
        command = [sys.executable, "-c", "import sys; sys.argv[0] = 'meltr-sweep'; from workloads.console import sweep; sweep()"]
    with machines(0) as cluster:
        sent = Path(cluster.head_node.get_runtime_env_dir_path())
        sent.mkdir(exist_ok=True)
        alone = hiding([*checkouts(), mine, sent, *(tmp_path / "installed" / name for name in travel.PACKAGES if of == "a wheel")])
        for module, folder in (("meltr_ray.config", ROOT), ("own", mine)):
            tried = subprocess.run(
                [*alone, sys.executable, "-c", f"import {module}"], env=environment, cwd=folder, capture_output=True, text=True
            )
            assert f"ModuleNotFoundError: No module named '{module}'" in tried.stderr
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", cluster.address, "--num-cpus", "2", "--block"]
        with open(tmp_path / "second.out", "wb") as out:
            second = subprocess.Popen([*alone, *start], env=environment, cwd="/", stdout=out, stderr=out)
        try:
            deadline = time.monotonic() + 120
            while len(cluster.global_state._live_node_ids()) < 2:
                assert time.monotonic() < deadline and second.poll() is None, (tmp_path / "second.out").read_text()
                time.sleep(0.2)
            done = subprocess.run([*command, f"workload={mine}/own.py:Own", *SETTINGS, f"train.steps={EVERY}", "name=sent", f"cluster={cluster.address}"], env=environment,
                                  cwd=tmp_path, capture_output=True, text=True, timeout=900)  # fmt: skip
        finally:
            second.kill()
            second.wait()
    folder = tmp_path / "outputs/sweeps/sent"
    assert done.returncode == 0 and (folder / "report.html").exists(), done.stdout + done.stderr
    rows = [row for trial in (folder / "trials").iterdir() for row in results.read_trial(trial)]
    assert [row["step"] for row in rows if row["status"] == "finished"] == [EVERY, EVERY]
