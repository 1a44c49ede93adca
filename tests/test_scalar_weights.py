"""A weight without dimensions, and weights held between bounds, under every ZeRO stage: the training that plain torch does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.engine_toy import STAGES, Toy, ToyWorkload, toy_batch, toy_config
from tests.ranks import on_ranks

BOUNDS, STEPS = {"scale": (0.99, 1.005), "head.bias": (-0.1, 0.1)}, 4


class Bounded(ToyWorkload):
    """Of the toy's weights, two that one step takes out of their bounds."""

    within = BOUNDS


class Scaled(Toy):
    """The toy's losses, times a weight of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.counting = False

    def forward(self, batch, names=None) -> Tensor:
        return super().forward(batch, names) * self.scale.exp()


def trained_on_a_rank(stages: tuple[int, ...]) -> dict[int, dict[str, Tensor]]:
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.loss_vector import LossVector

    class Vector(LossVector):
        def forward(self, batch, names=None):
            return self.of(batch, names)

    found = {}
    for stage in stages:
        config = toy_config(stage)
        config.workload = Bounded()
        config.workload.resolve("head", ["head", "decoder", "steep"])
        torch.manual_seed(0)
        engine = Engine(Vector(Scaled(), config.workload), config, torch.device("cpu"))
        for step in range(STEPS):
            engine.backward(engine.losses(toy_batch(step)).sum())
            engine.step(step)
        found[stage] = engine.weights()
    return found


def test_each_stage_trains_them_as_torch_does():
    config = toy_config(0)
    torch.manual_seed(0)
    model = Scaled()
    decayed = [p for name, p in model.named_parameters() if "bias" not in name]
    rest = [p for name, p in model.named_parameters() if "bias" in name]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.optimizer.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    )
    from meltr_ray.training.schedules import rate_factor

    for step in range(STEPS):
        optimizer.zero_grad()
        model(toy_batch(step)).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.learning_rate * rate_factor(config.optimizer, step, config.train.steps)
        optimizer.step()
        with torch.no_grad():
            for name, (low, high) in BOUNDS.items():
                model.get_parameter(name).clamp_(low, high)
    expected = dict(model.named_parameters())
    assert float(expected["scale"].detach()) in (pytest.approx(0.99), pytest.approx(1.005))  # it was held
    for found in on_ranks(trained_on_a_rank, 2, STAGES):
        for stage, weights in found.items():
            for name, value in expected.items():
                assert weights[name].shape == value.shape and torch.allclose(weights[name], value, atol=1e-6), (stage, name)
