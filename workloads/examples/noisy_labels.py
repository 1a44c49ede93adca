"""Wrong labels, and a weight for each example that is learned: handwritten digits, of whose training labels half are wrong.

python workloads/sweep.py workload=workloads/examples/noisy_labels.py:NoisyLabels experiment=noisy_labels
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from meltr_ray import Metric, Workload

SPLITS = {"train": slice(0, 1000), "meta": slice(1000, 1100), "validation": slice(1100, 1400), "test": slice(1400, 1797)}


class NoisyLabels(Workload):
    """Handwritten digits, many training labels wrong; the small meta split is clean."""

    losses = ("label",)
    metrics = {"accuracy": Metric("%")}
    per_example = True  # the loss is a number for each example, (B,)
    bounds = {"width": (1, 4096), "wrong": (0, 1)}

    width: int = 64
    """Hidden units."""
    wrong: float = 0.5
    """Share of the training labels that are wrong."""

    def module(self) -> nn.Module:
        return Network(self.width)

    def combiner(self) -> nn.Module:
        return ExampleWeights(len(self.examples("train")))

    def examples(self, split: str) -> list[tuple[int, np.ndarray, int]]:
        """(number of the example in its split, pixels, label)."""
        pixels, labels = load_digits(return_X_y=True)
        generator = np.random.default_rng(0)
        chosen = generator.permutation(len(labels))[SPLITS[split]]
        pixels, labels = (pixels[chosen] / 16).astype(np.float32), labels[chosen]
        if split == "train":
            labels = np.where(generator.random(len(labels)) < self.wrong, (labels + generator.integers(1, 10, len(labels))) % 10, labels)
        return list(zip(range(len(labels)), pixels, labels))

    def batch(self, examples: list, generator: np.random.Generator) -> dict[str, Tensor]:
        return dict(zip(("number", "pixels", "label"), (torch.from_numpy(np.array(column)) for column in zip(*examples))))

    def evaluate(self, module: nn.Module, examples: list, device: torch.device) -> dict[str, float]:
        batch = self.batch(examples, np.random.default_rng(0))
        return {"accuracy": 100 * (module.body(batch["pixels"].to(device)).argmax(1).cpu() == batch["label"]).float().mean().item()}


class Network(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))

    def forward(self, batch: dict[str, Tensor], names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        return {"label": F.cross_entropy(self.body(batch["pixels"]), batch["label"], reduction="none")}


class ExampleWeights(nn.Module):
    """g_phi(l) = mean of weight l over a batch; an example's weight is 1 at the start and stays between 0 and 2."""

    def __init__(self, num_examples: int):
        super().__init__()
        self.phi = nn.Parameter(torch.zeros(num_examples))

    def forward(self, losses: Tensor, batch: dict[str, Any]) -> Tensor:
        """losses (B,) of the examples batch["number"] -> scalar."""
        return (2 * self.phi[batch["number"]].sigmoid() * losses).mean()
