"""Reading what strangers wrote in a process of its own, with limits on memory and time: whatever it does there, here it is one line.

The two talk in JSON, so that a reader that was taken over by its file can send nothing but data.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import meltr_ray

ROOT = Path(meltr_ray.__file__).parents[1]
HEADER = struct.Struct("<QQ")
"""Bytes of the JSON, and of the raw content behind it."""


class NotRead(ValueError):
    """Why what was asked for could not be had: a few words."""


class Confined:
    """A process that calls functions for this one, one after the other; it is started at the first call, and anew after one that went wrong.

    Args:
        memory_bytes: address space that it may take.
    """

    def __init__(self, memory_bytes: int):
        self.memory_bytes = memory_bytes
        self.process: subprocess.Popen | None = None
        self.lock = threading.Lock()

    def __enter__(self) -> Confined:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def call(self, function: str, *arguments: Any, seconds: float, content: bytes | None = None) -> Any:
        """What `module:function` returns, JSON both ways; `content` is a last argument of raw bytes.

        Raises:
            NotRead: it raised something, took too long or too much memory, or ended.
        """
        with self.lock:
            return self._call(function, arguments, seconds, content)

    def _call(self, function: str, arguments: tuple[Any, ...], seconds: float, content: bytes | None) -> Any:
        process = self.process = self.process or self._started()
        ended_late = threading.Event()
        timer = threading.Timer(seconds, lambda: (ended_late.set(), process.kill()))
        timer.start()
        try:
            _send(process.stdin, {"function": function, "arguments": arguments, "has_content": content is not None}, content or b"")
            answer, _ = _receive(process.stdout)
        except (EOFError, OSError, ValueError):
            self.end()
            code = process.returncode
            why = f"takes more than {seconds:.0f} s" if ended_late.is_set() else f"its reader ended by {_signal(code)}"
            raise NotRead(why) from None
        finally:
            timer.cancel()
        if "error" in answer:
            raise NotRead(answer["error"])
        return answer["value"]

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None

    def _started(self) -> subprocess.Popen:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-m", __name__, str(self.memory_bytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, env=environment)  # fmt: skip


SHARED_BYTES = 6 * 2**30


def shared() -> Confined:
    """One for all small files that this process reads: starting one takes a quarter of a second."""
    return _shared(os.getpid())


@functools.cache
def _shared(process: int) -> Confined:
    """`process`: this one, as a fork has its parent's pipes and must not talk into them."""
    reader = Confined(SHARED_BYTES)
    atexit.register(reader.end)
    return reader


def serve(memory_bytes: int) -> None:
    """The other process."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    while True:
        try:
            asked, content = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            module, name = asked["function"].split(":")
            arguments = [*asked["arguments"], *([content] if asked["has_content"] else [])]
            answer = {"value": getattr(importlib.import_module(module), name)(*arguments)}
        except MemoryError:
            answer = {"error": f"takes more than {memory_bytes / 2**30:.0f} GiB of memory"}
        except Exception as error:
            answer = {"error": (str(error).splitlines() or [""])[0] or type(error).__name__}
        _send(answers, answer, b"")


def _send(pipe: BinaryIO, message: Any, content: bytes) -> None:
    text = json.dumps(message).encode()
    pipe.write(HEADER.pack(len(text), len(content)) + text)
    pipe.write(content)
    pipe.flush()


def _receive(pipe: BinaryIO) -> tuple[Any, bytes]:
    text, content = HEADER.unpack(_exactly(pipe, HEADER.size))
    return json.loads(_exactly(pipe, text)), _exactly(pipe, content)


def _exactly(pipe: BinaryIO, count: int) -> bytes:
    found = pipe.read(count)
    if len(found) < count:
        raise EOFError
    return found


def _signal(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"code {code}"


if __name__ == "__main__":
    serve(int(sys.argv[1]))
