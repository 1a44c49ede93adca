"""A toy that tests of the engine train: a module of three losses, its combiner, its batches and its configuration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meltr_ray import MELTR, Metric, Workload
from meltr_ray.config import AidConfig, CombinerConfig, Config, EngineConfig, OptimizerConfig, TrainConfig

STAGES = (0, 1, 2, 3)
"""Of ZeRO."""


@dataclass
class Batch:
    x: Tensor  # (B, 4)
    y: Tensor  # (B, 3)


class Toy(nn.Module):
    """Three losses; one layer that only the second of them reaches, as a decoder would be."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout))
        self.head, self.decoder = nn.Linear(6, 3), nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.counting = True

    def forward(self, batch: Batch, names: tuple[str, ...] | None = None) -> Tensor:
        if self.counting:
            self.calls += 1  # what a meta step must put back
        hidden = self.body(batch.x)
        error = self.head(hidden) - batch.y
        losses = {
            "head": lambda: error[:, 0].pow(2).mean(),
            "decoder": lambda: (self.decoder(hidden) - batch.y).pow(2).mean(),
            "steep": lambda: error[:, 2].cosh().mean(),
        }
        return torch.stack([losses[name]() for name in names or losses])


class ToyWorkload(Workload):
    """Names for its losses."""

    losses = ("head", "decoder", "steep")
    metrics = {"error": Metric(higher=False)}


def toy(dropout: float = 0.0, seed: int = 0) -> tuple[Toy, MELTR]:
    torch.manual_seed(seed)
    model, combiner = Toy(dropout), MELTR(3, embedding_size=16, loss_encoder_size=8, feed_forward_size=16)
    nn.init.normal_(combiner.fc1.weight, std=0.5)
    return model, combiner


def toy_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(8, 4, generator=generator), torch.randn(8, 3, generator=generator))


def toy_config(stage: int, **aid) -> Config:
    return Config(
        workload=ToyWorkload(),
        combiner=CombinerConfig(average_losses=aid.pop("average_losses", False)),
        engine=EngineConfig(zero_stage=stage, gradient_accumulation=aid.pop("accumulation", 1), precision=aid.pop("precision", "float32")),
        train=TrainConfig(batch_size=8, steps=aid.pop("steps", 20)),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        aid=AidConfig(**aid),
    )
