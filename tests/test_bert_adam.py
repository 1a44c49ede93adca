"""BertAdam against its rule in plain numpy, its schedules against their shapes, and its state beside AdamW's.

`python -m tests.video.parity.univl` compares both with the authors' class.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from meltr_ray.training.bert_adam import SCHEDULES, BertAdam, learning_rate_factor

SHAPES = ((3, 4), (5,), (), (2, 2))
STEPS = 7


def start() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape) for shape in SHAPES]


def gradients(step: int) -> list[np.ndarray | None]:
    """Of lengths from 0.01 to 100; the second is missing every third step, the last at all but one."""
    generator = np.random.default_rng(1 + step)
    found = [scale * generator.normal(size=shape) for scale, shape in zip((100, 1, 0.01, 1), SHAPES)]
    return [found[0], None if step % 3 == 1 else found[1], found[2], found[3] if step == 2 else None]


def rule(w, m, v, g, rate, decay, clip, b1=0.9, b2=0.999, eps=1e-6):
    """One step of one parameter, element by element, as the paper of BERT's optimiser and the published clip have it."""
    norm = math.sqrt(sum(float(x) ** 2 for x in np.ravel(g)))
    g = g * min(1, clip / (norm + 1e-6)) if clip else g
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    return w - rate * (m / (np.sqrt(v) + eps) + decay * w), m, v


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_every_step_is_the_rule(clip):
    w = start()
    moments = [(np.zeros_like(x), np.zeros_like(x)) for x in w]
    parameters = [torch.nn.Parameter(torch.from_numpy(x.copy())) for x in w]
    decays = [0.01, 0.01, 0.0, 0.0]
    optimizer = BertAdam([{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}], clip=clip)
    for step in range(STEPS):
        rate = 0.1 / (1 + step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for i, g in enumerate(gradients(step)):
            parameters[i].grad = None if g is None else torch.from_numpy(np.asarray(g))
            if g is not None:
                w[i], *moments[i] = rule(w[i], *moments[i], g, rate, decays[i], clip)
        optimizer.step()
        for got, expected in zip(parameters, w):
            np.testing.assert_allclose(got.detach(), expected, rtol=1e-12, atol=1e-14)


def run(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        for p, g in zip(parameters, gradients(step)):
            p.grad = None if g is None else torch.from_numpy(np.asarray(g))
        optimizer.step()


def test_state_is_named_as_that_of_adamw_and_goes_on_from_there():
    straight, cut = ([torch.nn.Parameter(torch.from_numpy(x)) for x in start()] for _ in range(2))
    first = BertAdam(straight)
    run(first, straight, range(STEPS))
    before = BertAdam(cut)
    run(before, cut, range(4))
    after = BertAdam(cut)
    after.load_state_dict(before.state_dict())
    run(after, cut, range(4, STEPS))
    assert all(torch.equal(a, b) for a, b in zip(straight, cut))
    reference = torch.optim.AdamW(start_of_one := [torch.nn.Parameter(torch.ones(2))])
    start_of_one[0].grad = torch.ones(2)
    reference.step()
    assert first.state[straight[0]].keys() == reference.state[start_of_one[0]].keys()
    assert {"lr", "betas", "eps", "weight_decay"} <= first.param_groups[0].keys() & reference.param_groups[0].keys()


def test_a_period_rises_to_its_peak_falls_and_starts_again():
    factors = [learning_rate_factor("warmup_linear", step, period=9, warmup=0.3) for step in range(20)]
    np.testing.assert_allclose(factors[:10], [1 / 3, 2 / 3, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7, 0], atol=1e-12)
    np.testing.assert_allclose(factors[10:], factors[:10], atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_first_period_has_no_rate_above_the_peak_and_none_of_zero(schedule):
    for period, warmup in ((1, 0.0), (7, 0.1), (100, 0.1), (100, 0.99)):
        factors = [learning_rate_factor(schedule, step, period, warmup) for step in range(period)]
        assert all(0 < factor <= 1 + 1e-12 for factor in factors)
