"""The engine's state under ZeRO 0 to 3: what a meta step leaves behind, phi over ranks, inner steps, and a resumed run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from meltr_ray.combining.meta import Meta
from meltr_ray.combining.slopes import slopes
from meltr_ray.storage.stop import withdraw
from tests.engine_toy import STAGES, toy, toy_batch, toy_config
from tests.ranks import on_ranks


def train_on_a_rank(stage: int, with_meta: bool, steps: int, meta_rate: float, accumulation: int) -> dict:
    from meltr_ray.hypergrad.generators import get_generators
    from meltr_ray.training.engine import Engine

    model, combiner = toy(dropout=0.3)
    config = toy_config(stage, solver="cg", iterations=2, damping=1.0, inner_steps=1, learning_rate=meta_rate, gamma=0.1,
                        regulariser="full", accumulation=accumulation, steps=steps, weight_decay=0.0)  # fmt: skip
    engine = Engine(model, config, torch.device("cpu"))
    torch.manual_seed(100 + engine.rank)
    meta = Meta(combiner, config.aid)
    for step in range(steps):
        batches = [toy_batch(1000 * engine.rank + step * accumulation + micro) for micro in range(accumulation)]
        known = []
        if with_meta:
            problem = engine.problem(batches, [toy_batch(1000 * engine.rank + step + 500)], "head", config.aid)
            meta.step(problem)
            known = [problem.losses()[0]]
        for micro, batch in enumerate(batches):
            losses = known[micro] if micro < len(known) else engine.losses(batch)
            _, a = slopes(combiner, losses)
            engine.backward(a @ losses)
            engine.step(step)
    return {
        "weights": engine.weights(),
        "optimizer": engine.optimizer_state(),
        "generators": get_generators(torch.device("cpu")),
        "counters": {"steps": torch.tensor([engine.deepspeed.global_steps, engine.deepspeed.micro_steps])},
        "phi": {str(i): p.detach() for i, p in enumerate(meta.optimizer.phi)},
    }


@pytest.mark.parametrize("stage", STAGES)
def test_meta_steps_with_learning_rate_0_leave_no_trace(stage):
    """Twenty steps of CG with two micro-batches and dropout: everything that the next step depends on is torch.equal."""
    with_meta = on_ranks(train_on_a_rank, 2, stage, True, 20, 0.0, 2)
    without = on_ranks(train_on_a_rank, 2, stage, False, 20, 0.0, 2)
    for a, b in zip(with_meta, without):
        for part in ("weights", "optimizer", "generators", "counters", "phi"):
            assert a[part].keys() == b[part].keys() and a[part], part
            for name in a[part]:
                assert torch.equal(a[part][name], b[part][name]), f"{part} {name}"


@pytest.mark.parametrize("stage", (0, 3))
def test_phi_stays_bit_identical_on_ranks_with_different_data(stage):
    first, second = on_ranks(train_on_a_rank, 2, stage, True, 6, 1e-2, 1)
    start = toy(dropout=0.3)[1]
    assert all(torch.equal(first["phi"][i], second["phi"][i]) for i in first["phi"])
    assert any(not torch.equal(p, first["phi"][str(i)]) for i, p in enumerate(start.parameters()))


@pytest.mark.parametrize("stage", STAGES)
def test_inner_steps_are_those_of_torch(stage):
    """Fixed weights under every stage against torch's AdamW with the same schedule and clipping."""
    got = on_ranks(plain_steps, 1, stage)[0]
    model, _ = toy()
    config = toy_config(0)
    optimizer = torch.optim.AdamW(
        [{"params": [p for n, p in model.named_parameters() if "bias" not in n], "weight_decay": 0.01},
         {"params": [p for n, p in model.named_parameters() if "bias" in n], "weight_decay": 0.0}], lr=1e-2)  # fmt: skip
    for step in range(10):
        model(toy_batch(step)).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warm = 0.1 * config.train.steps
        factor = min(1.0, (step + 1) / warm if step + 1 < warm else (config.train.steps - step) / (config.train.steps - warm))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * factor
        optimizer.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        assert torch.allclose(got[name], p, atol=1e-6), name


def plain_steps(stage: int) -> dict[str, Tensor]:
    from meltr_ray.training.engine import Engine

    engine = Engine(toy()[0], toy_config(stage), torch.device("cpu"))
    for step in range(10):
        engine.backward(engine.losses(toy_batch(step)).sum())
        engine.step(step)
    return engine.weights()


def interrupted_on_a_rank(stage: int, folder: str, stop: int, last: int) -> dict:
    """Steps up to `stop`, a checkpoint, then a new engine from it and on to `last`; `stop=0` never stops."""
    from meltr_ray.training import checkpoint
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.loop import Progress
    from meltr_ray.training.state import RunState, restore_weights

    config = toy_config(stage, solver="cg", iterations=2, damping=1.0, inner_steps=2, steps=last, warm_start=True, adam="precondition")
    root, cpu = Path(folder), torch.device("cpu")

    def build(found: Path | None) -> RunState:
        model, combiner = toy(dropout=0.3)
        if found:
            restore_weights(found, model)
        engine = Engine(model, config, cpu)
        torch.manual_seed(100 + engine.rank)
        state = RunState(engine, Meta(combiner, config.aid), Progress())
        if found:
            state.restore(found)
        return state

    def advance(state: RunState, end: int) -> None:
        engine, meta = state.engine, state.way
        for step in range(state.progress.step, end):
            problem = engine.problem([toy_batch(1000 * engine.rank + step)], [toy_batch(2000 * engine.rank + step)], "head", config.aid)
            if meta.is_due(step):
                meta.step(problem)
            losses = problem.losses()[0]
            engine.backward(slopes(meta.combiner, losses)[1] @ losses)
            engine.step(step)
            state.progress.step = step + 1

    state = build(None)
    advance(state, stop or last)
    if stop:
        state.save(root, {})
        state = build(checkpoint.latest(root))
        advance(state, last)
    state.save(root / "end", {})
    shared, own, _ = checkpoint.load(checkpoint.latest(root / "end"), state.engine.rank)
    return shared | own


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_bit_identical(stage, tmp_path):
    whole = on_ranks(interrupted_on_a_rank, 2, stage, str(tmp_path / "whole"), 0, 9)
    resumed = on_ranks(interrupted_on_a_rank, 2, stage, str(tmp_path / "resumed"), 5, 9)
    for a, b in zip(whole, resumed):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), [n for n in a if not torch.equal(a[n], b[n])]


def told_on_a_rank(folder: str) -> list[tuple[str | None, int]]:
    """What a rank is told after each step, and how often it had looked for itself; rank 0 alone sees the driver's request."""
    from meltr_ray.storage.stop import Asked, ask
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.stopping import End, Stop

    engine, looks, told = Engine(toy()[0], toy_config(0), torch.device("cpu")), [], []
    stop = Stop(Asked(folder if engine.rank == 0 else "nowhere"), lambda: looks.append(engine.rank) or len(looks) == 3, every=0)
    while not told or told[-1][0] is not End.ASKED:
        told.append((stop(engine), len(looks)))
        if told[-1][0] is End.LEAVING and engine.rank == 0:
            ask(Path(folder))
    return told


def test_all_ranks_stop_after_the_same_step(tmp_path):
    withdraw(tmp_path)
    first, second = on_ranks(told_on_a_rank, 2, str(tmp_path))
    assert first == second and [end and end.value for end, _ in first[:3]] == [None, None, "leaving"] and first[-1][0].value == "asked"
