"""What workers hold of the cluster is free again when the process of their trial is gone. Ray itself waits for the end of the job.

Ray Train has an actor for that: one more process for each trial, which needs a dashboard, and ends in silence on a machine with two clusters.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._private.state import actors
from ray._raylet import PlacementGroupID
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle, PlacementGroupHandle
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

OWNED = "workers of "
"""How the name of a placement group begins; its owner's actor ID follows."""
LOOK = 1.0
"""Seconds between two looks of the driver at the cluster."""


class OwnedWorkers(WorkerGroup):
    """Workers in a placement group that names the actor of the trial."""

    def _start(self) -> None:
        try:
            super()._start()
        except Exception:
            if self.has_started():  # a fault in the last part of a start: Ray leaves the workers, and what they hold of the cluster
                group = self._worker_group_state.placement_group_handle
                with suppress(Exception):
                    self.shutdown()
                with suppress(Exception):
                    group.shutdown()
            raise

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> PlacementGroupHandle:
        owner, number = ray.get_runtime_context().get_actor_id(), uuid.uuid4().hex
        bundles = [worker_group_context.resources_per_worker] * worker_group_context.num_workers
        group = placement_group(bundles, strategy=worker_group_context.placement_strategy, name=f"{OWNED}{owner} {number}")
        return DefaultPlacementGroupHandle(group)


@contextmanager
def freed_with_their_trials() -> Iterator[None]:
    """Around the trials of a sweep, in its driver."""
    ended = threading.Event()
    thread = threading.Thread(target=_look, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _look(ended: threading.Event) -> None:
    while not ended.wait(LOOK):
        with suppress(Exception):  # a cluster that doesn't answer just now is asked again
            _free()


def _free() -> None:
    job = ray.get_runtime_context().get_job_id()
    for group in placement_group_table().values():
        owner = group["name"].removeprefix(OWNED).split(" ")[0] if group["name"].startswith(OWNED) else ""
        if owner.endswith(job) and group["state"] != "REMOVED" and actors(owner).get("State") == "DEAD":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group["placement_group_id"])))
