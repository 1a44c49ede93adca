"""Settings of a run as a whole: the configuration that every command makes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from meltr_ray.bounds import bounded, check_settings
from meltr_ray.config.declared import check_declared
from meltr_ray.config.losses import LossesConfig
from meltr_ray.config.outer_level import AidConfig, CombinerConfig
from meltr_ray.config.paths import check_local, check_name, check_path, check_place
from meltr_ray.config.sweep import SweepConfig
from meltr_ray.config.training import EngineConfig, OptimizerConfig, TrainConfig, TuningConfig
from meltr_ray.config.user_code import called
from meltr_ray.errors import check, check_choice
from meltr_ray.storage.address import is_address, parsed
from meltr_ray.workload import Workload

LOCAL = "local"
"""Setting `cluster` of a cluster of our own."""


@dataclass(kw_only=True)
class Config:
    """One run of this project; a sweep makes one for each trial."""

    name: Optional[str] = None
    """Name of the output folder; default: the experiment's name, or that of the data set and of the task."""
    output: str = "outputs"
    """Folder under which runs and sweeps are written, relative to the working folder; or an address of object storage, `s3://bucket/path` or
    `gs://bucket/path`, to which they are copied while they go on (docs/cluster.md)."""
    working_folder: str = "outputs"
    """Where `output` or `resume` is an address: the folder under which runs and sweeps are written here; all machines of a cluster share it."""
    resume: Optional[str] = None
    """Folder or address of an interrupted run or sweep to go on with, with the settings that it was started with."""
    checkpoint: Optional[str] = None
    """Folder or address of a finished run or trial that evaluate.py scores."""
    split: str = "validation"
    """Split that evaluate.py scores: `validation`, `test`, `meta` or `train`."""
    cluster: str = LOCAL
    """Ray cluster: `local` starts one on this machine, `auto` joins the one found, else its address."""
    loggers: list[str] = field(default_factory=list)
    """Trackers that show the rows of the results table besides: tensorboard, mlflow, wandb, such as [tensorboard,wandb]."""
    seed: int = bounded(0, 0, 2**31 - 1)
    """Seed of weights, data order, masks and dropout; the same seed pairs two configurations."""
    workload: Workload = field(default_factory=Workload)
    losses: LossesConfig = field(default_factory=LossesConfig)
    combiner: CombinerConfig = field(default_factory=CombinerConfig)
    aid: AidConfig = field(default_factory=AidConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    @property
    def local_output(self) -> Path:
        """`output`, or the folder here whose copy is there."""
        return parsed("output", self.output).below(self.working_folder) if is_address(self.output) else Path(self.output)

    @property
    def draws_from_meta(self) -> bool:
        """Whether training takes batches of the meta split."""
        from meltr_ray.combining.named import WAYS

        return WAYS[self.combiner.name].learns and self.aid.meta_batch == "held_out"

    @property
    def num_loaders(self) -> int:
        """Processes that make batches, for each worker."""
        return self.workload.loader_workers if self.train.loader_workers is None else self.train.loader_workers

    def __post_init__(self):
        from meltr_ray.combining.named import WAYS

        check_settings("", self)
        if self.name is not None:
            check_name("name", self.name)
        check_path("working_folder", self.working_folder)
        check_place("output", self.output)
        for setting, path in paths(self).items():
            if setting not in PLACES:
                check_local(setting, path)
        for setting in (each for each in ("resume", "checkpoint") if is_address(str(getattr(self, each) or ""))):
            parsed(setting, getattr(self, setting))
        check_choice("split", self.split, ("train", "meta", "validation", "test"))
        if self.loggers:
            from meltr_ray.loggers.named import check_names

            check_names(self.loggers)
        check_declared(self.workload)
        self.losses.resolve(self.workload)
        called(self.workload, "resolve", lambda: self.workload.resolve(self.losses.primary, self.losses.set))
        known = getattr(self.workload, "primary", None), list(getattr(self.workload, "loss_set", ()))
        check(known == (self.losses.primary, self.losses.set), "workload", self.workload.source,
              "resolve doesn't keep what it is told; call super().resolve(primary, loss_set) in it")  # fmt: skip
        weights, one = self.combiner.weights, self.workload.per_example
        if isinstance(weights, (list, tuple)):
            check(
                len(weights) == len(self.losses.set),
                "combiner.weights",
                weights,
                f"must have one number per loss of losses.set; give {len(self.losses.set)}",
            )
        check(
            self.combiner.name != "own" or self.workload.defines("combiner"),
            "combiner.name",
            "own",
            f"{type(self.workload).__name__} defines no combiner; write the method, or use combiner.name=meltr",
        )
        check(
            WAYS[self.combiner.name].per_example or not one,
            "combiner.name",
            self.combiner.name,
            "combines losses, and this workload has a number for each example; use combiner.name=own or fixed",
        )
        way = WAYS[self.combiner.name]
        self.aid.meta_batch = self.aid.meta_batch or ("held_out" if way.held_out else "next")
        self.aid.num_meta_batches = self.aid.num_meta_batches or way.meta_batches
        check(
            not way.held_out or self.aid.meta_batch == "held_out",
            "aid.meta_batch",
            self.aid.meta_batch,
            f"combiner.name={self.combiner.name} judges by batches that training doesn't see; use held_out",
        )
        check(
            way.horizon is None or self.combiner.horizon <= self.train.steps,
            "combiner.horizon",
            self.combiner.horizon,
            f"looks beyond the end of training, train.steps={self.train.steps}; lower it",
        )
        way.check(self)
        check(
            not one or len(self.losses.set) == 1,
            "losses.set",
            self.losses.set,
            "a workload with a number for each example trains one loss; use losses.set=primary",
        )
        check(
            not (one and self.combiner.name == "own" and self.aid.gamma > 0),
            "aid.gamma",
            self.aid.gamma,
            "holds the training loss near the sum of the losses, which weights of examples have no use for; set it to 0",
        )
        check(
            not (one and self.combiner.average_losses),
            "combiner.average_losses",
            True,
            "each worker has examples of its own, so their losses have no mean over workers; set it to false",
        )
        check_exact_products(self.aid, self.engine.zero_stage)
        called(self.workload, "check", lambda: self.workload.check(self))


def check_exact_products(aid: AidConfig, zero_stage: int) -> None:
    """Raises ConfigError: a product needs whole weights, which ZeRO 3 keeps in shards."""
    from meltr_ray.hypergrad.products import HVP, JVP

    for name, products in (("product", JVP), ("hessian_product", HVP)):
        chosen = getattr(aid, name)
        check(zero_stage < 3 or chosen not in products or not products[chosen].whole, f"aid.{name}", chosen,
              "needs whole weights, of which engine.zero_stage=3 leaves each worker a part; use auto, one_sided or central, or engine.zero_stage=2")  # fmt: skip


def paths(config: Config) -> dict[str, str]:
    """Setting -> path, of all that are given; those of data and weights by the names under which they are written."""
    flat = to_flat(config)
    names = [
        "output",
        "resume",
        "checkpoint",
        "engine.deepspeed",
        *(f"workload.{path}" for path in config.workload.paths),
        *config.workload.paths,
    ]
    return {name: flat[name] for name in names if isinstance(flat.get(name), str)}


PLACES = ("output", "resume", "checkpoint")
"""Paths that may be addresses of object storage."""
ABOUT_THE_COMMAND = ("name", "output", "working_folder", "resume", "checkpoint", "split", "cluster", "loggers")
"""Settings of a command, not of what it computes: no columns of the results table, free to change on resuming."""


def to_flat(config: Any) -> dict[str, Any]:
    """Dotted key -> value of every setting, e.g. `aid.solver` -> `cg`; older names of settings are left out.

    A workload's groups stand without `workload.` in front, as they are written.
    """
    flat, workload = _flat(config, ""), config.workload
    bare = tuple(f"workload.{group}." for group in workload.groups)
    flat = {key.removeprefix("workload.") if key.startswith(bare) else key: value for key, value in flat.items()}
    return {key: value for key, value in flat.items() if key not in workload.aliases}


def recorded(config: Any) -> dict[str, Any]:
    """Those that the results table keeps of a run: not the command's, and not the sweep's, which sweep.json has."""
    return {key: value for key, value in to_flat(config).items() if key not in ABOUT_THE_COMMAND and not key.startswith("sweep.")}


def _flat(config: Any, prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= _flat(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat


def workload_settings(config: Config) -> dict[str, Any]:
    """Those that are the workload's own."""
    groups = ("workload.", *(f"{group}." for group in config.workload.groups))
    return {name: value for name, value in to_flat(config).items() if name.startswith(groups)}
