"""Imported checkpoints: a folder of `weights.safetensors` and `checkpoint.json`, made from files of others.

The weights have the backbone's names, a tied weight its first one; entries that the sources didn't have are not there.
`checkpoint.json` says what the weights are and where they come from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from meltr_ray.errors import ConfigError, check
from meltr_ray.storage import sealed
from meltr_ray.training.checkpoint import save_tensors
from meltr_ray.training.evaluation import check_numbers
from meltr_ray.training.shapes import shapes_alone
from meltr_ray.video.backbones.named import BACKBONES
from meltr_ray.video.backbones.settings import BackboneConfig
from meltr_ray.video.checkpoints import naming, official

WEIGHTS, FACTS, VERSION = "weights.safetensors", "checkpoint.json", 1
CHECKSUM = "weights_sha256"
"""Of the weights' file, in the facts."""
NEEDED = {"backbone", "settings", "vocabulary_size", "missing", "not_used"}
"""Facts that every import has written."""


def import_checkpoint(
    paths: list[Path],
    folder: Path,
    config: BackboneConfig,
    with_size: Callable[[str], BackboneConfig] | None = None,
    vocabulary_size: int | None = None,
) -> dict[str, Any]:
    """Write `folder` from the files, which cover the backbone of `config` or a part of it; returns `checkpoint.json`.

    `with_size`: makes the configuration of another size, if the size is to be the one that the first file has; None:
    `config` has it. `vocabulary_size`: words that there must be, if known.

    Raises:
        ConfigError: a file can't be read, is for another backbone, or its names and shapes aren't those of `config`; or
            two files have the same entry. Nothing is written then.
    """
    state: dict[str, Tensor] = {}
    sources, unused, fitted = [], [], []
    for path in paths:
        read = official.read(path)
        kind = check_kind(path, naming.kind_of(read), config)
        if with_size is not None and not sources:
            config = sized_as(naming.width_of(read, kind), config, with_size)
        placed, dropped, changed = naming.translate(read, kind, config)
        if twice := [name for name in placed if name in state]:
            raise ConfigError(f"checkpoint={path}: an earlier file has {official.shown(twice)}, too; leave one of the two out")
        state |= placed
        unused += dropped
        fitted += changed
        sources.append({"file": path.name, "kind": kind, "bytes": path.stat().st_size})
    config, model = describe(config, state)
    kinds, origin = [source["kind"] for source in sources], f"checkpoint={','.join(map(str, paths))}"
    own = config.naming()
    parts = (*own.may_be_missing, *left_open(model, kinds, config))
    missing, unexpected = official.match(state, model, parts, own.may_be_unexpected, origin)
    num_words = len(state[own.words]) if own.words in state else None
    if vocabulary_size and num_words:
        check_vocabulary(origin, num_words, vocabulary_size)
    there = dict(model.named_parameters()) | dict(model.named_buffers())
    check_numbers({name: (tensor, there[name]) for name, tensor in state.items() if name in there}, origin)
    weights = untied(state, model, origin)
    for path, source in zip(paths, sources):
        with open(path, "rb") as file:
            source["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {
        "version": VERSION, "backbone": config.name, "settings": settings_of(config), "sources": sources,
        "vocabulary_size": num_words, "entries": len(weights), "missing": missing, "not_used": unused + unexpected,
        "fitted": fitted,
    }  # fmt: skip
    write_folder(folder, weights, facts)
    return facts


def check_kind(path: Path, kind: str | None, config: BackboneConfig) -> str:
    """`kind`, if a file of it can go into the backbone."""
    accepted = [config.name, *config.naming().parts]
    mend = f"use a checkpoint of {', '.join(map(naming.title_of, accepted))}"
    if kind is None:
        raise ConfigError(f"checkpoint={path}: its names are those of no known model; {mend}")
    if kind not in accepted:
        mend = f"set backbone={kind}" if kind in BACKBONES else mend
        raise ConfigError(f"checkpoint={path}: is a checkpoint of {naming.title_of(kind)}, not for backbone={config.name}; {mend}")
    return kind


def sized_as(width: int, config: BackboneConfig, with_size: Callable[[str], BackboneConfig]) -> BackboneConfig:
    """The configuration of the size whose transformers have this width, or `config` if none has."""
    sizes = (size for size, values in config.sizes.items() if values["hidden_size"] == width != config.hidden_size)
    size = next(sizes, None)
    return config if size is None else with_size(size)


def describe(config: BackboneConfig, state: dict[str, Tensor]) -> tuple[BackboneConfig, nn.Module]:
    """(`config` with the lengths of tables that `state` has, an empty module with its vocabulary, features and heads).

    The module is on the `meta` device: names and shapes, no numbers. What `state` doesn't tell is small.
    """
    own = config.naming()
    with shapes_alone():
        return own.empty(config, state, len(state.get(own.words, (0,))))


def left_open(model: nn.Module, kinds: list[str], config: BackboneConfig) -> list[str]:
    """Beginnings of names that initialisations of these kinds leave to be drawn; none if one is the backbone's own file."""
    if config.name in kinds:
        return []
    parts = [config.naming().parts[kind] for kind in kinds]
    covered = tuple(target for part in parts for target in part.places.values())
    rest = [first for first, tied in official.entries(model).items() if not any(name.startswith(covered) for name in tied)]
    return rest + [name for part in parts for name in part.uncovered]


def untied(state: dict[str, Tensor], model: nn.Module, origin: str) -> dict[str, Tensor]:
    """Those entries of `state` that `model` has, tied ones once."""
    weights = {}
    for first, tied in official.entries(model).items():
        found = [state[name] for name in tied if name in state]
        if any(x is not found[0] and not torch.equal(x, found[0]) for x in found[1:]):
            raise ConfigError(f"{origin}: {' and '.join(tied)} differ, and are one weight here; use another checkpoint")
        if found:
            weights[first] = found[0]
    return weights


def write_folder(folder: Path, weights: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write both files under a temporary name and rename the folder, so that it is there whole or not at all."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save_tensors(partial / WEIGHTS, weights, {"format": "pt"})
        sealed.put_json(partial / FACTS, facts | {CHECKSUM: sealed.sha256(partial / WEIGHTS)})
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_vocabulary(origin: str, num_words: int, vocabulary_size: int) -> None:
    if num_words != vocabulary_size:
        rule = f"has {num_words} words, the vocabulary {vocabulary_size}"
        raise ConfigError(f"{origin}: {rule}; set data.vocabulary to the vocabulary file that it was trained with")


def settings_of(config: BackboneConfig) -> dict[str, Any]:
    """The settings of a backbone as JSON has them, all filled in."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("name", "weights")}
    return json.loads(json.dumps(settings))


def read_facts(folder: str | Path, field: str = "backbone.weights") -> dict[str, Any]:
    """`checkpoint.json` of an imported checkpoint."""
    path = Path(folder) / FACTS
    check(sealed.there(path), field, folder, "no imported checkpoint is there; make one: prepare.py checkpoint=<file>")
    try:
        facts = sealed.read_json(path)
    except sealed.Damaged:
        raise ConfigError(f"{field}={folder}: its {FACTS} isn't as it was written; import it again") from None
    check(facts.get("version") == VERSION, field, folder, "was imported by another version; import it again")
    whole = facts.keys() >= NEEDED and facts["backbone"] in BACKBONES and isinstance(facts["settings"], dict)
    check(whole, field, folder, f"its {FACTS} lacks what an import writes; import it again")
    return facts


def check_weights(folder: str | Path, facts: dict[str, Any], field: str = "backbone.weights") -> None:
    """Raises ConfigError: the weights of an imported checkpoint aren't those that its facts were written of."""
    path, known = Path(folder) / WEIGHTS, facts.get(CHECKSUM)
    if known is None or not path.exists():  # an older import; what opens them says that they are missing
        return
    check(path.is_file() and sealed.sha256(path) == known, field, folder, f"its {WEIGHTS} isn't as it was written; import it again")


def read_headers(folder: str | Path) -> dict[str, Tensor]:
    """Empty tensors of the weights' names and shapes."""
    with open_weights(Path(folder) / WEIGHTS, "backbone.weights") as file:
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}


def open_weights(path: Path, field: str) -> Any:
    """A safetensors file to take weights out of one by one, each read into memory of its own rather than mapped."""
    try:
        return safe_open(path, "pt", backend="pread")
    except (OSError, SafetensorError):
        raise ConfigError(f"{field}={path.parent}: {path.name} is missing or damaged; import the checkpoint again") from None
