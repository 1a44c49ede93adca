"""Sets of losses: named lists for each backbone, leave-one-out and add-one-in."""

from __future__ import annotations

from meltr_ray.config import CONTROL_LOSSES, losses_of

OWN_SETS: dict[str, dict[str, list[str]]] = {
    "univl": {
        "small": ["masked_joint"],
        "masked": ["masked_joint", "masked_language", "masked_frame"],
        "generative": ["masked_language", "caption", "masked_caption"],
    },
    "violet": {"small": ["masked_language"]},
    "allinone": {"small": ["masked_language"]},
}
"""Backbone -> name in `task.loss_set` -> auxiliary losses that join the primary one."""


def loss_sets(backbone: str, task: str, primary: str) -> dict[str, list[str]]:
    """Name in `task.loss_set` -> losses, the primary first; `controlled` has the two planted controls in it.

    Of `OWN_SETS`, those that the task offers.
    """
    losses = losses_of(backbone, task)
    own = {name: chosen for name, chosen in OWN_SETS[backbone].items() if set(chosen) <= set(losses.offered)}
    everything = [loss for loss in losses.offered if loss not in CONTROL_LOSSES]
    auxiliary = {"primary": [], "default": losses.default, "all": everything, "controlled": [*losses.default, *CONTROL_LOSSES]} | own
    return {name: [primary, *(loss for loss in chosen if loss != primary)] for name, chosen in auxiliary.items()}


def leave_one_out(loss_set: list[str], primary: str) -> dict[str, list[str]]:
    """Auxiliary loss -> the set without it."""
    return {loss: [other for other in loss_set if other != loss] for loss in loss_set if loss != primary}


def add_one_in(loss_set: list[str], primary: str) -> dict[str, list[str]]:
    """Auxiliary loss -> the primary loss and it alone."""
    return {loss: [primary, loss] for loss in loss_set if loss != primary}
