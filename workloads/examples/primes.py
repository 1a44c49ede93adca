"""The tutorial's workload: is a handwritten digit prime? Four losses: the primary one, one that helps, one that is useless and
one that does harm.

    python workloads/sweep.py workload=workloads/examples/primes.py:Primes
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from meltr_ray import Metric, Workload

SPLITS = {"train": slice(0, 150), "meta": slice(150, 300), "validation": slice(300, 800), "test": slice(800, 1797)}


class Primes(Workload):
    """Few handwritten digits, each prime or not, with auxiliary losses on what else is known of them."""

    losses = ("prime", "digit", "norm", "permuted")  # the first is the primary
    metrics = {"accuracy": Metric("%")}  # the first is the score
    controls = ("permuted",)  # a loss that should be demoted
    bounds = {"width": (1, 4096), "noise": (0, 100)}

    width: int = 64
    """Hidden units."""
    noise: float = 3.0
    """Standard deviation of noise on pixels, which range from 0 to 16."""

    def module(self) -> nn.Module:
        return Heads(self.width)

    def examples(self, split: str) -> list[tuple[np.ndarray, int, int]]:
        """(pixels, digit, digit of another image, the same one in every epoch)."""
        pixels, digits = load_digits(return_X_y=True)
        generator = np.random.default_rng(0)
        pixels = (pixels + self.noise * generator.standard_normal(pixels.shape)).astype(np.float32) / 16
        chosen = generator.permutation(len(digits))[SPLITS[split]]
        return list(zip(pixels[chosen], digits[chosen], generator.permutation(digits[chosen])))

    def batch(self, examples: list, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        pixels, digits, others = (torch.from_numpy(np.array(column)) for column in zip(*examples))
        return {"pixels": pixels, "digit": digits, "other": others}

    def evaluate(self, module: nn.Module, examples: list, device: torch.device) -> dict[str, float]:
        batch = self.batch(examples, np.random.default_rng(0))
        found = module.prime(module.body(batch["pixels"].to(device)))[:, 0].cpu() > 0
        return {"accuracy": 100 * (found == is_prime(batch["digit"])).float().mean().item()}

    def baselines(self) -> dict:
        share = {
            split: np.mean([is_prime(torch.tensor(digit)) for _, digit, _ in self.examples(split)]) for split in ("validation", "test")
        }
        return {split: {"always no": {"accuracy": 100 * (1 - share[split])}} for split in share}


class Heads(nn.Module):
    """A body that all losses share, and a head for each; `permuted` pulls at the head of `prime`."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, width), nn.ReLU())
        self.prime, self.digit, self.norm = nn.Linear(width, 1), nn.Linear(width, 10), nn.Linear(width, 1)

    def forward(self, batch: dict[str, torch.Tensor], names: tuple[str, ...] | None = None) -> dict[str, torch.Tensor]:
        h = self.body(batch["pixels"])
        losses = {
            "prime": lambda: F.binary_cross_entropy_with_logits(self.prime(h)[:, 0], is_prime(batch["digit"]).float()),
            "digit": lambda: F.cross_entropy(self.digit(h), batch["digit"]),
            "norm": lambda: F.mse_loss(self.norm(h)[:, 0], batch["pixels"].square().mean(dim=1)),
            "permuted": lambda: F.binary_cross_entropy_with_logits(self.prime(h)[:, 0], is_prime(batch["other"]).float()),
        }
        return {name: losses[name]() for name in names or losses}


def is_prime(digits: torch.Tensor) -> torch.Tensor:
    return torch.isin(digits, torch.tensor([2, 3, 5, 7], device=digits.device))
