"""What every machine of a cluster must have before the first trial: the paths of the run, the versions of the driver, one text of the code."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meltr_ray.cluster.travel import LARGEST, own_package, texts
from meltr_ray.config import Config
from meltr_ray.config.run import LOCAL, paths
from meltr_ray.config.workload_file import TRAVELLED
from meltr_ray.errors import check
from meltr_ray.loggers.named import logger
from meltr_ray.storage.address import is_address

PACKAGES = ("torch", "ray", "deepspeed")
ANSWER_SECONDS = 120
"""In which a machine has to say what it has; its first Python process is started for that."""
ABOUT_FOLDERS = ("resume", "checkpoint")
"""Paths that the driver alone reads, or that are the folder of the run itself."""


def check_machines(config: Config, folder: Path) -> None:
    """Ask every machine that is in the cluster now; nothing is asked of a cluster that was started here.

    Args:
        folder: of the run or sweep: what the driver writes there has to be found by all.

    Raises:
        ConfigError: one lacks a path or has another version; names the machine.
    """
    if config.cluster == LOCAL:
        return
    wanted = {name: path for name, path in paths(config).items() if name not in ("output", *ABOUT_FOLDERS) and Path(path).exists()}
    marker = folder / f".seen-{secrets.token_hex(8)}"
    marker.write_text(marker.name, encoding="utf-8")
    try:
        modules = ["meltr_ray", *filter(None, [own_package(config.workload)])]
        packages = [*PACKAGES, *(logger(name).package for name in config.loggers)]
        asked = (str(marker), wanted, [str(path) for path in texts(config.workload)], modules, TRAVELLED, packages)
        here, answers = asker()(*asked), ask_all(*asked)
    finally:
        marker.unlink()
    for machine, found in answers.items():
        compare(machine, found, here, config, folder)


def compare(machine: str, found: dict[str, Any] | None, here: dict[str, Any], config: Config, folder: Path) -> None:
    """Raises ConfigError: what a machine has isn't what this one has."""
    check(
        found is not None,
        "cluster",
        config.cluster,
        f"machine {machine} didn't answer in {ANSWER_SECONDS} s; mend it, or take it out of the cluster",
    )
    check(
        found["marker"],
        *(("working_folder", config.working_folder) if is_address(config.output) else ("output", config.output)),
        f"machine {machine} doesn't see what was written in {folder} here; give a folder that all machines share",
    )
    for setting, path in found["missing"].items():
        check(False, setting, path, f"isn't there on machine {machine}; mount or copy it there, under the same path")
    for name, version in here["versions"].items():
        there = found["versions"].get(name)
        check(there == version, "cluster", config.cluster,
              f"machine {machine} has {name} {there or 'not at all'} and this one {version}; install {version} there")  # fmt: skip
    for name, (place, digest) in found["code"].items():
        check(place != "", "cluster", config.cluster,
              f"machine {machine} has no {name}, and what lies beside it is more than the {LARGEST >> 20} MiB that are sent; copy it there")  # fmt: skip
        check(digest == here["code"][name][1], "cluster", config.cluster,
              f"machine {machine} has another text of {name}, or of what lies beside it, at {place}; take it away there, or copy this one")  # fmt: skip


def asker() -> Callable[..., dict[str, Any]]:
    """A function that runs where this package may be missing: its text travels, and not its name."""

    def look(
        marker: str, wanted: dict[str, str], own: list[str], modules: list[str], travelled: str, packages: list[str]
    ) -> dict[str, Any]:
        import hashlib
        import os
        import platform
        from importlib import metadata, util

        def version(package: str) -> str | None:
            try:
                return metadata.version(package)
            except metadata.PackageNotFoundError:
                return None

        def digest(paths: list[str], top: str) -> str:
            found = hashlib.sha256()
            for path in sorted(paths):
                with open(path, "rb") as file:
                    found.update(os.path.relpath(path, top).encode() + b"\0" + file.read())
            return found.hexdigest()

        def folder_of(name: str) -> str:
            try:
                return list(util.find_spec(name).submodule_search_locations)[0]
            except (AttributeError, ImportError, ValueError):
                return ""

        code = {}
        for name in modules:
            top = folder_of(name)
            files = [os.path.join(folder, each) for folder, _, found in os.walk(top) for each in found if each.endswith(".py")]
            code[name] = top, digest(files, top)
        if own:
            first, there = os.path.dirname(own[0]), os.path.dirname(own[0])
            if not os.path.isfile(own[0]):  # then the one that was sent is taken
                there = folder_of(travelled)
            files = [os.path.join(there, os.path.relpath(path, first)) for path in own]
            code[os.path.basename(own[0])] = there, digest([path for path in files if os.path.isfile(path)], there)
        try:
            with open(marker, encoding="utf-8") as file:
                seen = file.read() == os.path.basename(marker)
        except OSError:
            seen = False
        return {
            "marker": seen,
            "missing": {name: path for name, path in wanted.items() if not os.path.exists(path)},
            "versions": {"Python": platform.python_version()} | {package: version(package) for package in packages},
            "code": code,
        }

    return look


def ask_all(*asked: Any) -> dict[str, dict[str, Any] | None]:
    """Machine -> what `asker` found there; None of one that doesn't answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(asker())
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    waiting = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(number, soft=False)).remote(*asked): f"{name} ({number[:8]})"
        for number, name in nodes.items()
    }
    ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=ANSWER_SECONDS)
    answers: dict[str, dict[str, Any] | None] = dict.fromkeys(waiting.values())
    for reference in ready:
        try:
            answers[waiting[reference]] = ray.get(reference)
        except ray.exceptions.RayError:  # it left meanwhile
            pass
    return answers
