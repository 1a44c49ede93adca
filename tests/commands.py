"""Run the project's commands as a user does: in a process of their own, with real signals.

`start` starts Python anew; `run` takes a fork that has imported the libraries already.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests import forks
from tests.forks import ENVIRONMENT, ROOT

QUICK = ["backbone.hidden_size=16", "backbone.num_heads=2", "backbone.feed_forward_size=32", "backbone.text_layers=1",
         "train.batch_size=8", "combiner.embedding_size=16", "combiner.loss_encoder_size=8",
         "combiner.feed_forward_size=16"]  # fmt: skip


def start(command: str, *settings: str, cwd: Path) -> subprocess.Popen:
    """Start `workloads/<command>.py`, its output in `<cwd>/<command>.out`, as the leader of its own process group."""
    with open(cwd / f"{command}.out", "ab") as out:
        return subprocess.Popen([sys.executable, str(ROOT / "workloads" / f"{command}.py"), *settings], cwd=cwd, stdout=out,
                                stderr=out, env=os.environ | ENVIRONMENT, start_new_session=True)  # fmt: skip


def run(command: str, *settings: str, cwd: Path, timeout: float = 500) -> tuple[int, str]:
    """(exit code, all output) of a command that ends by itself."""
    output = cwd / f"{command}.out"
    code = forks.run(ROOT / "workloads" / f"{command}.py", list(settings), cwd, output, timeout, kill_family)
    return code, output.read_text()


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL the process and whatever it started, so that the next start finds a quiet machine."""
    kill_family(process.pid)
    process.wait()


def kill_family(pid: int) -> None:
    try:
        family = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        _kill(member.pid)
    _kill(pid)


def workers_of(process: subprocess.Popen) -> list[int]:
    """Process numbers of the Ray Train workers under a command."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = []
    for member in family:
        try:
            if "RayTrainWorker" in " ".join(member.cmdline()):
                found.append(member.pid)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def listening(process: subprocess.Popen) -> set[tuple[str, str, int]]:
    """(process, address, port) of all that listens under a command now."""
    found = set()
    try:
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            name, places = member.name(), member.net_connections("tcp")
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
        found |= {(name, place.laddr.ip, place.laddr.port) for place in places if place.status == psutil.CONN_LISTEN}
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
