"""One library in a process of its own: prepares its methods, times them, and measures their peak memory when asked to."""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import multiprocessing
import os
import time
import warnings
from dataclasses import dataclass
from importlib import metadata, util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable

from numpy import ndarray
from peers_problems import Problem, relative_error

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD


@dataclass(frozen=True)
class Library:
    """A side of the comparison."""

    name: str
    package: str  # what is imported
    distributions: tuple[str, ...]  # whose versions are reported
    adapter: str  # module beside this file, with METHODS and prepare
    install: str

    @property
    def installed(self) -> bool:
        return util.find_spec(self.package) is not None

    @property
    def versions(self) -> dict[str, str]:
        return {name: metadata.version(name) for name in self.distributions}


EXTRA = "pip install -e '.[peers]'"
LIBRARIES = (
    Library("ours", "meltr_ray", ("torch",), "peers_ours", "pip install -e ."),
    # its metadata asks for Python < 3.11, but it runs on 3.11
    Library("betty", "betty", ("betty-ml",), "peers_betty", "pip install --no-deps --ignore-requires-python betty-ml==0.2.1"),
    Library("torchopt", "torchopt", ("torchopt",), "peers_torchopt", EXTRA),
    Library("jaxopt", "jaxopt", ("jaxopt", "jax", "jaxlib"), "peers_jaxopt", EXTRA),
)


@dataclass(frozen=True)
class Case:
    """One method with one setting on one problem."""

    problem: str
    library: str
    method: str
    size: int  # iterations or rank; 0 where there is none

    @property
    def label(self) -> str:
        return f"{self.library} {self.method}"


class Session:
    """What lives in the worker's process; every public method can be called through `Worker`."""

    def __init__(self, library: Library) -> None:
        self.adapter = importlib.import_module(library.adapter)
        self.problems: dict[str, Problem] = {}
        self.calls: dict[Case, Callable[[], ndarray]] = {}

    def methods(self) -> dict[str, str | None]:
        """Method -> what its size is, None if it has none."""
        return self.adapter.METHODS

    def add_problem(self, problem: Problem) -> None:
        self.problems[problem.name] = problem

    def prepare(self, case: Case) -> dict[str, Any]:
        """Sets the case up and calls it once, which also compiles whatever the library compiles."""
        problem = self.problems[case.problem]
        start = time.perf_counter()
        call = self.adapter.prepare(problem, case.method, case.size)
        found = call()
        first = time.perf_counter() - start
        self.calls[case] = call
        return {"error": relative_error(found, problem.reference), "first_call_seconds": first}

    def times(self, case: Case, budget: float) -> list[tuple[float, float]]:
        """(processor seconds, wall seconds) of repeated calls until `budget` seconds are spent: one to fifty."""
        call, times = self.calls[case], []
        call()  # caches were left to other work since the last round
        while not times or (sum(wall for _, wall in times) < budget and len(times) < 50):
            start, wall_start = time.process_time(), time.perf_counter()
            call()
            times.append((time.process_time() - start, time.perf_counter() - wall_start))
        return times

    def peak_memory(self, case: Case) -> int | None:
        """Bytes that one call needs at its peak above what the prepared process holds; None where Linux is not at hand."""
        status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
        if not os.access(reset, os.W_OK):
            return None
        # give every larger block its own mapping and return it when freed, or the warm-up's leftovers would hide the peak
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 65536)
        self.prepare(case)
        peaks = []
        for _ in range(3):
            gc.collect()
            time.sleep(0.1)  # jax frees buffers in a thread of its own
            ctypes.CDLL(None).malloc_trim(0)
            reset.write_text("5")  # sets the high-water mark to the present level
            before = _kilobytes(status, "VmRSS")
            self.calls[case]()
            peaks.append(_kilobytes(status, "VmHWM") - before)
        return 1024 * max(0, *peaks)


def _kilobytes(status: Path, field: str) -> int:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(field + ":")]
    return int(line.split()[1])


class Worker:
    """The other end of a `Session`: `worker.ask("times", case, 0.1)`."""

    def __init__(self, library: Library) -> None:
        for name in THREADS:  # read when the child starts
            os.environ[name] = "1"
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(child, library), daemon=True)
        self.process.start()
        child.close()

    def ask(self, name: str, *arguments: Any) -> Any:
        """The answer of the session's method `name`.

        Raises:
            Failed: it raised; carries the exception's text.
        """
        self.connection.send((name, arguments))
        answer = self.connection.recv()
        if isinstance(answer, Failed):
            raise answer
        return answer

    def close(self) -> None:
        self.connection.close()
        self.process.join(10)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Failed(Exception):
    """A request failed in the worker."""


def _serve(connection: Connection, library: Library) -> None:
    _quieten()
    _use_one_core()
    session: Session | None = None
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            session = session or Session(library)
            connection.send(getattr(session, name)(*arguments))
        except Exception as error:
            connection.send(Failed(f"{type(error).__name__}: {error}"))


def _quieten() -> None:
    """betty logs its graph, torchopt calls deprecated names of torch: neither belongs in the table."""
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _use_one_core() -> None:
    """The same core for every library: no side gains by threads, and only one worker is busy at a time."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
