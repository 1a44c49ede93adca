"""Draws of a way to combine losses: a pure function of (seed, number), so that resuming and ranks agree and nothing else is disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, number: int, device: torch.device = torch.device("cpu")) -> Iterator[None]:
    """torch's own generators inside, as libraries draw from them, stand at a place of their own; outside they stay where they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + number) % 2**63)
        yield
