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
from meltr_ray.storage import put
from meltr_ray.training.checkpoint import save_tensors
from meltr_ray.video.backbones.allinone.model import AllInOne
from meltr_ray.video.backbones.allinone.settings import AllInOneConfig
from meltr_ray.video.backbones.named import BACKBONES
from meltr_ray.video.backbones.settings import BackboneConfig
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UniVLConfig
from meltr_ray.video.backbones.violet.model import Violet
from meltr_ray.video.backbones.violet.settings import VioletConfig
from meltr_ray.video.checkpoints import naming, official

WEIGHTS, FACTS, VERSION = "weights.safetensors", "checkpoint.json", 1
WORDS = {
    "univl": "bert.embeddings.word_embeddings.weight",
    "violet": "enc_txt.emb_txt.word_embeddings.weight",
    "allinone": "text_embeddings.word_embeddings.weight",
}
FRAME_FEATURES = "visual.embeddings.word_embeddings.weight"


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
        kind = check_kind(path, naming.kind_of(read), config.name)
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
    parts = (*naming.MAY_BE_MISSING[config.name], *left_open(model, kinds, config.name))
    missing, unexpected = official.match(state, model, parts, naming.MAY_BE_UNEXPECTED[config.name], origin)
    num_words = len(state[WORDS[config.name]]) if WORDS[config.name] in state else None
    if vocabulary_size and num_words:
        check_vocabulary(origin, num_words, vocabulary_size)
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


def check_kind(path: Path, kind: str | None, backbone: str) -> str:
    """`kind`, if a file of it can go into the backbone."""
    accepted = [k for k in naming.TITLES if k == backbone or (k, backbone) in naming.PLACES]
    mend = f"use a checkpoint of {', '.join(naming.TITLES[k] for k in accepted)}"
    if kind is None:
        raise ConfigError(f"checkpoint={path}: its names are those of no known model; {mend}")
    if kind not in accepted:
        mend = f"set backbone={kind}" if kind in BACKBONES else mend
        raise ConfigError(f"checkpoint={path}: is a checkpoint of {naming.TITLES[kind]}, not for backbone={backbone}; {mend}")
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
    num_words = len(state.get(WORDS[config.name], (0,)))
    with torch.device("meta"):
        match config:
            case UniVLConfig():
                features = state[FRAME_FEATURES].size(-1) if FRAME_FEATURES in state else 1
                return config, UniVL(config, num_words, features)
            case VioletConfig():
                tasks = {"fc_mc.1.weight": "multiple_choice", "fc_oe.1.weight": "open_ended"}
                task = next((tasks[name] for name in tasks if name in state), "retrieval")
                return config, Violet(config, num_words, task, len(state.get("fc_oe.3.bias", (0,))))
            case AllInOneConfig():
                frames = state.get("transformer.temporal_embed")
                positions = state.get("text_embeddings.position_embeddings.weight")
                config = dataclasses.replace(
                    config,
                    num_frames=config.num_frames if frames is None else frames.size(1),
                    max_position_embeddings=config.max_position_embeddings if positions is None else len(positions),
                )
                return config, AllInOne(config, num_words, num_answers=len(state.get("vqa_classifier.4.bias", (0,))))


def left_open(model: nn.Module, kinds: list[str], backbone: str) -> list[str]:
    """Beginnings of names that initialisations of these kinds leave to be drawn; none if one is the backbone's own file."""
    if backbone in kinds:
        return []
    covered = tuple(target for kind in kinds for target in naming.PLACES[kind, backbone].values())
    rest = [first for first, tied in official.entries(model).items() if not any(name.startswith(covered) for name in tied)]
    return rest + [part for kind in kinds for part in naming.UNCOVERED[kind, backbone]]


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
        put(partial / FACTS, json.dumps(facts, indent=1))
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
    try:
        facts = json.loads((Path(folder) / FACTS).read_text())
    except (OSError, ValueError):
        raise ConfigError(f"{field}={folder}: no imported checkpoint is there; make one: prepare.py checkpoint=<file>") from None
    check(facts.get("version") == VERSION, field, folder, "was imported by another version; import it again")
    return facts


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
