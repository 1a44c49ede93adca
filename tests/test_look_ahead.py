"""look_ahead: the run that a plain loop with copies of model and optimiser gives; when it probes, how switches turn, what is refused."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor

from meltr_ray.combining.look_ahead import LookAhead
from meltr_ray.config import CombinerConfig, Config, TrainConfig
from meltr_ray.errors import ConfigError
from tests.engine_toy import ToyWorkload, toy
from tests.ranks import on_ranks
from tests.test_combining import Numbered, Spied, config_of

STEPS = 24
SETTINGS = dict(horizon=3, every=4, strength=1e-4, start="uniform")


def trained_on_a_rank(stage: int) -> tuple[Tensor, dict[str, Tensor]]:
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.loop import Progress, train

    config = config_of("look_ahead", stage, **SETTINGS)
    config.train.steps = STEPS
    engine = Engine(toy(dropout=0.0)[0], config, torch.device("cpu"))
    way = Spied(LookAhead.of(config, config.workload))
    batches = [Numbered(engine.rank).of(way, step) for step in range(STEPS)]
    train(config, engine, way, batches, Progress(), lambda: None, lambda: None)
    return torch.stack(way.seen), engine.weights()


def by_hand(ranks: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The same with torch's AdamW and deep copies of model and optimiser."""
    config, sources = config_of("look_ahead", **SETTINGS), [Numbered(rank) for rank in range(ranks)]
    model = toy(dropout=0.0)[0]
    groups = [{"params": [p for n, p in model.named_parameters() if "bias" not in n], "weight_decay": 0.01},
              {"params": [p for n, p in model.named_parameters() if "bias" in n], "weight_decay": 0.0}]  # fmt: skip
    pair = model, torch.optim.AdamW(groups, lr=1e-2)
    warm = 0.1 * STEPS

    def step(pair, number: int, a: Tensor) -> None:
        model, optimizer = pair
        sum(a @ model(source.made(source.trained(number))[0]) / ranks for source in sources).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (number + 1) / warm if number + 1 < warm else (STEPS - number) / (STEPS - warm))
        optimizer.step()
        optimizer.zero_grad()

    def held_out(pair, number: int) -> float:
        with torch.no_grad():
            return sum(float(pair[0](source.made(source.keys(number))[0], ("head",))) for source in sources) / ranks

    a, means, counts, seen, pending = torch.ones(3), [0.0] * 3, [0] * 3, [], None
    assert config.losses.set[0] == "head"
    for number in range(STEPS):
        if pending and number == pending[0] + SETTINGS["horizon"]:
            start, t, turned = pending
            effect = (turned - held_out(pair, start)) * (-1 if a[t] > 0 else 1)  # of having the loss on
            counts[t] += 1
            means[t] = 0.5 * means[t] + 0.5 * effect
            mean = means[t] / (1 - 0.5 ** counts[t])
            if abs(mean) > SETTINGS["strength"] * held_out(pair, start):
                a[t] = float(mean < 0)
        if number % SETTINGS["every"] == 0 and number + SETTINGS["horizon"] <= STEPS:
            t = 1 + number // SETTINGS["every"] % 2
            other, flipped = copy.deepcopy(pair), a.clone()
            flipped[t] = 1 - a[t]
            for ahead in range(SETTINGS["horizon"]):
                step(other, number + ahead, flipped)
            pending = number, t, held_out(other, number)
        seen.append(a.clone())
        step(pair, number, a)
    return torch.stack(seen), dict(model.named_parameters())


@pytest.mark.parametrize("stage, ranks", [(0, 1), (0, 2), (3, 2)])
def test_it_trains_as_a_loop_with_copies_does(stage, ranks):
    slopes, weights = by_hand(ranks)
    assert len({tuple(a) for a in slopes.tolist()}) > 1  # a switch turned
    for seen, found in on_ranks(trained_on_a_rank, ranks, stage):
        assert torch.equal(seen, slopes)
        assert all(torch.allclose(found[name], w, atol=1e-5) for name, w in weights.items())


@pytest.mark.parametrize("start, begins, ends", [
    ("primary", [0, 20, 40], [10, 30, 50]), ("probe", [0, 6, 26, 46], [6, 16, 36, 56]),
])  # fmt: skip
def test_probes_begin_and_end_where_they_should(start, begins, ends):
    way = LookAhead(count=4, primary=1, skipped=[3], horizon=10, every=20, strength=0.1, steps=60, start=start)
    assert [n for n in range(60) if way.length(n)] == begins and [n for n in range(61) if way.begun(n) is not None] == ends
    turned = [way.turned(n) for n in begins]
    assert turned[-3:] == [[0], [2], [0]] and (start == "primary" or turned[0] == [0, 2])
    source = Numbered(0)
    assert way.beside_step(begins[-1], source) == [("held_out", begins[-1]), *(("train", begins[-1] + k) for k in range(10))]
    assert way.beside_step(ends[-1], source) == [("held_out", begins[-1])]


def test_a_switch_turns_beyond_a_margin_only_and_not_by_what_is_not_finite():
    way = LookAhead(count=2, primary=0, skipped=[], horizon=1, every=1, strength=0.01, steps=9)
    for turned, a in [(1.995, 0), (float("nan"), 0), (1.9, 0), (1.5, 1), (1.9, 0)]:
        way.learn([1], turned, 2.0)
        assert way.a.tolist() == [1, a], turned


@pytest.mark.parametrize("settings, train, aid, words", [
    (dict(horizon=10, every=5), {}, {}, "combiner.every=5: is less than combiner.horizon=10"),
    (dict(start="all"), {}, {}, "combiner.start=all"),
    (dict(horizon=30), dict(steps=20), {}, "combiner.horizon=30: looks beyond the end of training, train.steps=20"),
    ({}, {}, dict(meta_batch="next"), "aid.meta_batch=next: combiner.name=look_ahead judges by batches that training doesn't see; use held_out"),
])  # fmt: skip
def test_a_look_ahead_that_can_not_be_is_refused(settings, train, aid, words):
    from meltr_ray.config import AidConfig

    with pytest.raises(ConfigError, match=re.escape(words)):
        Config(workload=ToyWorkload(), combiner=CombinerConfig(name="look_ahead", **settings), train=TrainConfig(batch_size=8, **dict(steps=100) | train),
               aid=AidConfig(**dict(meta_batch="held_out") | aid))  # fmt: skip
