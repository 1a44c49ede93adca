"""Joining a cluster: where none answers, starting one on a busy machine, and machines that lack what the driver has."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from meltr_ray.cluster.connection import check_answers, connected
from meltr_ray.cluster.machines import check_machines
from meltr_ray.config import Config
from meltr_ray.errors import ConfigError
from tests.ends import machines
from tests.engine_toy import toy_config
from tests.forks import ENVIRONMENT, ROOT


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"], ids=["silence", "http", "ssh"])
def test_something_else_that_listens_is_no_cluster(greeting):
    """At once, or in the seconds in which it could have greeted."""
    server, held = socket.create_server(("0.0.0.0", 0)), []

    def answer() -> None:
        held.append(server.accept()[0])
        held[0].sendall(greeting)

    threading.Thread(target=answer, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"^cluster=localhost:\d+: what answers at .* is no Ray cluster; give the host:port"):
        check_answers(f"localhost:{server.getsockname()[1]}")
    assert time.monotonic() - began < 20
    server.close()


STARTED = """
import psutil
from meltr_ray.cluster import connection

if __name__ == "__main__":
    try:
        connection.start()
        print("started")
    except Exception as error:
        print(type(error).__name__, error, len(psutil.Process().children()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("halted, said", [(1, "started\n"), (2, "ConfigError cluster=local: Ray didn't start, tried twice (")])
def test_a_start_that_takes_too_long_is_tried_again_and_then_one_line(halted, said, tmp_path):
    """On a machine so busy that a raylet doesn't come to run: SIGSTOP; no process of such a start is left."""
    (tmp_path / "start.py").write_text(STARTED)
    process = subprocess.Popen([sys.executable, "start.py"], cwd=tmp_path, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    seen: set[int] = set()
    while process.poll() is None and len(seen) < halted:
        for child in psutil.Process(process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if child.name() == "raylet" and child.pid not in seen:
                    child.suspend()
                    seen.add(child.pid)
        time.sleep(0.01)
    output, _ = process.communicate(timeout=300)
    assert len(seen) == halted and output.startswith(said) and output.count("\n") == 1, output
    assert halted == 1 or output.endswith("join a cluster 0\n")
    assert not [pid for pid in seen if psutil.pid_exists(pid)]


JOINED = """
import ray
from meltr_ray.cluster.connection import check_answers, connected
from tests.engine_toy import toy_config

@ray.remote
class Actor:
    def say(self):
        return "alive"

if __name__ == "__main__":
    config = toy_config(0)
    config.cluster = "auto"
    check_answers("auto")
    with connected(config):
        print(ray.get(Actor.remote().say.remote()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_cluster_that_was_found_is_shown_the_token_only_if_it_asks(mode, tmp_path, monkeypatch):
    """By a driver whose user has a token."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("a" * 64)
    (tmp_path / "joined.py").write_text(JOINED)
    monkeypatch.setenv("HOME", str(tmp_path))
    own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")} | ENVIRONMENT
    with socket.create_server(("", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1", f"--port={address.split(':')[1]}"]
    head = subprocess.Popen(start, env=own | {"RAY_AUTH_MODE": mode}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert any("Ray runtime started" in line for line in head.stdout)
        done = subprocess.run([sys.executable, "joined.py"], cwd=tmp_path, env=own | {"RAY_ADDRESS": address}, capture_output=True, text=True,
                              timeout=200)  # fmt: skip
        assert done.stdout == "alive\n", done.stderr
    finally:
        head.terminate()
        head.wait(60)


HIDDEN = "mount -t tmpfs none {hidden} && exec {command}"
"""In a mount namespace of its own: where the driver has files, this machine has an empty folder."""


@pytest.mark.slow
@pytest.mark.skipif(subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0, reason="may make no mount namespace")
def test_a_machine_that_lacks_something_is_named_before_the_first_trial(tmp_path):
    """Two raylets, of which the second sees an empty folder in place of one of the driver's, or has another version of torch."""
    data, other = tmp_path / "data", tmp_path / "other"
    (other / "torch-1.0.dist-info").mkdir(parents=True)
    (other / "torch-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    data.mkdir()
    (data / "settings.json").write_text("{}")
    cases = [
        (
            tmp_path / "outputs",
            {},
            r"^output=.*: machine .* doesn't see what was written in .*outputs/runs/one here; give a folder that all",
        ),
        (data, {}, r"^engine.deepspeed=.*settings.json: isn't there on machine .*; mount or copy it there, under the same path"),
        (other, {"PYTHONPATH": f"{other}:{ROOT}"}, r"^cluster=.*: machine .* has torch 1.0 and this one .*; install .* there"),
    ]
    for hidden, environment, line in cases:
        (tmp_path / "outputs/runs/one").mkdir(parents=True, exist_ok=True)
        with machines(1) as cluster:
            node = second(cluster.address, tmp_path / "empty" if hidden == other else hidden, environment)
            config = toy_config(0)
            config.cluster, config.output, config.engine.deepspeed = cluster.address, str(tmp_path / "outputs"), str(data / "settings.json")
            try:
                with pytest.raises(ConfigError, match=line):
                    check_joined(config, tmp_path / "outputs/runs/one")
            finally:
                node.kill()
                node.wait()


def second(address: str, hidden: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Another machine of the cluster, once it has joined."""
    hidden.mkdir(exist_ok=True)
    command = f"{sys.executable} -m ray.scripts.scripts start --address {address} --num-cpus 1 --block"
    return subprocess.Popen(["unshare", "-m", "--kill-child", "sh", "-c", HIDDEN.format(hidden=hidden, command=command)],
                            env=os.environ | ENVIRONMENT | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


def check_joined(config: Config, folder: Path) -> None:
    import ray

    with connected(config):
        deadline = time.monotonic() + 120
        while len([node for node in ray.nodes() if node["Alive"]]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        check_machines(config, folder)
