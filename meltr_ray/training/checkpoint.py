"""Checkpoints on disk: safetensors and JSON, written under a temporary name, listed with their checksums last, then renamed.

`checkpoints/step-00000150/` holds `shared.safetensors` (weights, both optimisers, combiner: whole tensors, the same for
every ZeRO stage), `rank-<r>.safetensors` (generators), `facts.json` (step, statistics, settings) and `COMPLETE`, the SHA-256 of each.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from meltr_ray.config import Config, recorded
from meltr_ray.errors import ConfigError, check
from meltr_ray.storage import put, put_by_path, sealed
from meltr_ray.storage.saying import say
from meltr_ray.workload import Workload

MARKER, SEAL, BEST = "COMPLETE", "sha256", "best.safetensors"
MAY_CHANGE = ("train.threads", "train.cpus_per_worker", "train.accelerator", "train.resources", "train.placement", "train.max_failures",
              "train.loader_workers", "train.prefetch", "train.checkpoints_kept", "train.grace")  # fmt: skip
"""Settings that a resumed run may have otherwise than the run that wrote the checkpoint; so may all of `sweep`."""


def save(root: Path, step: int, rank: int, shared: dict[str, Tensor], own: dict[str, Tensor], facts: dict[str, Any],
         barrier: Callable[[], None], keep: int = 2) -> None:  # fmt: skip
    """Write one checkpoint; every rank calls it, rank 0 writes what is shared, and deletes all but the last `keep`.

    A process killed at any moment leaves either the older checkpoints or these and a new one, never half of one.
    """
    root = Path(root)
    temporary, final = root / f".step-{step:08d}.tmp", root / f"step-{step:08d}"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    save_tensors(temporary / f"rank-{rank}.safetensors", own)
    barrier()
    if rank == 0:
        save_tensors(temporary / "shared.safetensors", shared)
        put(temporary / "facts.json", json.dumps(facts, indent=1))
        put(temporary / MARKER, sealed.listed(temporary, [path.name for path in temporary.iterdir()]))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        for old in complete(root)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    barrier()


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint under `root` whose files are as they were written; a line for each that isn't."""
    for folder in reversed(complete(Path(root))):
        wrong = sealed.differing(folder, (folder / MARKER).read_bytes().decode("utf-8", "replace"))
        if wrong is None:
            return folder
        say(f"checkpoint={folder}: {wrong} isn't as it was written; an older one is used, or training begins anew")
    return None


def check_alike_on_ranks(found: Path | None, gather: Callable[[Tensor], list[Tensor]], device: torch.device) -> None:
    """Raises RuntimeError: ranks found different ones, as where a file system shows a machine late what another has written."""
    own = int(found.name.removeprefix("step-")) if found else -1
    steps = [int(step) for step in gather(torch.tensor(own, device=device))]
    if len(set(steps)) > 1:
        raise RuntimeError(f"ranks found checkpoints of the steps {', '.join(map(str, steps))} (-1: none); start again")


def load(folder: Path, rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """(shared, own, facts) as `save` took them."""
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return load_file(folder / "shared.safetensors"), load_file(folder / f"rank-{rank}.safetensors"), facts


def check_same(config: Config, root: Path) -> None:
    """Refuse to go on from a checkpoint of another configuration.

    Raises:
        ConfigError: names the first setting that differs, both values and the mend.
    """
    folder = latest(root)
    if folder is None:
        return
    check_facts(config, json.loads((folder / "facts.json").read_text(encoding="utf-8")), root)


def check_facts(config: Config, facts: dict[str, Any], root: Path) -> None:
    """`check_same` of a checkpoint under `root` whose facts are at hand."""
    before = {config.workload.aliases.get(key, key): value for key, value in facts["settings"].items()}
    check_fingerprint(config.workload, facts.get("fingerprint", {}))
    for key, value in settings(config).items():
        if key in before and before[key] != value:
            raise ConfigError(f"{key}={value}: the checkpoint in {root.parent} was made with {before[key]}; "
                              f"set {key}={before[key]} or start afresh with another name=")  # fmt: skip


def check_fingerprint(workload: Workload, known: dict[str, str]) -> None:
    """Refuse data that aren't those of a run, as far as the workload can tell."""
    for name, value in workload.fingerprint().items():
        if known.get(name, value) != value:
            raise ConfigError(f"workload={workload.source}: its data ({name} of the fingerprint) aren't the run's any more, whose numbers would stand for something else; "
                              "give the data that the run was trained on")  # fmt: skip


def settings(config: Config) -> dict[str, Any]:
    """The settings that a checkpoint belongs to, as JSON has them."""
    flat = {k: v for k, v in recorded(config).items() if k not in MAY_CHANGE}
    return json.loads(json.dumps(flat))


def save_weights(path: Path, weights: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write weights alone, atomically; `facts` go into the file's own metadata."""
    written = json.dumps(facts)
    save_tensors(path, weights, {"facts": written, SEAL: digest(weights, written)})


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; of tensors that share memory, which it refuses, all but the first are copied."""
    apart, held = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in held else tensor
        held.add(memory)
    put_by_path(path, lambda temporary: save_file(apart, temporary, metadata))


def weights_facts(path: Path) -> dict[str, Any]:
    """The facts that `save_weights` took."""
    return json.loads(_metadata(path).get("facts", "{}"))


def check_weights_of(trial: str, path: Path) -> None:
    """Raises ConfigError: the weights are those of another trial."""
    known = weights_facts(path).get("trial", trial)
    check(
        known == trial, "checkpoint", path, f"has the weights of {known}; put those of {trial} back, or delete the folder to run it again"
    )


def load_weights_file(path: Path) -> dict[str, Tensor]:
    """The weights that `save_weights` took.

    Raises:
        ConfigError: the file isn't as it was written.
    """
    damaged = f"checkpoint={path}: isn't as it was written; restore it from a copy, or train again"
    sealed.check_file(path)
    try:
        weights, known = load_file(path), _metadata(path)
    except (SafetensorError, ValueError) as error:
        raise ConfigError(damaged) from error
    if SEAL in known and known[SEAL] != digest(weights, known.get("facts", "")):
        raise ConfigError(damaged)
    return weights


def digest(tensors: dict[str, Tensor], text: str) -> str:
    """SHA-256 of names, types, shapes, numbers, and of `text`."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def complete(root: Path) -> list[Path]:
    """Folders of the checkpoints under `root` that were written to their end, oldest first.

    Raises:
        OSError: there are some, and they aren't ours to read: `glob` would find none.
    """
    if root.is_dir():
        os.listdir(root)
    return sorted(folder for folder in root.glob("step-*") if (folder / MARKER).is_file())
