"""What a sweep that goes on may have otherwise than when it was started: how it runs, and more of what it has (docs/growing.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from meltr_ray.errors import check
from workloads import cli

HOW_IT_RUNS = ("sweep.max_concurrent", "sweep.progress_every", "sweep.budget", "train.cpus_per_worker", "train.accelerator", "train.resources",
               "train.placement", "train.grace", "cluster", "loggers")  # fmt: skip
"""Settings that may be anything."""


def grow(old: DictConfig, request: cli.Request) -> None:
    """Put what a command line changes into the settings of a sweep, in place.

    Raises:
        ConfigError: something that would make it another sweep, or its findings unsound.
    """
    for key, value in request.given.items():
        if key == "resume":
            continue
        if key in GROWS:
            GROWS[key](old, request)
            continue
        check(key in HOW_IT_RUNS, key, value, "a resumed sweep keeps its settings; leave it out or start a new sweep")
        OmegaConf.update(old, key, OmegaConf.select(request.settings, key), merge=False)


def look(old: DictConfig, seeds: int) -> None:
    """More seeds for a screening, at a look that was planned before its first.

    Raises:
        ConfigError: it wasn't, or there are fewer than before.
    """
    planned = [look for look in old.sweep.looks if look >= old.sweep.seeds]
    check(seeds in planned, "sweep.seeds", seeds, f"was no look that this sweep planned; use one of {', '.join(map(str, planned))}" if planned else
          "this sweep planned no further look, so its intervals would not hold; start a new one with such as sweep.looks=[6,9,12]")  # fmt: skip
    old.sweep.seeds = seeds


def _seeds(old: DictConfig, request: cli.Request) -> None:
    seeds = request.config.sweep.seeds
    if old.sweep.design != "none":
        return look(old, seeds)
    check(
        not old.sweep.leaders, "sweep.seeds", seeds, "would choose the leaders anew, after their test scores were seen; start a new sweep"
    )
    _more(old, "seeds", seeds)


def _other_seeds(old: DictConfig, request: cli.Request) -> None:
    _of_a_comparison(old, "other_seeds", request)
    _more(old, "other_seeds", request.config.sweep.other_seeds)


def _samples(old: DictConfig, request: cli.Request) -> None:
    samples = request.config.sweep.samples
    check(bool(old.sweep.space), "sweep.samples", samples, "this sweep searches no space; leave it out or start a new sweep")
    check(
        old.sweep.search != "grid",
        "sweep.samples",
        samples,
        "this sweep searches a grid, which has all of its configurations; leave it out",
    )
    _more(old, "samples", samples)


def _arms(old: DictConfig, request: cli.Request) -> None:
    """Of an experiment: the arms that the sweep lacks, and those of them that are baselines, tested after those that were there."""
    name, sweep, found = request.given["experiment"], request.config.sweep, OmegaConf.to_container(old.sweep)
    before: dict[str, Any] = found["arms"]
    for arm, changes in before.items():
        check(sweep.arms.get(arm) == changes, "experiment", name,
              f"has the arm {arm} otherwise than this sweep, or not at all; add arms and leave those that are there")  # fmt: skip
    new = {arm: changes for arm, changes in sweep.arms.items() if arm not in before}
    check(bool(new), "experiment", name, "has no arm that this sweep lacks; leave it out")
    old.sweep.arms = before | new
    if sweep.design == "none" and found["design"] == "none":
        check(
            not found["leaders"], "experiment", name, "would choose the leaders anew, after their test scores were seen; start a new sweep"
        )
        old.sweep.baselines = [*found["baselines"], *(arm for arm in sweep.baselines if arm in new)]


GROWS: dict[str, Callable[[DictConfig, cli.Request], None]] = {
    "sweep.seeds": _seeds,
    "sweep.other_seeds": _other_seeds,
    "sweep.samples": _samples,
    "experiment": _arms,
}
"""Setting -> what makes the settings of a sweep more by it."""


def _more(old: DictConfig, name: str, value: int) -> None:
    before = getattr(old.sweep, name)
    check(value >= before, f"sweep.{name}", value, f"this sweep has {before}, and what it has trained stays; give more")
    setattr(old.sweep, name, value)


def _of_a_comparison(old: DictConfig, name: str, request: cli.Request) -> None:
    check(old.sweep.design == "none", f"sweep.{name}", getattr(request.config.sweep, name), "has no part in a screening; leave it out")
