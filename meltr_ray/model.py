"""The module that is trained: made, loaded and scored. Needs no engine, so evaluate.py starts without DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from meltr_ray.backbones.univl import UniVL
from meltr_ray.config import Config, ConfigError
from meltr_ray.data.store import ClipStore
from meltr_ray.data.vocabulary import Vocabulary
from meltr_ray.tasks import retrieval
from meltr_ray.tasks.retrieval import Retrieval


def make_model(config: Config, vocabulary: Vocabulary, feature_size: int) -> Retrieval:
    """The task's module around its backbone, weights drawn from the current generator."""
    return Retrieval(UniVL(config.backbone, len(vocabulary), feature_size), config.task)


def load_weights(model: Retrieval, weights: dict[str, torch.Tensor], origin: Path) -> None:
    """Put saved weights into `model`; a tied weight is saved once, under its first name.

    Raises:
        ConfigError: the file's names or shapes are those of another configuration.
    """
    wanted = dict(model.named_parameters()) | dict(model.named_buffers())
    wrong = sorted(wanted.keys() ^ weights.keys()) or sorted(n for n in wanted if wanted[n].shape != weights[n].shape)
    if wrong:
        raise ConfigError(f"checkpoint={origin}: {wrong[0]} does not fit this configuration; use the settings it was made with")
    model.load_state_dict(weights, strict=False)


def score(config: Config, weights: Path, split: str, device: torch.device = torch.device("cpu")) -> dict[str, float]:
    """Metrics of saved weights on a split; in this process alone."""
    vocabulary, store = Vocabulary(Path(config.data.folder) / "vocabulary.txt"), ClipStore(config.data.folder, split)
    model = make_model(config, vocabulary, store.feature_size).to(device)
    load_weights(model, load_file(weights), weights)
    return retrieval.evaluate(model, store, vocabulary, config.data, device)
