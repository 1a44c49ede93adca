"""What a pickle asks for, seen without running it: sizes that the file hasn't got, and opcodes that plain data doesn't need."""

from __future__ import annotations

import mmap
import pickletools
from pathlib import Path

from meltr_ray.errors import ConfigError, check

NEEDLESS = ("INST", "OBJ", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")
"""Other ways to make objects, and what stands outside the file."""
STORES = {"PUT", "BINPUT", "LONG_BINPUT"}
"""The unpickler's memory grows to twice the number that they give."""
TABLE = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
SIZES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
"""Kind of argument -> bytes of its length."""


def check_opcodes(path: Path) -> None:
    """Raises ConfigError: the file is no whole pickle, claims more than it holds, or asks for what plain data doesn't need."""
    size = path.stat().st_size
    check(size > 0, "pickle", path, "can't be read as a pickle of builtins and numpy arrays, it is empty; fetch the file again")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = 0
        while True:
            opcode = TABLE.get(content[at]) if at < size else None
            check(
                opcode is not None,
                "pickle",
                path,
                f"can't be read as a pickle of builtins and numpy arrays (byte {at}); fetch the file again",
            )
            check(
                opcode.name not in NEEDLESS, "pickle", path, f"uses {opcode.name}, which plain data doesn't need; use a file of plain data"
            )
            if opcode.name == "STOP":
                return
            at += 1
            argument = opcode.arg
            if argument is None:
                continue
            if argument.n == pickletools.UP_TO_NEWLINE:
                at = _after_lines(path, content, at, 2 if opcode.name == "GLOBAL" else 1, opcode.name in STORES, size)
                continue
            length = argument.n if argument.n >= 0 else SIZES[argument.n]
            if argument.n < 0:
                length += int.from_bytes(content[at : at + length], "little")
            check(
                at + length <= size,
                "pickle",
                path,
                f"can't be read as a pickle of builtins and numpy arrays, it claims {length} bytes at byte {at} and ends before; fetch the file again",
            )
            if opcode.name in STORES:
                _check_place(path, int.from_bytes(content[at : at + length], "little"), size)
            at += length


def _after_lines(path: Path, content: mmap.mmap, at: int, lines: int, is_place: bool, size: int) -> int:
    for _ in range(lines):
        end = content.find(b"\n", at)
        check(end >= 0, "pickle", path, f"can't be read as a pickle of builtins and numpy arrays (byte {at}); fetch the file again")
        if is_place:
            text = content[at : min(end, at + 20)]
            if not text.isdigit():
                raise ConfigError(
                    f"pickle={path}: can't be read as a pickle of builtins and numpy arrays (byte {at}); fetch the file again"
                )
            _check_place(path, int(text), size)
        at = end + 1
    return at


def _check_place(path: Path, place: int, size: int) -> None:
    check(place <= size, "pickle", path, f"keeps an object at place {place}, beyond its {size} bytes; fetch the file again")
