"""Pickles of plain data, read without running code: builtins and numpy arrays, nothing else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from meltr_ray.config import ConfigError, check


def _latin1(text: str, encoding: str) -> bytes:
    """Pickles of protocol 2 and below write bytes as a call of `_codecs.encode` with this encoding."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding}")
    return text.encode("latin1")


def _array(kind: type, shape: tuple, code: bytes) -> np.ndarray:
    """The empty array that a pickled one begins as."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("array of another class")
    return np.zeros(0).__reduce__()[0](np.ndarray, shape, code)


ALLOWED = {f"builtins.{kind.__name__}": kind for kind in (set, frozenset, bytearray, complex, slice, range)}
ALLOWED |= {f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")}
ALLOWED |= {f"numpy.{core}.multiarray.scalar": np.float64(0).__reduce__()[0] for core in ("core", "_core")}
ALLOWED |= {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype, "_codecs.encode": _latin1}
"""What a pickle may name, under the paths of numpy 1 and 2."""


class _Reader(pickle.Unpickler):
    refused = ""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ALLOWED:
            self.refused = f"{module}.{name}"
            raise pickle.UnpicklingError(self.refused)
        return ALLOWED[f"{module}.{name}"]


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
            rule = "can't be read as a pickle; fetch the file again"
            if reader.refused:
                rule = f"names {reader.refused}, which is no builtin or numpy array and may run code; use a file of plain data"
            raise ConfigError(f"pickle={path}: {rule}") from error
