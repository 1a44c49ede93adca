"""A small sweep of two trials that is ended in the middle, and what must hold once it was gone on with."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil
import pytest
from safetensors.torch import load_file

from meltr_ray.results import table as results
from meltr_ray.training import checkpoint
from tests.commands import kill_all
from tests.forks import ENVIRONMENT, ROOT

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

STEPS, EVERY = 400, 80
PACED = """
import os, time
from workloads.examples.primes import Primes

class Paced(Primes):
    \"\"\"Steps of 25 ms or more; each training forward leaves a byte in a file of its process.\"\"\"
    forwards: str = "forwards"
    \"\"\"Folder of those files.\"\"\"

    def module(self):
        module = super().module()
        module.register_forward_pre_hook(self.paced)
        return module

    def paced(self, module, inputs):
        if module.training:
            time.sleep(0.025)
            with open(f"{self.forwards}/{os.getpid()}", "ab") as file:
                file.write(b".")
"""
SETTINGS = ["workload.width=4", "train.batch_size=8", f"train.evaluate_every={EVERY}",
            "experiment=screening", "sweep.learning_rates=[]", "losses.set=[prime,digit]", "sweep.seeds=1", "sweep.confirm=[]",
            "sweep.progress_every=1"]  # fmt: skip


@dataclass
class Ended:
    """The sweep `<root>/outputs/sweeps/paced`, as often as it is started."""

    root: Path
    settings: tuple[str, ...] = ()
    checkpoint_every: int = 0
    last: int = STEPS
    """Step with which a trial ends."""
    process: subprocess.Popen | None = None
    """The driver, where it was started by this process."""
    drivers: tuple[int, ...] = ()

    @classmethod
    def whole(cls, root: Path) -> Ended:
        """One that nothing ends before its end."""
        sweep = cls(root)
        sweep.start()
        sweep.finish()
        return sweep

    @property
    def folder(self) -> Path:
        return self.root / "outputs/sweeps/paced"

    @property
    def said(self) -> str:
        return (self.root / "sweep.out").read_text()

    def prepared(self) -> list[str]:
        """The settings of a new sweep, whose workload is written."""
        (self.root / "forwards").mkdir(parents=True)
        (self.root / "paced.py").write_text(PACED)
        return [f"workload={self.root}/paced.py:Paced", f"workload.forwards={self.root}/forwards", f"train.steps={self.last}", *SETTINGS, *self.settings,
                f"train.checkpoint_every={self.checkpoint_every}"]  # fmt: skip

    def start(self, *more: str) -> None:
        """Or go on with it."""
        about = self.about()
        with open(self.root / "sweep.out", "wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "workloads/sweep.py"), *about, *more],
                cwd=self.root, stdout=out, stderr=out, env=os.environ | ENVIRONMENT, start_new_session=True)  # fmt: skip
        self.drivers += (self.process.pid,)

    def about(self) -> list[str]:
        """What a command line says of it."""
        return [f"resume={self.folder}"] if self.folder.exists() else ["name=paced", *self.prepared()]

    def until_steps(self, count: int) -> None:
        """Until the trials have done so many steps more, in all; the sweep must not end before."""
        goal, deadline = self.steps() + count, time.monotonic() + 600
        while self.steps() < goal:
            assert (self.process is None or self.process.poll() is None) and time.monotonic() < deadline, self.process and self.said
            time.sleep(0.02)

    def until_saved(self) -> None:
        """Until a trial has a checkpoint; with `checkpoint_every=0` that is of where it stopped, or of its end."""
        deadline = time.monotonic() + 600
        while not list(self.folder.glob("trials/*/checkpoints/step-*")):
            assert self.process.poll() is None and time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def steps(self, of: set[int] | None = None) -> int:
        """Training forwards of all trials, those that were done twice too, or of some processes; the driver's, of the rehearsal, apart."""
        files = [path for path in (self.root / "forwards").iterdir() if int(path.name) not in self.drivers]
        return sum(path.stat().st_size for path in files if of is None or int(path.name) in of)

    def finish(self) -> None:
        if self.process is None or self.process.poll() is not None:
            self.start()
        try:
            assert self.process.wait(1000) == 0, self.said
        finally:
            kill_all(self.process)

    def assert_whole(self, whole: Ended) -> None:
        """Nothing lost, nothing doubled, weights bit-identical to the sweep `whole`, which nothing interrupted."""
        for name in self.assert_rows(whole):
            ours, theirs = self.folder / "trials" / name, whole.folder / "trials" / name
            a, b = (load_file(checkpoint.latest(trial / "checkpoints") / "shared.safetensors") for trial in (ours, theirs))
            assert a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a), name

    def assert_rows(self, whole: Ended) -> list[str]:
        """Each row once, with the scores of `whole`; returns the names of the trials."""
        names = sorted(path.name for path in (whole.folder / "trials").iterdir())
        assert names == sorted(path.name for path in (self.folder / "trials").iterdir()) and len(names) == 2
        for name in names:
            rows = results.read_trial(self.folder / "trials" / name)
            assert [(row["step"], row["status"]) for row in rows] == [
                (step, "running" if step < self.last else "finished") for step in range(EVERY, self.last + 1, EVERY)
            ]
            assert [row["score"] for row in rows] == [row["score"] for row in results.read_trial(whole.folder / "trials" / name)]
        assert len(results.load(self.folder / results.FILE)) == len(names) * self.last // EVERY
        return names


INFRASTRUCTURE = ("ray::Dashboard", "ray::RuntimeEnv", "ray::IDLE", "gcs_server", "raylet", "python")


class Marked:
    """All that is started from now on, by the text that it has in its environment; the cluster `Machines`, too."""

    NAME = "STARTED_BY_TEST"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, text: str):
        self.text = text
        monkeypatch.setenv(self.NAME, text)

    def workers(self, beginning: str = "ray::") -> list[psutil.Process]:
        """Ray's processes that have something to do."""
        return [each for each in self.alive() if each.name().startswith(beginning) and not each.name().startswith(INFRASTRUCTURE)]

    def alive(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get(self.NAME) == self.text and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def gone(self, what: Callable[[], list[psutil.Process]], seconds: float = 60) -> float:
        """Seconds until none is left of `what`."""
        began = time.monotonic()
        while left := what():
            assert time.monotonic() - began < seconds, left
            time.sleep(0.2)
        return time.monotonic() - began


@contextmanager
def machines(*cpus: int, takes_jobs: bool = False) -> Iterator[Cluster]:
    """A Ray cluster of several raylets, here, the first its head; one may be taken away and others added. A sweep needs no dashboard; jobs do."""
    from ray.cluster_utils import Cluster

    def begin() -> Cluster:
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        dashboard = {"include_dashboard": takes_jobs} | ({"dashboard_port": port} if takes_jobs else {})
        return Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], **dashboard})

    cluster = started(begin)
    try:
        for count in cpus[1:]:
            started(lambda: cluster.add_node(num_cpus=count))
        yield cluster
    finally:
        cluster.shutdown()


T = TypeVar("T")


def started(begin: Callable[[], T]) -> T:
    """What `begin` starts, tried again on a machine so busy that a raylet takes more than the 30 s that Ray gives it."""
    for again in (True, True, False):
        before = set(psutil.Process().children(recursive=True))
        try:
            return begin()
        except Exception as error:
            if not again or "timed out during startup" not in str(error):
                raise
            for process in set(psutil.Process().children(recursive=True)) - before:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    raise AssertionError
