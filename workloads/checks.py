"""What a command checks, and makes, before anything starts: the machine, the cluster, loggers, data, the folder of its output."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from meltr_ray.config import Config
from meltr_ray.config.paths import check_name, check_writable
from meltr_ray.config.run import LOCAL
from meltr_ray.config.user_code import called
from meltr_ray.errors import ConfigError, check
from meltr_ray.storage.address import is_address, parsed
from meltr_ray.workload import made_anew
from workloads.remote import is_taken

OF_THE_RUN = ("output", "working_folder", "engine.deepspeed")
"""Paths that are no workload's."""


def new_folder(config: Config, kind: str, chosen: bool) -> Path:
    """A folder for the output that does not exist yet: `<output>/<kind>/<name>`, numbered unless the name was given.

    Raises:
        ConfigError: the name was given and its folder exists; nothing is overwritten.
    """
    name = config.name or called(config.workload, "title", config.workload.title)
    check(
        isinstance(name, str) and name != "",
        "workload",
        config.workload.source,
        f"title gave {name!r}; return a name of letters, digits, _ and -, for folders",
    )
    check_name("name", name)
    folder = config.local_output / kind / name
    where = ("working_folder", config.working_folder) if is_address(config.output) else ("output", config.output)
    check_writable(*where, folder.parent)

    def exists(folder: Path) -> bool:
        return os.path.lexists(folder) or (is_address(config.output) and is_taken(config, f"{kind}/{folder.name}"))

    if chosen and exists(folder):
        place: object = folder
        if is_address(config.output):
            place = parsed("output", config.output) / kind / name
            check(
                is_taken(config, f"{kind}/{name}"),
                "name",
                name,
                f"{folder} is of another sweep or run; move it away, or choose another name",
            )
        raise ConfigError(f"name={name}: {place} exists; go on with resume={place} or choose another name")
    number = 1
    while exists(folder):
        number += 1
        folder = folder.with_name(f"{name}-{number}")
    return folder.absolute()


def make_paths_absolute(config: Config, settings: DictConfig | None = None) -> None:
    """In place, of a configuration and of settings: workers run in other folders."""
    inside = tuple(config.workload.groups)
    for path in (*OF_THE_RUN, *config.workload.paths):
        bare = path.partition(".")[0] in inside
        written = path if bare or path in OF_THE_RUN else f"workload.{path}"
        *holders, name = (f"workload.{path}" if bare else written).split(".")
        holder = config
        for each in holders:
            holder = getattr(holder, each)
        if path == "output" and is_address(config.output):
            continue
        if (value := getattr(holder, name)) is not None:
            setattr(holder, name, str(Path(value).absolute()))
        if settings is not None and (value := OmegaConf.select(settings, written)) is not None:
            OmegaConf.update(settings, written, str(Path(value).absolute()))


def check_machine(config: Config) -> None:
    """Refuse what this machine can't run.

    Raises:
        ConfigError: no GPU where one was asked for; more processes than there are CPUs.
    """
    if config.train.use_gpu:
        import torch

        if config.cluster == LOCAL and not torch.cuda.is_available():
            raise ConfigError("train.use_gpu=True: this machine has no GPU that torch can use; set train.use_gpu=false")
    each = {"train.threads": config.train.threads, "train.cpus_per_worker": config.train.cpus}
    dearest = max(each, key=lambda name: each[name])
    workers, available = config.train.num_workers * each[dearest], os.cpu_count() or 1
    if config.cluster == LOCAL and not config.train.num_workers:
        check(each[dearest] <= available, dearest, each[dearest], f"this machine has {available} CPUs; lower it")
    loaders, most = config.train.loader_workers or 0, max(8, 2 * available)
    if config.cluster == LOCAL:
        check(loaders * max(1, config.train.num_workers) <= most, "train.loader_workers", loaders,
              f"{loaders * max(1, config.train.num_workers)} processes for {available} CPUs; lower it")  # fmt: skip
    if config.cluster == LOCAL and workers > available:
        raise ConfigError(f"train.num_workers={config.train.num_workers}: {workers} CPUs are needed and this machine has {available}; "
                          f"lower it or {dearest}")  # fmt: skip


def check_cluster(config: Config) -> None:
    """Raises ConfigError: no Ray cluster answers at `cluster`."""
    if config.cluster != LOCAL:
        from meltr_ray.cluster.connection import check_answers

        check_answers(config.cluster)


def check_loggers(config: Config) -> None:
    """Raises ConfigError: one of `loggers` would show nothing."""
    if config.loggers:
        from meltr_ray.loggers.named import check_loggers as check_each

        check_each(config.loggers)


def prepare(config: Config) -> None:
    """What the workload has to make or check before any worker starts. What it keeps on itself is left behind, as workers make it anew."""
    called(config.workload, "prepare", lambda: config.workload.prepare(print))
    config.workload = made_anew(config.workload)
