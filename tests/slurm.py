"""SLURM on this machine, of nodes that are all this machine, for the time of a test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
KillWait=30
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def is_here() -> bool:
    """Whether Debian's `slurm-wlm` is installed, and this user may start it."""
    return all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in DAEMONS) and os.geteuid() == 0


@dataclass
class Slurm:
    """Two nodes of one CPU each."""

    folder: Path

    def call(self, *command: str | Path, **more: str) -> str:
        """What a command of SLURM says. `more`: of the environment."""
        about = {"SLURM_CONF": str(self.folder / "slurm.conf")} | more
        done = subprocess.run(list(map(str, command)), env=os.environ | about, capture_output=True, text=True, timeout=60, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self, job: str) -> str:
        """`PENDING`, `RUNNING`, `COMPLETED` and so on."""
        fields = dict(each.split("=", 1) for each in self.call("scontrol", "show", "job", job).split() if "=" in each)
        return fields["JobState"]

    def until(self, job: str, *states: str, seconds: float = 300) -> str:
        """The state of a job, as soon as it is one of `states`."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < deadline, state
            time.sleep(0.5)
        return state


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Started, and ended with all its jobs."""
    with ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [each.getsockname()[1] for each in free]
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=socket.gethostname(), folder=folder, ports=ports))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    found, started = Slurm(folder), []

    def start(*command: str) -> None:
        with open(folder / f"{command[0]}.out", "ab") as out:
            environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
            started.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))

    try:
        start("munged", "--foreground", "--force", *(f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")),
              f"--socket={folder}/munge.socket")  # fmt: skip
        start("slurmctld", "-D")
        for node in ("n1", "n2"):
            start("slurmd", "-D", "-N", node)
        deadline = time.monotonic() + 60
        while subprocess.run(["sinfo", "-h", "-t", "idle", "-o", "%D"], env=os.environ | {"SLURM_CONF": str(folder / "slurm.conf")},
                             capture_output=True, text=True).stdout.strip() != "2":  # fmt: skip
            assert time.monotonic() < deadline, (folder / "slurmctld.out").read_text()
            time.sleep(0.5)
        yield found
    finally:
        if len(started) > 1:
            subprocess.run(["scancel", "--user=root"], env=os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}, timeout=60)
            time.sleep(2)
        for process in reversed(started):
            process.terminate()
            process.wait(60)
