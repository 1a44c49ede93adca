"""Checkpoint files of the backbones' authors: read without running code, checked against a module, written back.

A pickle may name any function and have it called. Here only tensors, builtins and numpy arrays are made; what a Lightning
checkpoint holds beside its weights (callbacks, settings) is read with stand-ins that ignore it, and any other name stops
the import. No class of another library is imported or called.
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
from torch import Tensor, nn

from meltr_ray.config import ConfigError

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
    """Weights by name out of a checkpoint that torch saved, in its present or its older format.

    Current files are mapped into memory, not copied: a tensor's pages are read when it is used. Entries that aren't
    tensors or numpy arrays are left out; a `module.` in front of all names, DataParallel's, is cut off.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"checkpoint={path}: no such file; give the path of a checkpoint")
    allowed = [*numpy_globals(), *((stand_in, name) for name, stand_in in STAND_INS.items())]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file, or a hostile one, raises whatever its bytes lead to
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            rule = f"names {refused[1]}, which is no tensor, builtin or numpy array and may run code; use a file of weights alone"
        else:
            rule = "can't be read as a checkpoint of torch; fetch it again and compare its size with the source's"
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


def match(
    state: dict[str, Tensor],
    module: nn.Module,
    allowed_missing: tuple[str, ...] = (),
    allowed_unexpected: tuple[str, ...] = (),
) -> None:
    """Raise `ConfigError` unless `state` has the names and shapes of `module`'s entries.

    `allowed_missing`, `allowed_unexpected`: beginnings of names that the one, or the other, may lack; the backbone's file
    lists and explains them. An entry that both have must have the same shape always.
    """
    own, kind = module.state_dict(), type(module).__name__
    if not own.keys() & state.keys():
        raise ConfigError(f"checkpoint={shown(list(state))}: none of it belongs to {kind}; choose the backbone that wrote it")
    common = [(name, x.shape, state[name].shape) for name, x in own.items() if name in state]
    other_shape = {name: (want, got) for name, want, got in common if want != got}
    problems = {
        "missing": [name for name in own if name not in state and not name.startswith(allowed_missing)],
        "unexpected": [name for name in state if name not in own and not name.startswith(allowed_unexpected)],
        "of another shape": [f"{name} {tuple(got)} for {tuple(want)}" for name, (want, got) in other_shape.items()],
    }
    found = {problem: names for problem, names in problems.items() if names}
    words = [shapes for name, shapes in other_shape.items() if name.endswith("word_embeddings.weight")]
    if words and all(want[1:] == got[1:] for want, got in words):  # the width is right, so the size is
        rule = f"the model's vocabulary has {words[0][0][0]}; use the vocabulary that the checkpoint was trained with"
        raise ConfigError(f"checkpoint={words[0][1][0]} words: {rule}")
    if found:
        listing = ", ".join(f"{problem} {shown(names)}" for problem, names in found.items())
        count = sum(map(len, found.values()))
        raise ConfigError(f"checkpoint={count} entries: don't fit {kind}: {listing}; choose the backbone and size that wrote it")


def shown(names: list[str]) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def export(module: nn.Module, path: str | os.PathLike, wrapper: str | None = None) -> None:
    """Write `module`'s entries under the authors' names, whole or not at all.

    `wrapper`: key that their code takes the entries from: `state_dict` for All-in-one, None where it takes the file itself.
    """
    state = OrderedDict((name, x.detach().cpu()) for name, x in module.state_dict().items())
    partial = Path(f"{path}.partial")
    try:
        torch.save(state if wrapper is None else {wrapper: state}, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
