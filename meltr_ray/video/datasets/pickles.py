"""Pickles of plain data, read without running code: builtins and numpy arrays, nothing else."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from meltr_ray.errors import ConfigError, check
from meltr_ray.video.datasets.confined import Confined, NotRead, shared
from meltr_ray.video.datasets.opcodes import check_opcodes

SMALL = 16 * 2**20
"""Bytes of a file for which no process is started anew."""
SECONDS, BYTES_A_SECOND = 20.0, 4 * 2**20
"""That reading may take."""
MEMORY_BYTES, MEMORY_EACH = 4 * 2**30, 12
"""Address space that reading may take: of the libraries, and for each byte of the file."""
ARRAY = "numpy.ndarray"
"""Stands for the class, which a pickle need not call."""


class _Refused(pickle.UnpicklingError):
    """Words for what a pickle asks for and plain data has not."""


def _latin1(text: str, encoding: str) -> bytes:
    """Pickles of protocol 2 and below write bytes as a call of `_codecs.encode` with this encoding."""
    if encoding != "latin1":
        raise _Refused(f"encoding {encoding}")
    return text.encode("latin1")


class _Type:
    """A type of numbers, text or objects as a pickle names it.

    The pickle goes on to set its state; numpy believes what that says of fields and sizes, and reads any memory by it. Here it
    sets the byte order alone.
    """

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biufcSUO":
            raise _Refused(f"array of {code}")

    def __setstate__(self, state: tuple) -> None:
        if any(state[2:5]):
            raise _Refused("array of a structure")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that a pickle fills. One of objects takes a whole list of what the pickle holds, never bytes as pointers."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, kind, fortran, content = state
        if math.prod(shape) * kind.dtype.itemsize == 0 and math.prod(shape) > 0:
            raise _Refused("array of elements without size")
        if kind.dtype.hasobject and not (isinstance(content, list) and len(content) == math.prod(shape)):
            raise _Refused("array of objects that is no list of its length")
        super().__setstate__((version, shape, kind.dtype, fortran, content))


def _reconstruct(kind: str, shape: tuple, code: bytes) -> np.ndarray:
    """The empty array that a pickled one begins as."""
    if kind is not ARRAY:
        raise _Refused("array of another class")
    return _Array(0)


def _scalar(kind: _Type, content: bytes) -> np.generic:
    """One number or text. `content` is its bytes; numpy checks their length."""
    if kind.dtype.hasobject:
        raise _Refused("scalar of an object")
    return np.float64(0).__reduce__()[0](kind.dtype, content)


def _frombuffer(buffer: bytes, kind: _Type, shape: tuple, order: str) -> np.ndarray:
    """A whole array, as protocol 5 has it; numpy refuses objects."""
    return np.frombuffer(buffer, kind.dtype).reshape(shape, order=order)


class _Called:
    """A function as a pickle sees it: it can call it, and change nothing of it (BUILD sets attributes of whatever there is)."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]):
        object.__setattr__(self, "function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _Refused("a change of a function")


def _collected(kind: type) -> Callable[..., Any]:
    """A set or bytes of what the pickle holds itself: not of a number or a range, which make any size of nothing."""

    def made(content: Any = (), *encoding: Any) -> Any:
        if not isinstance(content, (list, tuple, str, bytes, bytearray)):
            raise _Refused(f"{kind.__name__} of a {type(content).__name__}")
        return kind(content, *encoding)

    return made


ALLOWED = {f"builtins.{kind.__name__}": _Called(_collected(kind)) for kind in (set, frozenset, bytes, bytearray)}
ALLOWED |= {f"builtins.{kind.__name__}": _Called(kind) for kind in (complex, slice, range)}
ALLOWED |= {"_codecs.encode": _Called(_latin1), "numpy.ndarray": ARRAY, "numpy.dtype": _Type}
ALLOWED |= {
    f"numpy.{core}.{name}": _Called(function)
    for core in ("core", "_core")  # numpy 1 and 2
    for name, function in {
        "multiarray._reconstruct": _reconstruct,
        "multiarray.scalar": _scalar,
        "numeric._frombuffer": _frombuffer,
    }.items()
}
"""What a pickle may name, and what is called for it."""


class _Reader(pickle.Unpickler):
    refused = ""

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module.replace('__builtin__', 'builtins')}.{name}"  # its name in Python 2, and up to protocol 2
        if path not in ALLOWED:
            self.refused = path
            raise pickle.UnpicklingError(path)
        return ALLOWED[path]


def read_pickle(path: str | Path) -> Any:
    """The content of a pickle file of builtins and numpy arrays.

    Raises ConfigError where the file is missing or damaged, or names anything else, which isn't looked up.
    """
    path = Path(path)
    check(path.is_file(), "pickle", path, "no such file; correct the path")
    check_opcodes(path)
    try_out(path)
    return _read(path)


def try_out(path: Path) -> None:
    """Raises ConfigError: the file can't be read within limits on memory and time, tried in a process of its own.

    Sizes and opcodes don't bound everything: tuples of tuples, each shared, take seconds or ages to be keys of a dictionary.
    """
    size = path.stat().st_size
    with nullcontext(shared()) if size <= SMALL else Confined(MEMORY_BYTES + MEMORY_EACH * size) as reader:
        try:
            line = reader.call(f"{__name__}:problem", os.fspath(path.absolute()), seconds=SECONDS + size / BYTES_A_SECOND)
        except NotRead as error:
            line = f"pickle={path}: can't be read within its limits ({error}); fetch the file again"
    if line:
        raise ConfigError(line.replace(str(path.absolute()), str(path), 1))


def problem(path: str) -> str:
    """The one line that refuses the file; empty where it can be read."""
    try:
        _read(Path(path))
    except ConfigError as error:
        return str(error)
    return ""


def _read(path: Path) -> Any:
    with open(path, "rb") as file:
        reader = _Reader(file)
        try:
            return reader.load()
        except Exception as error:  # a damaged file, or a hostile one, raises whatever its bytes lead to
            rule = "can't be read as a pickle of builtins and numpy arrays; fetch the file again"
            if reader.refused:
                rule = f"names {reader.refused}, which is no builtin or numpy array and may run code; use a file of plain data"
            elif isinstance(error, _Refused):
                rule = f"asks for {error}, which plain data has not; use a file of plain data"
            raise ConfigError(f"pickle={path}: {rule}") from error
