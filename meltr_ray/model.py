"""The module that is trained: made, loaded and scored. Needs no engine, so evaluate.py starts without DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import torch
from safetensors.torch import load_file
from torch import nn

from meltr_ray.backbones.allinone import AllInOne
from meltr_ray.backbones.univl import UniVL
from meltr_ray.backbones.violet import Violet
from meltr_ray.config import Config, ConfigError
from meltr_ray.data.store import ClipStore
from meltr_ray.data.visual_tokens import VisualTokens, ensure_visual_tokens
from meltr_ray.data.vocabulary import Vocabulary
from meltr_ray.tasks import retrieval
from meltr_ray.tasks.allinone import AllInOneInputs, AllInOneLosses
from meltr_ray.tasks.retrieval import Inputs
from meltr_ray.tasks.univl import UniVLInputs, UniVLLosses
from meltr_ray.tasks.violet import VioletInputs, VioletLosses

RETRIEVAL_HEADS = ("itm_score", "mlm_score", "projections", "rank_output")


def make_model(config: Config, vocabulary: Vocabulary, feature_size: int) -> nn.Module:
    """The module that is trained: the losses around their backbone, weights drawn from the current generator."""
    match config.backbone.name:
        case "univl":
            return UniVLLosses(UniVL(config.backbone, len(vocabulary), feature_size), config.task)
        case "violet":
            return VioletLosses(Violet(config.backbone, len(vocabulary)), config.task)
        case "allinone":
            return AllInOneLosses(AllInOne(config.backbone, len(vocabulary), RETRIEVAL_HEADS), config.task)


def make_inputs(config: Config, vocabulary: Vocabulary) -> Inputs:
    """What turns clips and captions into that module's batches."""
    match config.backbone.name:
        case "univl":
            return UniVLInputs(vocabulary, config.data)
        case "violet":
            return VioletInputs(vocabulary, config.data, config.backbone, visual_tokens(config))
        case "allinone":
            return AllInOneInputs(vocabulary, config.data, config.backbone)


def visual_tokens(config: Config, report: Callable[[str], None] = print) -> VisualTokens:
    """VIOLET's tokens for clips that come without any; fitted once for a data folder, on the driver."""
    backbone = config.backbone
    return ensure_visual_tokens(config.data.folder, backbone.image_size, backbone.patch_pixels, backbone.num_visual_tokens,
                                backbone.num_frames, report=report)  # fmt: skip


def open_vocabulary(config: Config) -> Vocabulary:
    """The vocabulary that the settings name, else the data set's own."""
    return Vocabulary(config.data.vocabulary or Path(config.data.folder) / "vocabulary.txt")


def open_split(config: Config, split: str) -> ClipStore:
    """A split, with its videos where the backbone reads pixels."""
    return ClipStore(config.data.folder, split, videos=config.backbone.reads_pixels)


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], origin: Path) -> None:
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
    vocabulary, store = open_vocabulary(config), open_split(config, split)
    model = make_model(config, vocabulary, store.feature_size).to(device)
    load_weights(model, load_file(weights), weights)
    return retrieval.evaluate(model, store, make_inputs(config, vocabulary), device, config.task.evaluate_captions)
