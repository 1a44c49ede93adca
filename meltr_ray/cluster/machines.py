"""What every machine of a cluster must have before the first trial: the paths of the run, the versions of the driver, this package."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meltr_ray.config import Config
from meltr_ray.config.run import LOCAL, paths
from meltr_ray.errors import check

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
        here, answers = asker()(str(marker), wanted), ask_all(str(marker), wanted)
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
        "output",
        config.output,
        f"machine {machine} doesn't see what was written in {folder} here; give a folder that all machines share",
    )
    for setting, path in found["missing"].items():
        check(False, setting, path, f"isn't there on machine {machine}; mount or copy it there, under the same path")
    for name, version in here["versions"].items():
        there = found["versions"].get(name)
        check(there == version, "cluster", config.cluster,
              f"machine {machine} has {name} {there or 'not at all'} and this one {version}; install {version} there")  # fmt: skip
    check(found["package"], "cluster", config.cluster, f"machine {machine} can't import meltr_ray; install it there, under the same path")


def asker() -> Callable[[str, dict[str, str]], dict[str, Any]]:
    """A function that runs where this package may be missing: its text travels, and not its name."""
    packages = PACKAGES

    def look(marker: str, wanted: dict[str, str]) -> dict[str, Any]:
        import os
        import platform
        from importlib import metadata, util

        def version(package: str) -> str | None:
            try:
                return metadata.version(package)
            except metadata.PackageNotFoundError:
                return None

        try:
            with open(marker, encoding="utf-8") as file:
                seen = file.read() == os.path.basename(marker)
        except OSError:
            seen = False
        return {
            "marker": seen,
            "missing": {name: path for name, path in wanted.items() if not os.path.exists(path)},
            "versions": {"Python": platform.python_version()} | {package: version(package) for package in packages},
            "package": util.find_spec("meltr_ray") is not None,
        }

    return look


def ask_all(marker: str, wanted: dict[str, str]) -> dict[str, dict[str, Any] | None]:
    """Machine -> what `asker` found there; None of one that doesn't answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(asker())
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(number, soft=False)).remote(
            marker, wanted
        ): f"{name} ({number[:8]})"
        for number, name in nodes.items()
    }
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    answers: dict[str, dict[str, Any] | None] = dict.fromkeys(asked.values())
    for reference in ready:
        try:
            answers[asked[reference]] = ray.get(reference)
        except ray.exceptions.RayError:  # it left meanwhile
            pass
    return answers
