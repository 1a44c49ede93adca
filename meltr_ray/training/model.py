"""The module that is trained: made, loaded and scored. Needs no engine, so evaluate.py starts without DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import torch
from safetensors.torch import load_file
from torch import nn

from meltr_ray.config import Config, ConfigError, check
from meltr_ray.training.checkpoint import weights_facts
from meltr_ray.training.tuning import check_tuning, prepare_for_tuning
from meltr_ray.video.backbones.allinone.losses import AllInOneInputs, AllInOneLosses, allinone_heads
from meltr_ray.video.backbones.allinone.model import AllInOne
from meltr_ray.video.backbones.univl.inputs import AudioScale, UniVLInputs
from meltr_ray.video.backbones.univl.losses import UniVLLosses
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.violet.losses import VioletInputs, VioletLosses
from meltr_ray.video.backbones.violet.model import Violet
from meltr_ray.video.backbones.violet.visual_tokens import VisualTokens, ensure_visual_tokens
from meltr_ray.video.checkpoints.start import check_start, load_start
from meltr_ray.video.clips.folder import DataFolder
from meltr_ray.video.clips.schema import SPLITS
from meltr_ray.video.tasks import captioning, question_answering, retrieval, sentiment
from meltr_ray.video.tasks.examples import Examples
from meltr_ray.video.tasks.reranking import check_reranking

TASKS = {
    "retrieval": retrieval,
    "multiple_choice": question_answering,
    "open_ended": question_answering,
    "captioning": captioning,
    "sentiment": sentiment,
}
"""Task -> its module: METRIC, `examples`, `predict`, `metrics` and `report`."""


def task_module(config: Config) -> ModuleType:
    return TASKS[config.task.name]


def make_model(config: Config, data: DataFolder, start: bool = True) -> nn.Module:
    """The module that is trained: the losses around their backbone, weights drawn from the current generator.

    `start`: read the imported checkpoint that training starts from, where the settings name one.
    """
    model = build(config, data)
    if config.backbone.weights and start:
        load_start(model.backbone, config.backbone, len(data.vocabulary))
    prepare_for_tuning(model, config)
    return model


def build(config: Config, data: DataFolder) -> nn.Module:
    """That module as its backbone's authors have it, before anything is loaded, frozen or added."""
    backbone, task, num_words = config.backbone, config.task, len(data.vocabulary)
    match backbone.name:
        case "univl":
            heads = dict(task=task.name, num_answers=data.num_answers, audio_size=data.audio_size)
            return UniVLLosses(UniVL(backbone, num_words, data.feature_size, **heads), task)
        case "violet":
            return VioletLosses(Violet(backbone, num_words, task.name, data.num_answers), task)
        case "allinone":
            return AllInOneLosses(AllInOne(backbone, num_words, allinone_heads(task), data.num_answers), task)


def make_inputs(config: Config, data: DataFolder) -> Any:
    """What turns clips, captions and questions into that module's batches."""
    common = dict(task=config.task, answers=data.answers)
    match config.backbone.name:
        case "univl":
            return UniVLInputs(data.vocabulary, config.data, **common, backbone=config.backbone, feature_size=data.feature_size,
                               audio=audio_scale(config, data))  # fmt: skip
        case "violet":
            return VioletInputs(data.vocabulary, config.data, config.backbone, visual_tokens(config), **common)
        case "allinone":
            return AllInOneInputs(data.vocabulary, config.data, config.backbone, **common)


def audio_scale(config: Config, data: DataFolder) -> AudioScale | None:
    """How audio is standardised: by the train split; None where the task doesn't read it."""
    return AudioScale.of(data.split("train")) if config.task.name == "sentiment" and data.audio_size else None


def make_examples(config: Config, data: DataFolder, split: str) -> Examples:
    """What the task draws batches from, and is scored on."""
    return task_module(config).examples(data.split(split), config)


def visual_tokens(config: Config, report: Callable[[str], None] = print) -> VisualTokens:
    """VIOLET's tokens for clips that come without any; fitted once for a data folder."""
    backbone = config.backbone
    return ensure_visual_tokens(config.data.folder, backbone.image_size, backbone.patch_pixels, backbone.num_visual_tokens,
                                backbone.num_frames, report=report)  # fmt: skip


def make_ready(config: Config, report: Callable[[str], None] = print) -> dict[str, int]:
    """What has to be checked or made before any worker starts: called on the driver, on a prepared data folder.

    Returns the number of examples of each split.

    Raises:
        ConfigError: the data set lacks what the backbone reads or the task asks; the vocabulary is no file of word pieces; the
            checkpoint to start from is of another backbone, size or vocabulary; a module to tune doesn't exist.
    """
    check_reranking(config)
    data = DataFolder.open(config)
    for split in SPLITS if data.reads_pixels else ():
        data.split(split).check_files()
    sizes = {split: len(make_examples(config, data, split)) for split in SPLITS}
    check_start(config.backbone, len(data.vocabulary), data.feature_size)
    with torch.device("meta"):  # names and shapes alone
        check_tuning(config, build(config, data))
    if config.backbone.name == "violet":
        visual_tokens(config, report)
    return sizes


def caveats(config: Config) -> list[str]:
    """What a reader of the results has to know of how the model's inputs were made."""
    found, train = [], DataFolder.open(config).split("train")
    if "masked_patch" in config.task.loss_set and train[0].vq_tokens is None:
        found.append(f"masked_patch: {config.backbone.num_visual_tokens} k-means tokens of train patches stand in for DALL-E's visual "
                     "tokens, which the data set lacks.")  # fmt: skip
    if config.task.name == "open_ended" and (count := question_answering.left_out(train, config)):
        found.append(f"{count} train questions have an answer outside the vocabulary and train nothing.")
    return found


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


def predict(model: nn.Module, config: Config, examples: Examples, inputs: Any, device: torch.device) -> list[dict[str, Any]]:
    """Rows of predictions for `examples`, in evaluation mode and without gradients; mode and generators are put back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)  # All-in-one shuffles patches in evaluation, too, as published: the same way each time
            return task_module(config).predict(model, examples, inputs, device, config.task)
    finally:
        model.train(training)


def predict_saved(config: Config, weights: Path, split: str, device: torch.device = torch.device("cpu")) -> list[dict[str, Any]]:
    """`predict` of saved weights on a split; in this process alone.

    Raises:
        ConfigError: the data folder has another vocabulary, or other answers, than the run that wrote the weights.
    """
    check_reranking(config)
    data = DataFolder.open(config)
    known = weights_facts(weights).get("checksums", {})
    for name, value in data.checksums.items():
        check(known.get(name, value) == value, "data.folder", data.path,
              f"has another {name}.txt than the run, whose numbers would stand for other words; give a folder with the same one")  # fmt: skip
    model = make_model(config, data, start=False).to(device)
    load_weights(model, load_file(weights), weights)
    return predict(model, config, make_examples(config, data, split), make_inputs(config, data), device)
