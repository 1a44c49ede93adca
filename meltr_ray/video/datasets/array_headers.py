"""Headers of .npy and .npz files, which may claim any size: compared with what is there before memory is taken."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from meltr_ray.errors import check

LARGEST = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
"""Bytes of one array: half of this machine's memory."""


def load_npy(path: Path) -> np.ndarray:
    """The array of a .npy file. Raises ConfigError where the header claims more than there is, and numpy's errors where it is damaged."""
    with open(path, "rb") as file:
        claimed = claimed_bytes(file)
        check(
            claimed <= path.stat().st_size,
            "source",
            path,
            f"claims {_in_units(claimed)} and has {_in_units(path.stat().st_size)}; fetch the file again",
        )
        file.seek(0)
        return np.load(file, allow_pickle=False)


def check_npz(path: Path) -> None:
    """Raises ConfigError: an array in it claims more than it has, or more than this machine holds."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            with archive.open(member) as file:
                claimed = claimed_bytes(file)
            check(claimed <= member.file_size, "source", path,
                  f"{member.filename} claims {_in_units(claimed)} and has {_in_units(member.file_size)}; fetch the file again")  # fmt: skip
            check_size(path, member.filename, claimed)


def check_size(path: Path, name: str, claimed: int) -> None:
    check(
        claimed <= LARGEST,
        "source",
        path,
        f"{name} takes {_in_units(claimed)}, more than half of this machine's memory; split it into several files",
    )


def claimed_bytes(file: BinaryIO) -> int:
    """Of the array alone, as the header has it. Raises ValueError where there is none."""
    version = npy.read_magic(file)
    shape, _, dtype = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version, _other)(file)
    return 0 if dtype.hasobject else math.prod(shape) * dtype.itemsize


def _other(file: BinaryIO) -> None:
    raise ValueError("unknown version")


def _in_units(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size} bytes"
