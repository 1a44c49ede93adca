"""tryout: it chooses as copies of model and optimiser do, trains as fixed weights from there on, and loses no try when it is stopped or killed."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from meltr_ray.combining.tryout import Tryout, steps_each, tried
from meltr_ray.config import CombinerConfig, Config, LossesConfig, TrainConfig
from meltr_ray.errors import ConfigError
from tests.engine_toy import Toy, ToyWorkload, toy
from tests.ranks import on_ranks
from tests.test_combining import Numbered, config_of

STEPS, K = 16, 2
SETTINGS = dict(share=0.375, strength=1e-3)  # 6 steps for three tries


class Chosen(Toy):
    """The toy with fewer losses."""

    def __init__(self, names: tuple[str, ...]):
        torch.manual_seed(0)
        super().__init__(dropout=0.3)
        self.chosen = names

    def forward(self, batch, names=None):
        return super().forward(batch, names or self.chosen)


class Killed(Exception):
    """In place of a process's end."""


def run_on_a_rank(stage: int, settings: dict, folder: str = "", ends: tuple = ()) -> tuple[dict[str, Tensor], int]:
    """(all state at the end, optimiser steps that were taken) of a run made anew after each of `ends`: asked to stop, or killed, after so many steps."""
    from meltr_ray.combining.named import WAYS
    from meltr_ray.training import checkpoint
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.loop import Progress, train
    from meltr_ray.training.state import RunState, restore_weights
    from meltr_ray.training.stopping import End

    config, root, count = config_of(settings.get("name", "tryout"), stage, **settings.get("combiner", SETTINGS)), Path(folder), 0
    config.train.steps = STEPS
    config.losses.set = list(settings.get("chosen", config.losses.set))

    class Counted(Engine):
        def step(self, number):
            nonlocal count
            count += 1
            super().step(number)
            if end and end[0] == "killed" and count == end[1]:
                raise Killed

    for end in (*ends, None):
        found = checkpoint.latest(root) if ends else None
        model = Chosen(settings["chosen"]) if "chosen" in settings else toy(dropout=0.3)[0]
        if found:
            restore_weights(found, model)
        engine, way = Counted(model, config, torch.device("cpu")), WAYS[config.combiner.name].of(config, config.workload)
        state = RunState(engine, way, Progress())
        torch.manual_seed(engine.rank)
        if found:
            state.restore(found)
        batches = [Numbered(engine.rank).of(way, step) for step in range(state.progress.step, STEPS)]

        def stop(engine):
            return End.ASKED if end and end[0] == "stopped" and count == end[1] else None

        try:
            came = train(config, engine, way, batches, state.progress, lambda: None, lambda: state.save(root, {}) if ends else None, stop)
        except Killed:
            continue
        assert came is (End.ASKED if end else End.FINISHED)
    moments = {name: value for name, value in engine.optimizer_state().items()}
    return engine.weights() | moments | way.state() | {"generator": torch.get_rng_state()}, count


def losses_at_the_ends(ranks: int) -> Tensor:
    """F (T,) after the try of each loss, that of the primary first, by torch's AdamW and deep copies; dropout 0."""
    sources, warm, found = [Numbered(rank) for rank in range(ranks)], 0.1 * STEPS, []
    first = toy(dropout=0.0)[0]
    for a in (torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 1, 0]), torch.tensor([1.0, 0, 1])):
        model = copy.deepcopy(first)
        groups = [{"params": [p for n, p in model.named_parameters() if ("bias" in n) == bias], "weight_decay": 0.0 if bias else 0.01}
                  for bias in (False, True)]  # fmt: skip
        adam = torch.optim.AdamW(groups, lr=1e-2)
        for number in range(K):
            adam.zero_grad()
            sum(a @ model(source.made(source.trained(number))[0]) / ranks for source in sources).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in adam.param_groups:
                group["lr"] = 1e-2 * min(1.0, (number + 1) / warm if number + 1 < warm else (STEPS - number) / (STEPS - warm))
            adam.step()
        with torch.no_grad():
            found.append(sum(float(model(source.made(source.keys(0))[0], ("head",))) for source in sources) / ranks)
    return torch.tensor(found, dtype=torch.float64)


def seen_on_a_rank(stage: int) -> tuple[Tensor, Tensor]:
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.step import EngineStep

    config = config_of("tryout", stage, **SETTINGS)
    config.train.steps = STEPS
    engine, way, source = Engine(toy(dropout=0.0)[0], config, torch.device("cpu")), Tryout.of(config, config.workload), Numbered(0)
    source = Numbered(engine.rank)
    step = EngineStep(engine, 0, source.made(source.trained(0)), source.made(way.beside_step(0, source)), "head", config.aid)
    effects = way.before(step)["effects"]
    assert torch.isnan(effects[0]) and torch.equal(effects[1:], way.seen[0] - way.seen[1:])
    return way.seen, way.a


@pytest.mark.parametrize("stage, ranks", [(0, 1), (0, 2), (3, 2)])
def test_it_sees_what_copies_of_model_and_optimiser_do(stage, ranks):
    expected = losses_at_the_ends(ranks)
    chosen = [1.0] + [float(F < 0.999 * expected[0]) for F in expected[1:]]
    assert (expected[1:] - expected[0]).abs().min() > 1e-3
    for seen, a in on_ranks(seen_on_a_rank, ranks, stage):
        assert torch.allclose(seen, expected, rtol=1e-5) and a.tolist() == chosen


@pytest.mark.parametrize("stage", (1, 3))
def test_the_run_is_then_that_of_fixed_weights_of_the_chosen_losses_bit_for_bit(stage):
    ours = on_ranks(run_on_a_rank, 2, stage, {})
    chosen = tuple(name for name, a in zip(ToyWorkload.losses, ours[0][0]["a"]) if a)
    fixed = on_ranks(run_on_a_rank, 2, stage, dict(name="fixed", combiner={}, chosen=chosen))
    assert 1 < len(chosen) < 3 and not torch.equal(ours[0][0]["generator"], ours[1][0]["generator"])
    for (found, count), (expected, plain) in zip(ours, fixed):
        shared = found.keys() & expected.keys()
        assert count == plain + 3 * K and len(shared) >= 3 * 6 + 1  # weights, two moments of each, a generator
        assert all(torch.equal(found[name], expected[name]) for name in shared)


@pytest.mark.parametrize("stage", (0, 3))
def test_a_try_that_was_done_is_not_done_again(stage, tmp_path):
    """Asked to stop within the second, killed within the third, killed in training: the same end, and only what was cut off is done twice."""
    expected = on_ranks(run_on_a_rank, 2, stage, {})
    ends = (("stopped", K + 1), ("killed", 2 * K + 1 + 1), ("stopped", 3 * K + 1 + 1 + 5))
    for (whole, count), (resumed, more) in zip(expected, on_ranks(run_on_a_rank, 2, stage, {}, str(tmp_path), ends)):
        assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
        assert more == count + 1 + 1


def configured(losses=None, steps=100, **settings) -> Config:
    return Config(workload=ToyWorkload(), losses=LossesConfig(set=losses), combiner=CombinerConfig(name="tryout", **settings),
                  train=TrainConfig(batch_size=8, steps=steps))  # fmt: skip


def test_its_cost_is_what_share_says():
    config = configured(steps=100, share=0.3)
    assert (steps_each(config), tried(config)) == (10, [1, 2]) and configured().combiner.share == 0.6
    assert config.aid.meta_batch == "held_out"
    alone = configured(losses=["head"], steps=1)  # nothing to try
    assert Tryout.of(alone, alone.workload).beside_step(0, Numbered(0)) is None


def test_what_is_not_finite_is_not_trained_with():
    way = Tryout(count=4, primary=1, tried=[0, 2, 3], K=1, least=0.01)
    way.seen = torch.tensor([float("nan"), 2.0, 1.985, 1.9], dtype=torch.float64)
    way.decide()
    assert way.a.tolist() == [0, 1, 0, 1]
    way.seen[1] = float("inf")  # the primary alone diverged, so nothing can be held against it
    way.decide()
    assert way.a.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("settings, words", [
    (dict(share=0.001), "combiner.share=0.001: gives each of 3 tries 0 steps, of train.steps=100"),
    (dict(share=9.0), "combiner.share=9.0: gives each of 3 tries 300 steps, of train.steps=100; give 0.03 to 3"),
    (dict(horizon=9), "combiner.horizon=9: combiner.name=tryout makes nothing of it"),
])  # fmt: skip
def test_tries_that_can_not_be_are_refused(settings, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        configured(**settings)


def test_it_needs_batches_that_training_does_not_see():
    config = configured()
    with pytest.raises(ConfigError, match="aid.meta_batch=next: combiner.name=tryout judges by batches"):
        replace(config, aid=replace(config.aid, meta_batch="next"))


def test_a_run_says_what_it_does_first_and_what_it_left_out():
    from workloads.train import switched_off

    config = configured()
    assert (
        Tryout.beforehand(config)
        == f"before step 1: 3 tries of {steps_each(config)} steps, of the primary alone and with each auxiliary loss"
    )

    row = {"slope.head": 1.0, "slope.decoder": 0.0, "slope.steep": 0.4}
    assert switched_off(row, configured()) == ["decoder"] and not switched_off(row | {"slope.decoder": 0.1}, configured())
    weighed = Config(workload=ToyWorkload(), combiner=CombinerConfig(name="fixed", weights=[1, 0, 1]), train=TrainConfig(batch_size=8))
    assert not switched_off(row, weighed)  # which its user knows
