"""A look ahead that is put back leaves no trace: snapshot and restore of an engine under ZeRO 0 to 3 on two real ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.engine_toy import STAGES, toy, toy_batch, toy_config
from tests.ranks import on_ranks

FIRST, AHEAD, LAST = 3, 4, 9


def trained_on_a_rank(stage: int, looks: bool, optimizer: str, first: int) -> dict[str, dict[str, Tensor]]:
    """`LAST` steps with dropout; before step `first`, perhaps, others with other slopes, a forward, and back."""
    from meltr_ray.hypergrad.generators import get_generators
    from meltr_ray.training.engine import Engine

    config = toy_config(stage, steps=LAST, accumulation=2)
    config.optimizer.name = optimizer
    engine = Engine(toy(dropout=0.3)[0], config, torch.device("cpu"))
    torch.manual_seed(100 + engine.rank)

    def step(number: int, a: Tensor) -> None:
        for micro in range(2):
            engine.backward(a @ engine.losses(toy_batch(1000 * engine.rank + 2 * number + micro)))
            engine.step(number)

    for number in range(LAST):
        if looks and number == first:
            before = engine.snapshot()
            for ahead in range(AHEAD):
                step(number + ahead, torch.tensor([1.0, 5.0, 0.0]))
            engine.losses(toy_batch(0))
            engine.restore(before)
        step(number, torch.ones(3))
    counts = torch.tensor([engine.deepspeed.global_steps, engine.deepspeed.micro_steps, engine.deepspeed.global_samples])
    state = {"weights": engine.weights(), "moments": engine.optimizer_state(), "generators": get_generators(engine.device)}
    return state | {"counts": {"counts": counts}, "adam": {"steps": torch.stack([entry["step"] for entry in engine.adam().state.values()])}}


@pytest.mark.parametrize("optimizer, first", [("adamw", 0), ("adamw", FIRST), ("bert_adam", FIRST)])
@pytest.mark.parametrize("stage", STAGES)
def test_steps_that_are_put_back_leave_no_trace(stage, optimizer, first):
    looked = on_ranks(trained_on_a_rank, 2, stage, True, optimizer, first)
    plain = on_ranks(trained_on_a_rank, 2, stage, False, optimizer, first)
    for a, b in zip(looked, plain):
        for part in b:
            assert a[part].keys() == b[part].keys() and b[part]
            for name in b[part]:
                assert torch.equal(a[part][name], b[part][name]), f"{part} {name}"
