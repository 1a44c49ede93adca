"""Run a script of ours as `python <script>` does, in a fork of a process that has imported what it needs.

To import torch, Ray and DeepSpeed takes nine CPU-seconds, more than most commands of a test take by themselves. A fork has
all that a process has: a number, group, folder, arguments, output and exit code of its own.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).parents[1]
IMPORTED = ("torch", "torch._dynamo", "deepspeed", "ray.train", "ray.tune", "meltr_ray.training.run", "meltr_ray.training.engine",
            "meltr_ray.cluster.tune", "meltr_ray.video.workload", "meltr_ray.video.datasets.prepare", "analysis.report")  # fmt: skip
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(script: Path, arguments: list[str], folder: Path, output: Path, timeout: float, kill: Callable[[int], None]) -> int:
    """The exit code of `script`, run in `folder` with what it prints added to `output`; `kill` ends a process and its children."""
    server = forking_server()
    server.stdin.write(json.dumps([str(script), arguments, str(folder), str(output), given()]).encode() + b"\n")
    number = int(server.stdout.readline())
    ended = False
    try:
        ended = bool(select.select([server.stdout], [], [], timeout)[0])
    finally:
        if not ended:  # else its number may be another's by now
            kill(number)
        code = int(server.stdout.readline())
    if not ended:
        raise subprocess.TimeoutExpired([script, *arguments], timeout)
    return code


def given() -> dict[str, str]:
    """The environment of the test, but for what an engine in this process has told torch of its ranks."""
    return {name: value for name, value in (os.environ | ENVIRONMENT).items() if name not in OF_RANKS}


@cache
def forking_server() -> subprocess.Popen:
    """Takes one script at a time; ends when its input does, with this process."""
    return subprocess.Popen([sys.executable, "-m", __name__], cwd=ROOT, env=os.environ | ENVIRONMENT, bufsize=0,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip


def serve() -> None:
    """For each line of input: fork, answer the process number, and its exit code when it has ended."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what the imports print is no answer
        for name in IMPORTED:
            import_module(name)
        gc.freeze()  # a fork that collects garbage would copy every page of ours
        for line in iter(sys.stdin.readline, ""):  # noqa: B007 - the last one is what the child becomes
            number = os.fork()
            if number == 0:
                break
            print(number, file=answers, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), file=answers, flush=True)
        else:
            return
    become(*json.loads(line))


def become(script: str, arguments: list[str], folder: str, output: str, environment: dict[str, str]) -> None:
    """Put this process where a shell would have put a new one, and run the script."""
    os.environ.update(environment)
    os.setsid()
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT), descriptor)
    sys.argv, sys.path[0] = [script, *arguments], str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    serve()
