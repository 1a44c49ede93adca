"""Run a function on real ranks: processes that share a gloo group, no port needed.

A world of each size starts at its first call and serves the whole session: to start a rank takes seven CPU-seconds of
imports, most functions here a tenth of one. Each call finds seeds, threads, dtype, gradients, environment and folder as a
new process has them. A world in which a rank raised, died or hung is killed, as its other ranks may wait in a collective;
the next call starts a new one.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import random
import tempfile
import time
import traceback
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch

TIMEOUT_SECONDS = 300.0
"""Of one call; less than a test has, so that the error tells which rank hung."""


class RankError(RuntimeError):
    """A function raised on a rank (its traceback is the message), or the rank's process ended or hung."""


def on_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returned on each rank; an exception on any rank is raised here, as a `RankError`."""
    if world_size not in WORLDS:
        WORLDS[world_size] = World(world_size)
    try:
        return WORLDS[world_size].call(function, arguments)
    except BaseException:  # of a test that ran out of time, or Ctrl-C, too
        WORLDS.pop(world_size).kill()
        raise


class World:
    """Ranks that wait for functions to call; they end with this process."""

    def __init__(self, size: int):
        self.folder = tempfile.TemporaryDirectory(prefix="ranks-")
        self.pipes: list[Connection] = []
        self.processes: list[multiprocessing.process.BaseProcess] = []
        context = multiprocessing.get_context("spawn")
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, self.folder.name, theirs), daemon=True)
            process.start()
            theirs.close()  # the last copy is the rank's, so that its end shows here
            self.pipes.append(ours)
            self.processes.append(process)

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
        message, waiting = pickle.dumps((function, arguments)), dict(zip(self.pipes, range(len(self.pipes))))
        for pipe in self.pipes:
            pipe.send_bytes(message)
        answers, end = {}, time.monotonic() + TIMEOUT_SECONDS
        while waiting:
            ready = wait(waiting, end - time.monotonic())
            if not ready:
                raise RankError(f"no answer in {TIMEOUT_SECONDS:.0f} s from ranks {[*waiting.values()]}")
            for pipe in ready:
                rank = waiting.pop(pipe)
                answers[rank] = self._answer(rank)
        return [answers[rank] for rank in sorted(answers)]

    def _answer(self, rank: int) -> Any:
        try:
            returned, value = pickle.loads(self.pipes[rank].recv_bytes())  # our own, just made
        except (EOFError, ConnectionResetError):
            self.processes[rank].join()
            raise RankError(f"rank {rank} ended with code {self.processes[rank].exitcode}") from None
        if not returned:
            raise RankError(f"rank {rank}:\n{value}")
        return value

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self.folder.cleanup()


LINEAR = torch.nn.functional.linear
"""ZeRO-3 puts a layer of its own in its place, for good, which forward mode can't differentiate."""
WORLDS: dict[int, World] = {}
"""Number of ranks -> those that run."""


def _serve(rank: int, world_size: int, folder: str, pipe: Connection) -> None:
    """Call what comes through the pipe until its other end is closed; tensors are answered by value, not in shared memory."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_SIZE=str(world_size), DS_ACCELERATOR="cpu")
    store = torch.distributed.FileStore(str(Path(folder) / "store"), world_size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    environment, working_folder = dict(os.environ), os.getcwd()
    while True:
        _as_in_a_new_process(environment, working_folder)
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        pipe.send_bytes(_call(message))


def _call(message: bytes) -> bytes:
    """The answer, (True, value) or (False, traceback); a function of its own, so that nothing of the call is held after it."""
    try:
        function, arguments = pickle.loads(message)
        value = function(*arguments)
        torch.distributed.barrier()
        return pickle.dumps((True, value))
    except Exception:
        return pickle.dumps((False, traceback.format_exc()))


def _as_in_a_new_process(environment: dict[str, str], working_folder: str) -> None:
    gc.collect()  # DeepSpeed's engines are cycles
    gc.freeze()  # what is left is for good, most of it imported modules: a later collection needn't look through them
    for name in os.environ.keys() | environment.keys():
        if name not in environment:
            del os.environ[name]
        elif os.environ.get(name) != environment[name]:
            os.environ[name] = environment[name]
    os.chdir(working_folder)
    torch.nn.functional.linear = LINEAR
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
