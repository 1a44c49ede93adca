"""Video as a workload: one of three backbones on one of five tasks, over a prepared folder of clips."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, ClassVar

from meltr_ray.video.backbones.named import BACKBONES, losses_of
from meltr_ray.video.backbones.settings import CONTROL_LOSSES, BackboneConfig
from meltr_ray.video.backbones.univl.settings import UniVLConfig
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.tasks.settings import TASKS, TaskConfig
from meltr_ray.workload import Metric, Workload

if TYPE_CHECKING:  # `--help` needs neither torch nor pyarrow
    from types import ModuleType

    import numpy as np
    import torch
    from torch import nn

    from meltr_ray.video.clips.folder import DataFolder
    from meltr_ray.video.tasks.examples import Examples


class Video(Workload):
    """Fine-tuning of UniVL, VIOLET or All-in-one."""

    data: DataConfig = field(default_factory=DataConfig)
    """The data set."""
    backbone: BackboneConfig = field(default_factory=UniVLConfig)
    """The model."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """What it is trained for."""

    conf = "video"
    groups = {"data": DataConfig, "backbone": BackboneConfig, "task": TaskConfig}
    choices = {"backbone": BACKBONES, "task": {name: {"name": name} for name in TASKS}}
    aliases = {"task.loss_set": "losses.set", "task.primary": "losses.primary",
               "data.loader_workers": "train.loader_workers", "data.prefetch": "train.prefetch"}  # fmt: skip
    paths = ("data.folder", "data.vocabulary", "backbone.weights")
    prediction_settings = ("data.folder", "task.evaluate_captions", "task.dual_softmax", "task.rerank", "task.beam_size",
                           "task.length_penalty", "task.max_caption_words")  # fmt: skip
    preparation_settings = ("data.held_out", "data.features")
    preloaded = ("pyarrow.parquet", "av", "PIL.Image", "sklearn.cluster", "tokenizers")
    controls = CONTROL_LOSSES
    rehearsed = False  # tests hold what a rehearsal would find, and a published size doesn't fit every driver
    root = "backbone"

    # --- losses and metrics

    @property
    def losses(self) -> tuple[str, ...]:
        return losses_of(self.backbone.name, self.task.name).offered

    @property
    def primaries(self) -> tuple[str, ...]:
        return losses_of(self.backbone.name, self.task.name).primaries

    @property
    def default_losses(self) -> tuple[str, ...]:
        return losses_of(self.backbone.name, self.task.name).default

    @property
    def loss_sets(self) -> dict[str, list[str]]:
        return {name: chosen for name, chosen in self.backbone.loss_sets.items() if set(chosen) <= set(self.losses)}

    @property
    def metrics(self) -> dict[str, Metric]:
        return self._task.METRICS

    @property
    def reported_metrics(self) -> dict[str, Metric]:
        return getattr(self._task, "REPORTED", {})

    @property
    def prediction_columns(self) -> dict[str, Any]:
        from meltr_ray.video.tasks.views import COLUMNS

        return COLUMNS[self.task.name]

    @property
    def prediction_view(self) -> dict[str, Any]:
        from meltr_ray.video.tasks.views import VIEWS

        return VIEWS[self.task.name]

    @property
    def encoders(self) -> tuple[tuple[str, ...], ...]:
        """Those that the model has on this data; before the data is prepared, all."""
        prepared = (Path(self.data.folder) / "manifest.json").is_file()
        absent = self.backbone.of_frames if prepared and not self._manifest["feature_size"] else ()
        present = [tuple(name for name in modules if name not in absent) for modules in self.backbone.encoders]
        return tuple(modules for modules in present if modules)

    @property
    def loader_workers(self) -> int:
        """Decoding takes longer than a step of a small model, and making batches of features next to nothing."""
        return int(self.backbone.reads_pixels)

    @property
    def resamples(self) -> int:
        """None of captions: their metrics take seconds."""
        return 0 if self.task.name == "captioning" else 100

    def resolve(self, primary: str, loss_set: list[str]) -> None:
        super().resolve(primary, loss_set)
        self.task.resolve(primary, loss_set)

    def check(self, config: Any) -> None:
        self.backbone.check(self.data, self.task)
        self.needed = dict.fromkeys(
            ["train"] + ["meta"] * config.draws_from_meta, (config.train.batch_size, max(1, config.train.num_workers))
        )

    # --- what a run asks for

    def module(self) -> nn.Module:
        from meltr_ray.video.checkpoints.start import load_start

        model = self.structure()
        if self.backbone.weights:
            load_start(model.backbone, self.backbone, len(self.folder.vocabulary))
        return model

    def structure(self) -> nn.Module:
        return self.backbone.module(self.task, self.folder)

    def examples(self, split: str) -> Examples:
        return self._task.examples(self.folder.split(split), self)

    def batch(self, examples: list[Any], generator: np.random.Generator) -> Any:
        return self.inputs.batch(examples, generator)

    def predict(self, module: nn.Module, examples: Sequence[Any], device: torch.device) -> list[dict[str, Any]]:
        return self._task.predict(module, examples, self.inputs, device, self.task)

    def measure(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        return self._task.metrics(rows)

    def report(self, rows: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, tuple[float, float]], list[str]]:
        return self._task.report(rows)

    # --- on the driver

    needed: ClassVar[dict[str, tuple[int, int]]] = {}
    """Split that training draws from -> (batch size, workers); of an instance, once its configuration is known."""

    def prepare(self, report: Callable[[str], None]) -> None:
        """Make or check the data folder, and what the backbone needs of it.

        Raises:
            ConfigError: the data set lacks what the backbone reads or the task asks; the vocabulary is no file of word pieces; the
                checkpoint to start from is of another backbone, size or vocabulary.
        """
        from meltr_ray.training.batches import check_enough
        from meltr_ray.video.checkpoints.start import check_start
        from meltr_ray.video.clips.schema import SPLITS
        from meltr_ray.video.clips.vocabulary import Vocabulary
        from meltr_ray.video.datasets.prepare import ensure_prepared

        if self.data.vocabulary:  # before anything is written
            Vocabulary(self.data.vocabulary)
        ensure_prepared(self.data.name, Path(self.data.folder), report, self.data.variant)
        for split in SPLITS if self.folder.reads_pixels else ():
            self.folder.split(split).check_files()
        check_start(self.backbone, len(self.folder.vocabulary), self.folder.feature_size)
        for split, (batch_size, workers) in self.needed.items():  # what follows may take minutes
            check_enough(self, split, len(self.examples(split)), batch_size, workers)
        self.backbone.prepare(self.data, report)

    def verify(self) -> None:
        from meltr_ray.video.clips.store import check_folder

        check_folder(Path(self.data.folder))

    def caveats(self) -> list[str]:
        from meltr_ray.video.tasks import question_answering

        train = self.folder.split("train")
        found = self.backbone.caveats(self.loss_set, train)
        if self.task.name == "open_ended" and (count := question_answering.left_out(train, self)):
            found.append(f"{count} train questions have an answer outside the vocabulary and train nothing.")
        return found

    def fingerprint(self) -> dict[str, str]:
        return self.folder.checksums

    def identity(self) -> dict[str, str]:
        from meltr_ray.video.checkpoints.imports import CHECKSUM, read_facts

        clips = [shard["sha256"] for entry in self._manifest["splits"].values() for shard in entry["shards"]]
        weights = self.backbone.weights and read_facts(self.backbone.weights).get(CHECKSUM)
        return {"clips": hashlib.sha256("".join(clips).encode()).hexdigest()} | ({"weights": weights} if weights else {})

    def baselines(self) -> dict[str, dict[str, dict[str, float]]]:
        return self._manifest["baselines"].get(self.task.name, {})

    def describe(self) -> dict[str, Any]:
        known = {key: self._manifest[key] for key in ("name", "description", "rows")}
        return known | {"model": f"{self.backbone.name}, size {self.backbone.size}", "task": self.task.name}

    def title(self) -> str:
        return self.data.name if self.task.name == "retrieval" else f"{self.data.name}_{self.task.name}"

    def pictures(self, split: str) -> dict[str, bytes]:
        from meltr_ray.video.clips.thumbnails import thumbnails

        return thumbnails(self.data.folder, split)

    # --- opened once in a process

    @cached_property
    def folder(self) -> DataFolder:
        from meltr_ray.video.clips.folder import DataFolder

        return DataFolder.open(self)

    @cached_property
    def inputs(self) -> Any:
        """What turns clips, captions and questions into the backbone's batches."""
        return self.backbone.inputs(self.data, self.task, self.folder)

    @property
    def _manifest(self) -> dict[str, Any]:
        from meltr_ray.video.clips.store import load_manifest

        return load_manifest(Path(self.data.folder))

    @property
    def _task(self) -> ModuleType:
        from meltr_ray.video.tasks.named import module_of

        return module_of(self.task.name)
