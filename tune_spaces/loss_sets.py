"""Sets of losses derived from another: leave-one-out and add-one-in."""

from __future__ import annotations


def leave_one_out(loss_set: list[str], primary: str) -> dict[str, list[str]]:
    """Auxiliary loss -> the set without it."""
    return {loss: [other for other in loss_set if other != loss] for loss in loss_set if loss != primary}


def add_one_in(loss_set: list[str], primary: str) -> dict[str, list[str]]:
    """Auxiliary loss -> the primary loss and it alone."""
    return {loss: [primary, loss] for loss in loss_set if loss != primary}
