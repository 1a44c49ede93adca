"""Calls into a user's code: whatever it raises is one line that says where."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from meltr_ray.errors import ConfigError
from meltr_ray.workload import Workload

T = TypeVar("T")


def called(workload: Workload | type[Workload], member: str, function: Callable[[], T], source: str | None = None) -> T:
    """`function()`, which calls `member` of a workload; `source`: its name for the user, where it is no instance yet.

    Raises:
        ConfigError: it raised something; that, and the deepest line of the user's file.
    """
    try:
        return function()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        cls = workload if isinstance(workload, type) else type(workload)
        source = source or workload.source or cls.__name__
        raise ConfigError(
            f"workload={source}: {member} failed{line_of(error, inspect.getsourcefile(cls))}: {in_words(error)}; mend it"
        ) from error


def in_words(error: BaseException) -> str:
    """`KeyError: 'x'`, whatever it is in one line; the first that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def line_of(error: BaseException, file: str | Path | None) -> str:
    """` (line 7)`: the deepest line of `file` that the error went through; empty where it went through none."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).name == Path(file or "").name:
        return f" (line {error.lineno})"
    lines, trace = [], error.__traceback__
    while trace is not None:
        if file is not None and Path(trace.tb_frame.f_code.co_filename) == Path(file):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" (line {lines[-1]})" if lines else ""
