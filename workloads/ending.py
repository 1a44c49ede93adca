"""How the process of a command ends: once its work is done, nothing that a library leaves running can change its exit code."""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
import typing
from typing import Callable

SIGNALLED = 128
"""Exit codes above it: a signal ended the command."""
UNREAD = SIGNALLED + signal.SIGPIPE
"""Whoever read the output has gone: `| head`."""
UNFLUSHED = 120
"""What Python ends with where the last of the output can't be written."""


def as_process(main: Callable[[], None]) -> typing.NoReturn:
    """Call `main`, which ends by SystemExit, and end the process with its code; other errors end it as they always do."""
    code = 0
    try:
        main()
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    except BrokenPipeError:
        if not unread():  # another pipe
            raise
        code = UNREAD
    for number in (signal.SIGINT, signal.SIGTERM):  # the work is done: no handler is needed any more
        signal.signal(number, signal.SIG_DFL)
    if code <= SIGNALLED:  # what Ray started here ends with this process, so a signal need not wait for it
        threading._shutdown()
        atexit._run_exitfuncs()
    end_now(code)


def end_now(code: int) -> typing.NoReturn:
    """An interpreter with torch, Arrow and Ray takes seconds to end, and a thread of theirs may abort it then (exit code 134)."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = code or UNREAD
        except OSError:
            code = code or UNFLUSHED
    os._exit(code)


def unread() -> bool:
    """Whether nobody reads what this process prints, or its errors, any more."""
    streams = select.poll()
    for descriptor in (1, 2):
        streams.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in streams.poll(0))
