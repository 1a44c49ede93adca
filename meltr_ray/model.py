"""The module that is trained: made, loaded and scored. Needs no engine, so evaluate.py starts without DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import torch
from safetensors.torch import load_file
from torch import nn

from meltr_ray.backbones.allinone import AllInOne
from meltr_ray.backbones.start import check_start, load_start
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
from meltr_ray.tuning import check_tuning, prepare_for_tuning

RETRIEVAL_HEADS = ("itm_score", "mlm_score", "projections", "rank_output")


def make_model(config: Config, vocabulary: Vocabulary, feature_size: int, start: bool = True) -> nn.Module:
    """The module that is trained: the losses around their backbone, weights drawn from the current generator.

    `start`: read the imported checkpoint that training starts from, where the settings name one.
    """
    model = build(config, len(vocabulary), feature_size)
    if config.backbone.weights and start:
        load_start(model.backbone, config.backbone, len(vocabulary))
    prepare_for_tuning(model, config)
    return model


def build(config: Config, vocabulary_size: int, feature_size: int) -> nn.Module:
    """That module as its backbone's authors have it, before anything is loaded, frozen or added."""
    match config.backbone.name:
        case "univl":
            return UniVLLosses(UniVL(config.backbone, vocabulary_size, feature_size), config.task)
        case "violet":
            return VioletLosses(Violet(config.backbone, vocabulary_size), config.task)
        case "allinone":
            return AllInOneLosses(AllInOne(config.backbone, vocabulary_size, RETRIEVAL_HEADS), config.task)


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
    """VIOLET's tokens for clips that come without any; fitted once for a data folder."""
    backbone = config.backbone
    return ensure_visual_tokens(config.data.folder, backbone.image_size, backbone.patch_pixels, backbone.num_visual_tokens,
                                backbone.num_frames, report=report)  # fmt: skip


def make_ready(config: Config, report: Callable[[str], None] = print) -> None:
    """What has to be checked or made before any worker starts: called on the driver, on a prepared data folder.

    Raises:
        ConfigError: the data set lacks videos that the backbone reads; the vocabulary is no file of word pieces; the checkpoint
            to start from is of another backbone, size or vocabulary; a module to tune doesn't exist.
    """
    vocabulary, store = open_vocabulary(config), open_split(config, "train")
    check_start(config.backbone, len(vocabulary), store.feature_size)
    with torch.device("meta"):  # names and shapes alone
        check_tuning(config, build(config, len(vocabulary), store.feature_size))
    if config.backbone.name == "violet":
        visual_tokens(config, report)


def caveats(config: Config) -> list[str]:
    """What a reader of the results has to know of how the model's inputs were made."""
    if "masked_patch" not in config.task.loss_set or open_split(config, "train")[0].vq_tokens is not None:
        return []
    return [f"masked_patch: {config.backbone.num_visual_tokens} k-means tokens of train patches stand in for DALL-E's visual tokens, "
            "which the data set lacks."]  # fmt: skip


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
    model = make_model(config, vocabulary, store.feature_size, start=False).to(device)
    load_weights(model, load_file(weights), weights)
    return retrieval.evaluate(model, store, make_inputs(config, vocabulary), device, config.task.evaluate_captions)
