"""The tutorial's workload: is a handwritten digit prime? Four losses, of which one helps, one is useless and one does harm.

    python workloads/sweep.py workload=workloads/examples/primes.py:Primes
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from meltr_ray import Metric, Workload

SIZES = {"train": 150, "meta": 150, "validation": 500, "test": 900}


class Primes(Workload):
    """Few handwritten digits, each prime or not, with auxiliary losses on what else is known of them."""

    losses = ("prime", "digit", "norm", "permuted")
    metrics = {"accuracy": Metric("%")}
    controls = ("permuted",)
    bounds = {"width": (1, 4096), "noise": (0, 100)}

    width: int = 32
    """Hidden units."""
    noise: float = 6.0
    """Standard deviation of noise on pixels, which range from 0 to 16."""

    def module(self) -> nn.Module:
        return Heads(self.width)

    def examples(self, split: str) -> list[tuple[np.ndarray, int]]:
        pixels, digits = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(digits))
        start = sum(list(SIZES.values())[: list(SIZES).index(split)])
        pixels = pixels + self.noise * np.random.default_rng(1).standard_normal(pixels.shape)
        return [(pixels[i].astype(np.float32) / 16, int(digits[i])) for i in order[start : start + SIZES[split]]]

    def batch(self, examples: list, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        pixels, digits = (torch.from_numpy(np.array(column)) for column in zip(*examples))
        return {"pixels": pixels, "digit": digits, "permuted": torch.from_numpy(generator.permutation(len(digits)))}

    def evaluate(self, module: nn.Module, examples: list, device: torch.device) -> dict[str, float]:
        batch = self.batch(examples, np.random.default_rng(0))
        right = (module.prime(module.body(batch["pixels"].to(device)))[:, 0] > 0).cpu() == is_prime(batch["digit"])
        return {"accuracy": 100 * right.float().mean().item()}

    def baselines(self) -> dict:
        shares = {split: np.mean([is_prime(torch.tensor(digit)).item() for _, digit in self.examples(split)]) for split in ("validation", "test")}
        return {split: {"always no": {"accuracy": 100 * (1 - share)}} for split, share in shares.items()}


class Heads(nn.Module):
    """A body that all losses share, and a head each."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, width), nn.ReLU())
        self.prime, self.digit, self.norm = nn.Linear(width, 1), nn.Linear(width, 10), nn.Linear(width, 1)

    def forward(self, batch: dict[str, torch.Tensor], names: tuple[str, ...] | None = None) -> dict[str, torch.Tensor]:
        h, target = self.body(batch["pixels"]), is_prime(batch["digit"]).float()
        found = {
            "prime": lambda: F.binary_cross_entropy_with_logits(self.prime(h)[:, 0], target),
            "digit": lambda: F.cross_entropy(self.digit(h), batch["digit"]),
            "norm": lambda: F.mse_loss(self.norm(h)[:, 0], batch["pixels"].norm(dim=1)),
            "permuted": lambda: F.binary_cross_entropy_with_logits(self.prime(h)[:, 0], target[batch["permuted"]]),
        }
        return {name: found[name]() for name in names or found}


def is_prime(digits: torch.Tensor) -> torch.Tensor:
    return torch.isin(digits, torch.tensor([2, 3, 5, 7], device=digits.device))
