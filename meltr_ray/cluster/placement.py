"""What a trial takes of a cluster, and whether the cluster can ever give it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ray

from meltr_ray.config import Config
from meltr_ray.errors import ConfigError, check

DRIVER_CPU = 0.01
"""Ray CPUs of a trial whose work is done by Ray Train workers."""
ACCELERATOR = "accelerator_type:"
"""How Ray's name of a kind of GPU begins, as a resource of a machine."""
MOST_AT_ONCE = 1024
"""Trials; as many as `sweep.max_concurrent` may name."""
Machine = dict[str, float]
"""Resource -> how much of it there is."""


def needs(config: Config) -> Machine:
    """Of one worker, or of a trial in its own process: whole CPUs."""
    train = config.train
    gpu = {"GPU": 1.0} if train.use_gpu else {}
    kind = {f"{ACCELERATOR}{train.accelerator}": 0.001} if train.accelerator else {}  # as Ray has it: many share one of a kind
    return {"CPU": float(train.cpus)} | gpu | kind | train.resources


def of_worker(config: Config) -> Machine:
    """Of a Ray Train worker: a little less than whole CPUs, of which the trial's driver takes a share; else two never fit two cores."""
    found = needs(config)
    return found | {"CPU": found["CPU"] - 2 * DRIVER_CPU}


def of_trial(config: Config) -> Machine:
    """Of the trial's own process: all it needs, or next to nothing where Ray Train workers do the work."""
    return {"CPU": DRIVER_CPU} if config.train.num_workers else needs(config)


def at_once(config: Config) -> int:
    """Trials that run at the same time on the cluster that this process is connected to, with the machines that it may start."""
    if config.sweep.max_concurrent:
        return config.sweep.max_concurrent
    grown = may_grow_to(ray._private.state.state.get_cluster_config(), MOST_AT_ONCE)
    return min(max(1, trials_on(config, alive()), trials_on(config, grown)), MOST_AT_ONCE)


def trials_on(config: Config, machines: list[Machine]) -> int:
    """By what these machines have in all."""
    workers = max(1, config.train.num_workers)
    return min(int(sum(machine.get(name, 0) for machine in machines) / (workers * need) + 1e-9) for name, need in needs(config).items())


def alive() -> list[Machine]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_holds(config: Config) -> None:
    """Of the cluster that this process is connected to, with the machines that it may start.

    Raises:
        ConfigError: it can never hold a trial, which would wait for ever.
    """
    grown = may_grow_to(ray._private.state.state.get_cluster_config(), max(1, config.train.num_workers))
    if not grown or not holds(config, grown):
        check_fits(config, alive())


def may_grow_to(cluster: Any, most: int) -> list[Machine]:
    """Machines of a cluster that starts some when they are needed, at most `most` of each kind. `cluster`: Ray's `ClusterConfig`, or None."""
    groups = cluster.node_group_configs if cluster else []
    return [dict(group.resources) for group in groups for _ in range(most if group.max_count == -1 else min(most, group.max_count))]


def holds(config: Config, machines: Iterable[Machine]) -> bool:
    try:
        check_fits(config, list(machines))
    except ConfigError:
        return False
    return True


def check_fits(config: Config, machines: list[Machine]) -> None:
    """Raises ConfigError: one trial has no place on these machines, with nothing else on them."""
    train, each = config.train, needs(config)
    for name, need in each.items():
        most = max((machine.get(name, 0) for machine in machines), default=0)
        if most < need:
            raise ConfigError(f"{lacks(config, name, need, most, machines)}, or join another cluster")
    room = [min(int(machine.get(name, 0) / need + 1e-9) for name, need in each.items()) for machine in machines]
    whole = ", ".join(f"{need:g} {name}" for name, need in each.items())
    check(any(room), "train.num_workers", train.num_workers, f"no machine has all that a worker needs ({whole}) at once; lower some of it")
    workers, largest, able = max(1, train.num_workers), max(room), sum(count > 0 for count in room)
    check(train.placement != "STRICT_PACK" or largest >= workers, "train.placement", train.placement,
          f"no machine holds {workers} workers, the largest {largest}; lower train.num_workers, or use PACK")  # fmt: skip
    check(train.placement != "STRICT_SPREAD" or able >= workers, "train.placement", train.placement,
          f"{workers} machines are needed, and {able} can hold a worker; lower train.num_workers, or use SPREAD")  # fmt: skip
    check(sum(room) >= workers, "train.num_workers", train.num_workers,
          f"the cluster holds {sum(room)} workers of {whole}; lower it, or join a larger cluster")  # fmt: skip


def lacks(config: Config, name: str, need: float, most: float, machines: list[Machine]) -> str:
    """The setting that asks for more than any machine has."""
    train = config.train
    if name == "CPU":
        setting = "threads" if train.cpus_per_worker is None else "cpus_per_worker"
        return f"train.{setting}={train.cpus}: no machine of the cluster has more than {most:g} CPUs; lower it"
    if name == "GPU":
        return "train.use_gpu=True: no machine of the cluster has a GPU that Ray knows of; set train.use_gpu=false"
    if name.startswith(ACCELERATOR):
        known = sorted({key.removeprefix(ACCELERATOR) for machine in machines for key in machine if key.startswith(ACCELERATOR)})
        return f"train.accelerator={train.accelerator}: the machines of the cluster have {', '.join(known) or 'none'}; give one of those"
    return f"train.resources.{name}={need:g}: no machine of the cluster has more than {most:g} of it; lower it"
