"""Pickles of plain data, read without running code: builtins and numpy arrays, nothing else."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from meltr_ray.errors import ConfigError, check

ARRAY = "numpy.ndarray"
"""Stands for the class, which a pickle need not call."""


def _latin1(text: str, encoding: str) -> bytes:
    """Pickles of protocol 2 and below write bytes as a call of `_codecs.encode` with this encoding."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding}")
    return text.encode("latin1")


class _Type:
    """A type of numbers, text or objects as a pickle names it.

    The pickle goes on to set its state; numpy believes what that says of fields and sizes, and reads any memory by it. Here it
    sets the byte order alone.
    """

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biufcSUO":
            raise pickle.UnpicklingError(f"array of {code}")

    def __setstate__(self, state: tuple) -> None:
        if any(state[2:5]):
            raise pickle.UnpicklingError("array of a structure")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that a pickle fills. One of objects takes a whole list of what the pickle holds, never bytes as pointers."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, kind, fortran, content = state
        if kind.dtype.hasobject and not (isinstance(content, list) and len(content) == math.prod(shape)):
            raise pickle.UnpicklingError("array of objects that is no list of its length")
        super().__setstate__((version, shape, kind.dtype, fortran, content))


def _reconstruct(kind: str, shape: tuple, code: bytes) -> np.ndarray:
    """The empty array that a pickled one begins as."""
    if kind is not ARRAY:
        raise pickle.UnpicklingError("array of another class")
    return _Array(0)


def _scalar(kind: _Type, content: bytes) -> np.generic:
    """One number or text. `content` is its bytes; numpy checks their length."""
    if kind.dtype.hasobject:
        raise pickle.UnpicklingError("scalar of an object")
    return np.float64(0).__reduce__()[0](kind.dtype, content)


def _frombuffer(buffer: bytes, kind: _Type, shape: tuple, order: str) -> np.ndarray:
    """A whole array, as protocol 5 has it; numpy refuses objects."""
    return np.frombuffer(buffer, kind.dtype).reshape(shape, order=order)


ALLOWED = {f"builtins.{kind.__name__}": kind for kind in (set, frozenset, bytes, bytearray, complex, slice, range)}
ALLOWED |= {"_codecs.encode": _latin1, "numpy.ndarray": ARRAY, "numpy.dtype": _Type}
ALLOWED |= {
    f"numpy.{core}.{name}": function
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
    with open(path, "rb") as file:
        reader = _Reader(file)
        try:
            return reader.load()
        except Exception as error:  # a damaged file, or a hostile one, raises whatever its bytes lead to
            rule = "can't be read as a pickle of builtins and numpy arrays; fetch the file again"
            if reader.refused:
                rule = f"names {reader.refused}, which is no builtin or numpy array and may run code; use a file of plain data"
            raise ConfigError(f"pickle={path}: {rule}") from error
