"""Settings of a run as a whole and of a sweep: the configuration that every command makes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Optional

from meltr_ray.config.outer_level import AidConfig, CombinerConfig
from meltr_ray.config.training import DataConfig, EngineConfig, OptimizerConfig, TrainConfig, TuningConfig
from meltr_ray.errors import check, check_at_least, check_choice
from meltr_ray.video.backbones.settings import BackboneConfig, UniVLConfig
from meltr_ray.video.tasks.settings import TaskConfig


@dataclass(kw_only=True)
class SweepConfig:
    """Which configurations are compared, and how often each is repeated."""

    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Configurations: name -> dotted settings that differ from the rest of this configuration."""
    ours: str = "meltr"
    """Arm that the report is about, named before any result is seen."""
    baselines: list[str] = field(default_factory=lambda: ["uniform", "primary_only"])
    """Arms that `ours` is compared with, pair by pair over the same seeds; the first leads the report."""
    seeds: int = 6
    """Seeds of `ours` and of each baseline; 6 is the least with which a two-sided sign test can reach 0.05."""
    other_seeds: int = 2
    """Seeds of every other arm."""
    learning_rates: list[float] = field(default_factory=list)
    """Learning rates of w tried for `ours` and each baseline before the comparison, each the same way; empty: none."""
    learning_rate_seeds: int = 1
    """Seeds of the learning-rate search, apart from those of the comparison."""
    leave_one_out: bool = True
    """Add an arm for every auxiliary loss of `ours`, without it."""
    add_one_in: bool = False
    """Add an arm for every auxiliary loss of `ours`, with the primary loss and it alone."""
    space: list[str] = field(default_factory=list)
    """Names of AID settings to search over (tune_spaces/aid.py), each as a variation of `ours`; empty: none."""
    search: str = "random"
    """How `space` is searched: `grid` (every combination) or `random`."""
    samples: int = 8
    """Configurations that a random search draws."""
    max_concurrent: int = 2
    """Trials that run at the same time."""
    progress_every: float = 10.0
    """Seconds between two progress lines where the output is not a terminal."""

    def __post_init__(self):
        for name, low in dict(seeds=1, other_seeds=1, learning_rate_seeds=1, samples=1, max_concurrent=1).items():
            check_at_least(f"sweep.{name}", getattr(self, name), low)
        check_choice("sweep.search", self.search, ("grid", "random"))
        for arm in [self.ours, *self.baselines] if self.arms else []:
            check(arm in self.arms, "sweep.ours" if arm == self.ours else "sweep.baselines", arm,
                  f"no such arm; use one of {', '.join(self.arms)}")


@dataclass(kw_only=True)
class Config:
    """One run of this project; a sweep makes one for each trial."""

    name: Optional[str] = None
    """Name of the output folder; default: the experiment's name, or that of the data set and of the task."""
    output: str = "outputs"
    """Folder under which runs and sweeps are written, relative to the working folder."""
    resume: Optional[str] = None
    """Folder of an interrupted run or sweep to go on with, with the settings that it was started with."""
    source: Optional[str] = None
    """Folder of the original distribution of a data set; used by prepare.py alone."""
    checkpoint: Any = None
    """evaluate.py: folder of a finished run or trial. prepare.py: checkpoint file to import, or a list, `[bert.bin,swin.pth]`, of files that each cover a part of the backbone; with `export`, folder of a run or of an imported checkpoint."""
    export: Optional[str] = None
    """File that prepare.py writes the weights of `checkpoint` to, under the names and in the form of the backbone's authors; with `extract`, the folder of the features."""
    extract: Optional[str] = None
    """prepare.py: folder of videos, and those below it, whose frame features are taken by the model in `extractor` and written to the folder `export`, where an importer finds them."""
    extractor: Optional[str] = None
    """prepare.py: folder of a Hugging Face vision model and its image processor, as `save_pretrained` writes them."""
    frames_per_second: float = 1.0
    """prepare.py: frames of a video that `extract` takes features of, a second."""
    split: str = "validation"
    """Split that evaluate.py scores: `validation`, `test`, `meta` or `train`."""
    cluster: str = "local"
    """Ray cluster: `local` starts one on this machine, `auto` joins the one found, else its address."""
    seed: int = 0
    """Seed of weights, data order, masks and dropout; the same seed pairs two configurations."""
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=UniVLConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    combiner: CombinerConfig = field(default_factory=CombinerConfig)
    aid: AidConfig = field(default_factory=AidConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    @property
    def draws_from_meta(self) -> bool:
        """Whether training takes batches of the meta split."""
        return self.combiner.name == "meltr" and self.aid.meta_batch == "held_out"

    def __post_init__(self):
        check_at_least("seed", self.seed, 0)
        check_choice("split", self.split, ("train", "meta", "validation", "test"))
        self.task.resolve(self.backbone)
        if isinstance(self.combiner.weights, (list, tuple)):
            check(len(self.combiner.weights) == len(self.task.loss_set), "combiner.weights", self.combiner.weights,
                  f"must have one number per loss of task.loss_set; give {len(self.task.loss_set)}")
        check(self.data.max_words <= self.backbone.max_position_embeddings, "data.max_words", self.data.max_words,
              f"longer than backbone.max_position_embeddings={self.backbone.max_position_embeddings}; lower it")
        if self.task.name == "captioning":
            check(self.task.max_caption_words <= self.backbone.max_position_embeddings, "task.max_caption_words",
                  self.task.max_caption_words, f"longer than backbone.max_position_embeddings={self.backbone.max_position_embeddings}; lower it")
        check(not self.data.word_dropout or isinstance(self.backbone, UniVLConfig), "data.word_dropout", self.data.word_dropout,
              f"backbone={self.backbone.name} has none; leave it out")
        if isinstance(self.backbone, UniVLConfig):
            check(self.data.max_frames <= self.backbone.max_position_embeddings, "data.max_frames", self.data.max_frames,
                  f"longer than backbone.max_position_embeddings={self.backbone.max_position_embeddings}; lower it")
            more = " and as many rows of audio" if self.task.name == "sentiment" else ""
            total = self.data.max_words + self.data.max_frames * (2 if more else 1)
            check(total <= self.backbone.max_cross_position_embeddings, "backbone.max_cross_position_embeddings",
                  self.backbone.max_cross_position_embeddings, f"less than words plus frames{more}; raise it to {total}")


ABOUT_THE_COMMAND = ("name", "output", "resume", "source", "checkpoint", "export", "extract", "extractor",
                     "frames_per_second", "split", "cluster")
"""Settings of a command, not of what it computes: no columns of the results table, free to change on resuming."""


def to_flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of every setting, e.g. `aid.solver` -> `cg`; the columns of the results table."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= to_flat(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat
