"""Checkpoint files of others: read without running code, checked against a module, written back.

A safetensors file is names and numbers. A pickle may name any function and have it called. Here only tensors, builtins and
numpy arrays are made of it; what a Lightning checkpoint holds beside its weights (callbacks, settings) is read with stand-ins
that ignore it, and any other name stops the import. No class of another library is imported or called.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from meltr_ray.errors import ConfigError, check
from meltr_ray.storage import put
from meltr_ray.storage.sealed import check_file

WRAPPERS = ("state_dict", "model")
"""Keys under which a file may hold its entries: Lightning's, and that of DeiT's initialisations."""
NAMES_SHOWN = 10
"""Names of each kind that an error shows; one line has no room for hundreds."""


class Ignored:
    """Takes the place of an object that isn't a tensor: whatever the file says about it is dropped."""

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


STAND_INS = {
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": Ignored,
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping": Ignored,
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor": Ignored,
    "pytorch_lightning.utilities.parsing.AttributeDict": OrderedDict,
    "sacred.config.custom_containers.ReadOnlyDict": OrderedDict,
    "sacred.config.custom_containers.ReadOnlyList": list,
}
"""Names of other libraries that Lightning checkpoints of the authors' time hold, and what stands for each."""


def numpy_globals() -> list[Any]:
    """What pickled numpy arrays and scalars name, under the paths of numpy 1 and 2; no arrays of objects."""
    functions = {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
    paths = [(function, f"numpy.{core}.multiarray.{name}") for name, function in functions.items() for core in ("core", "_core")]
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"}
    return [*paths, *kinds, np.ndarray, np.dtype]


def read(path: str | os.PathLike) -> dict[str, Tensor]:
    """Weights by name out of a checkpoint: safetensors, or a file that torch saved in its present or its older format.

    All but the older format are mapped into memory, not copied: a tensor's pages are read when it is used. Entries that
    aren't tensors or numpy arrays are left out; a `module.` in front of all names, DataParallel's, is cut off.
    """
    path = Path(path)
    if not path.is_file():
        rule = "is a folder; give the file of weights in it" if path.is_dir() else "no such file; give the path of a checkpoint"
        raise ConfigError(f"checkpoint={path}: {rule}")
    check_file(path)  # that it isn't ours to read is no damage
    try:
        content = load_file(path) if is_safetensors(path) else read_pickle(path)
    except ConfigError:
        raise
    except Exception as error:  # a damaged file, or a hostile one, raises whatever its bytes lead to
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            rule = f"names {refused[1]}, which is no tensor, builtin or numpy array and may run code; use a file of weights alone"
        else:
            rule = "can't be read as a checkpoint; fetch it again and compare its size with the source's"
        raise ConfigError(f"checkpoint={path}: {rule}") from error
    state = content if isinstance(content, dict) else {}
    for wrapper in WRAPPERS:
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    state = {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in state.items()}
    state = {name: x.detach() for name, x in state.items() if isinstance(name, str) and isinstance(x, Tensor)}
    if not state:
        raise ConfigError(f"checkpoint={path}: holds no weights by name; use a file with a state dict")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): x for name, x in state.items()}
    return state


def check_records(path: Path) -> None:
    """Of a zip file, torch's present format, whose records torch reads without a look at their checksums.

    Raises:
        ConfigError: a record isn't what its checksum says. All are 0 where torch was told to write none.
    """
    with zipfile.ZipFile(path) as records:
        wrong = records.testzip() if any(record.CRC for record in records.infolist()) else None
    check(wrong is None, "checkpoint", path, f"isn't as it was written (the checksum of {wrong} in it differs); fetch it again")


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do: the length of a JSON object, then the object."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def read_pickle(path: Path) -> Any:
    """What torch saved, with nothing but tensors, builtins, numpy arrays and stand-ins in it; raises whatever torch does."""
    in_zip = zipfile.is_zipfile(path)
    if in_zip:
        check_records(path)
    allowed = [*numpy_globals(), *((stand_in, name) for name, stand_in in STAND_INS.items())]
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=in_zip)


def entries(module: nn.Module) -> dict[str, list[str]]:
    """Names of `module`'s parameters and saved buffers: the first -> all, more than one where weights are tied."""
    names: dict[int, list[str]] = {}
    for name, x in module.state_dict(keep_vars=True).items():
        names.setdefault(id(x), []).append(name)
    return {tied[0]: tied for tied in names.values()}


def match(
    state: dict[str, Tensor],
    module: nn.Module,
    allowed_missing: tuple[str, ...] = (),
    allowed_unexpected: tuple[str, ...] = (),
    origin: str = "checkpoint=weights",
) -> tuple[list[str], list[str]]:
    """Names that `state` lacks, and those that it has for nothing, both of them allowed.

    `allowed_missing`: beginnings of names that may be missing, each for all of its entries or none. `allowed_unexpected`:
    beginnings that `module` may lack. A tied weight is there if one of its names is. `origin` begins the errors, `field=value`.

    Raises:
        ConfigError: `state` hasn't the names and shapes of `module`'s entries; one that both have must agree always.
    """
    own, kind = module.state_dict(), type(module).__name__
    common = [name for name in own if name in state]
    if not common:
        held = shown(list(state))
        raise ConfigError(f"{origin}: holds {held}, none of which belongs to {kind}; choose the backbone that wrote it")
    missing = [first for first, tied in entries(module).items() if not any(name in state for name in tied)]
    unexpected = [name for name in state if name not in own]
    whole = tuple(part for part in allowed_missing if not any(name.startswith(part) for name in common))
    other_shape = [name for name in common if own[name].shape != state[name].shape]
    problems = {
        "missing": [name for name in missing if not name.startswith(whole)],
        "unexpected": [name for name in unexpected if not name.startswith(allowed_unexpected)],
        "of another shape": [f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}" for name in other_shape],
    }
    found = {problem: names for problem, names in problems.items() if names}
    words = next((name for name in other_shape if name.endswith("word_embeddings.weight")), None)
    if words and own[words].shape[1:] == state[words].shape[1:]:  # the width is right, so the size is
        raise ConfigError(f"{origin}: holds {len(state[words])} words and the model's vocabulary {len(own[words])}; "
                          "use the vocabulary that the checkpoint was trained with")  # fmt: skip
    if found:
        listing = ", ".join(f"{problem} {shown(names)}" for problem, names in found.items())
        count = sum(map(len, found.values()))
        raise ConfigError(f"{origin}: {count} entries don't fit {kind}: {listing}; choose the backbone and size that wrote it")
    return missing, unexpected


def shown(names: list[str]) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def save(state: dict[str, Tensor], path: str | os.PathLike, wrapper: str | None = None) -> None:
    """Write `state` as the authors' code saves it, whole or not at all.

    `wrapper`: key that their code takes the entries from: `state_dict` for All-in-one, None where it takes the file itself.
    """
    put(Path(path), lambda file: torch.save(state if wrapper is None else {wrapper: state}, file))
