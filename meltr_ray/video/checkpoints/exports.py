"""Weights of this project as the files of the backbones' authors."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from meltr_ray.config import file as config_file
from meltr_ray.errors import ConfigError, check
from meltr_ray.storage import sealed
from meltr_ray.training.checkpoint import load_weights_file
from meltr_ray.video.backbones.named import BACKBONES
from meltr_ray.video.checkpoints import official
from meltr_ray.video.checkpoints.imports import FACTS, WEIGHTS, check_weights, describe, open_weights, read_facts


def export_checkpoint(folder: Path, path: Path) -> list[str]:
    """Write an imported checkpoint, or the best weights of a run, as the authors' file; names of theirs that it lacks.

    Raises:
        ConfigError: `folder` is neither, or isn't as it was written, or `path` exists.
    """
    check(not path.exists(), "export", path, "exists; choose another name")
    if sealed.there(folder / FACTS):
        facts, beginning = read_facts(folder, "checkpoint"), ""
        check_weights(folder, facts, "checkpoint")
        with open_weights(folder / WEIGHTS, "checkpoint") as weights:
            state = {name: weights.get_tensor(name) for name in weights.keys()}
        counters, lora = [name for name in facts["not_used"] if name.endswith("position_ids")], None
        config = BACKBONES[facts["backbone"]](**facts["settings"])
    elif (folder / "best.safetensors").is_file():
        run = config_file.read(sealed.whole_of(folder / "config.yaml"))
        check(
            "backbone" in run.workload.groups,
            "checkpoint",
            folder,
            "is a run of another workload than video, whose weights have no authors' form; give one of video",
        )
        config, beginning = run.workload.backbone, "backbone."
        state = load_weights_file(folder / "best.safetensors")
        counters, lora = [], run.tuning.lora_alpha / run.tuning.lora_rank
    else:
        raise ConfigError(f"checkpoint={folder}: holds neither an imported checkpoint nor best weights; give the folder of one")
    state = {name.removeprefix(beginning): x for name, x in state.items() if name.startswith(beginning)}
    if lora is not None:
        state = merged(state, lora)
    model = describe(config, state)[1]
    first_of = {name: first for first, tied in official.entries(model).items() for name in tied}
    if unknown := [name for name in state if name not in first_of]:
        raise ConfigError(f"checkpoint={folder}: holds {official.shown(unknown)}, which the authors' files have no name for; "
                          "give a run whose weights are the backbone's alone")  # fmt: skip
    found = OrderedDict((name, state[first_of[name]]) for name in model.state_dict() if first_of[name] in state)
    for name in counters:  # 0, 1, 2, .., which older libraries save with the positions' embeddings
        found[name] = torch.arange(config.max_position_embeddings)[None]
    official.save(found, path, config.naming().wrapper)
    return [name for name in model.state_dict() if name not in found]


def merged(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights of a run with LoRA (arXiv 2106.09685) under the layers' own names: W + scale B A."""
    merged = {name.replace(".base_layer.", "."): x for name, x in state.items() if ".lora_" not in name}
    for name in [name for name in state if name.endswith(".lora_A.default.weight")]:
        update = state[name.replace(".lora_A.", ".lora_B.")] @ state[name]
        layer = name.removesuffix(".lora_A.default.weight")
        merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + scale * update
    return merged
