"""Sets of losses: named lists, leave-one-out and add-one-in."""

from __future__ import annotations

from meltr_ray.config import CONTROL_LOSSES, UNIVL_LOSSES

LOSS_SETS: dict[str, list[str]] = {
    "all": list(UNIVL_LOSSES),
    "default": ["joint", "masked_joint", "masked_language", "masked_frame", "caption"],
    "small": ["joint", "masked_joint"],
    "masked": ["joint", "masked_joint", "masked_language", "masked_frame"],
    "generative": ["joint", "masked_language", "caption", "masked_caption"],
    "primary": ["joint"],
    "controlled": ["joint", "masked_joint", "masked_language", "masked_frame", "caption", *CONTROL_LOSSES],
}
"""Name in `task.loss_set` -> losses; `controlled` has the two planted controls in it."""


def leave_one_out(loss_set: list[str], primary: str) -> dict[str, list[str]]:
    """Auxiliary loss -> the set without it."""
    return {loss: [other for other in loss_set if other != loss] for loss in loss_set if loss != primary}


def add_one_in(loss_set: list[str], primary: str) -> dict[str, list[str]]:
    """Auxiliary loss -> the primary loss and it alone."""
    return {loss: [primary, loss] for loss in loss_set if loss != primary}
