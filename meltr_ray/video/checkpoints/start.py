"""Starting from an imported checkpoint: checked from its headers on the driver, copied into a backbone by each worker."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from meltr_ray.errors import ConfigError
from meltr_ray.video.backbones.naming import Naming, State
from meltr_ray.video.backbones.settings import BackboneConfig
from meltr_ray.video.checkpoints import official
from meltr_ray.video.checkpoints.imports import (
    WEIGHTS,
    check_vocabulary,
    check_weights,
    describe,
    open_weights,
    read_facts,
    read_headers,
    settings_of,
)


def check_start(config: BackboneConfig, vocabulary_size: int, feature_size: int | None = None) -> None:
    """Refuse a `config.weights` that training can't start from; makes no weights, so the driver can afford it.

    `feature_size`: that of the data set's frame features, where UniVL reads them; 0: it has none.

    Raises:
        ConfigError: no imported checkpoint is there, or it isn't as it was written, or of another backbone, size, vocabulary or feature size.
    """
    if config.weights is None:
        return
    check_weights(config.weights, read_facts(config.weights))  # first: damaged headers would seem to be of another model
    headers, features = read_headers(config.weights), config.naming().frame_features
    if feature_size and features in headers and headers[features].size(-1) != feature_size:
        rule = f"takes {headers[features].size(-1)} features a frame, the data set has {feature_size}"
        raise ConfigError(f"backbone.weights={config.weights}: {rule}; use features of the kind that it was trained with")
    plan_start(describe(config, headers)[1], config, vocabulary_size)


def load_start(model: nn.Module, config: BackboneConfig, vocabulary_size: int) -> list[str]:
    """Copy the checkpoint `config.weights`, which must be set, into `model`, the backbone; names of what stays as drawn.

    Takes the memory of one weight beside `model`. docs/checkpoints.md lists what may stay.

    Raises:
        ConfigError: as `check_start`.
    """
    check_weights(config.weights, read_facts(config.weights))
    names, left = plan_start(model, config, vocabulary_size)
    own, naming = model.state_dict(), config.naming()
    with torch.no_grad(), open_weights(Path(config.weights) / WEIGHTS, "backbone.weights") as file:
        for name in names:
            own[name].copy_(naming.fit_start({name: file.get_tensor(name)}, model)[name])
    return naming.complete(model, names, left)


def plan_start(model: nn.Module, config: BackboneConfig, vocabulary_size: int) -> tuple[list[str], list[str]]:
    """(names that go from the checkpoint `config.weights` into `model`, names of `model`'s that stay as drawn)."""
    origin, facts = f"backbone.weights={config.weights}", read_facts(config.weights)
    if facts["backbone"] != config.name:
        raise ConfigError(f"{origin}: holds {facts['backbone']}, not {config.name}; set backbone={facts['backbone']}")
    if facts["vocabulary_size"] is not None:
        check_vocabulary(origin, facts["vocabulary_size"], vocabulary_size)
    held, wanted = facts["settings"], settings_of(config)
    try:
        if held["num_heads"] == wanted["num_heads"]:  # which no shape tells
            return fit(read_headers(config.weights), model, config.naming(), facts["missing"], origin)
    except ConfigError:
        if held["size"] == wanted["size"]:
            raise
    names = [name for name in config.sizes["tiny"] if held.get(name) != wanted[name]]
    sizes = ", ".join(f"{name}={held.get(name)} instead of {wanted[name]}" for name in names)
    raise ConfigError(f"{origin}: was imported with {sizes}; set backbone.size={held['size']} and these sizes")


def fit(headers: State, model: nn.Module, naming: Naming, lacking: list[str], origin: str) -> tuple[list[str], list[str]]:
    """As `plan_start`, for weights of these names and shapes, of which the import found `lacking` missing.

    A head for another number of answers stays as drawn.
    """
    own, fitted = model.state_dict(), naming.fit_start(headers, model)
    other = [name for name in fitted if name in own and own[name].shape != fitted[name].shape]
    drawn = tuple(head for head in naming.answer_heads if any(name.startswith(head) for name in other))
    fitted = {name: x for name, x in fitted.items() if not name.startswith(drawn)}
    missing, unexpected = official.match(fitted, model, (*naming.may_be_missing, *lacking), naming.may_be_unexpected, origin)
    return [name for name in fitted if name not in unexpected], missing
