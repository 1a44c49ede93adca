"""States of torch's random generators, which dropout and masking draw from."""

from __future__ import annotations

import torch
from torch import Tensor


def get_generators(device: torch.device) -> dict[str, Tensor]:
    """State by kind of device: the CPU's, and that of `device` if it is another."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `get_generators` gave."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
