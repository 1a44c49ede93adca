"""MELTR that learns from look-aheads or stands behind their switches: runs that plain loops with copies give, resuming within a probe."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from meltr_ray import MELTR
from meltr_ray.combining import named
from meltr_ray.config import AidConfig, CombinerConfig, Config, TrainConfig
from meltr_ray.errors import ConfigError
from tests.engine_toy import ToyWorkload, toy
from tests.ranks import on_ranks
from tests.test_combining import Numbered, Spied, config_of, trained

STEPS = 20
SETTINGS = dict(horizon=3, every=7, embedding_size=16, loss_encoder_size=8, feed_forward_size=16)
GAMMA, RATE = 0.1, 0.02


def settings_of(name: str, stage: int = 0, **more) -> Config:
    config = config_of(name, stage, **SETTINGS | more)
    config.train.steps, config.aid.gamma, config.aid.learning_rate, config.aid.product = STEPS, GAMMA, RATE, "central"
    return config


def of(config: Config):
    """The way of a run, its phi away from the plain sum."""
    torch.manual_seed(0)
    way = named.WAYS[config.combiner.name].of(config, config.workload)
    nn.init.normal_(innermost(way.meltr.combiner).fc1.weight, std=0.5)
    return way


def innermost(combiner: nn.Module) -> MELTR:
    return next(module for module in combiner.modules() if isinstance(module, MELTR))


def trained_on_a_rank(name: str, stage: int, slopes: str) -> tuple[Tensor, dict[str, Tensor]]:
    """(slopes of each step, w and phi at the end)"""
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.loop import Progress, train

    config = settings_of(name, stage, slopes=slopes)
    engine = Engine(toy(dropout=0.0)[0], config, torch.device("cpu"))
    way = Spied(of(config))
    batches = [Numbered(engine.rank).of(way, step) for step in range(STEPS)]
    train(config, engine, way, batches, Progress(), lambda: None, lambda: None)
    return torch.stack(way.seen), engine.weights() | {
        f"phi/{n}": p.detach().clone() for n, p in innermost(way.meltr.combiner).named_parameters()
    }


def of_phi(meltr: MELTR, l: Tensor, slopes: str, graph: bool = False) -> Tensor:
    """a (T,) by a formula of its own."""
    l = l.detach().clone().requires_grad_()
    (s,) = torch.autograd.grad(meltr(l), l, create_graph=graph)
    if slopes == "any":
        return s
    shares = s.exp() / s.exp().sum()
    return 3 * (0.75 * shares + torch.tensor([0.25, 0.0, 0.0]))


class Plain:
    """torch's AdamW and deep copies of model and optimiser, the batches of all ranks in turn."""

    def __init__(self, ranks: int, slopes: str):
        self.sources, self.slopes_kind = [Numbered(rank) for rank in range(ranks)], slopes
        model = toy(dropout=0.0)[0]
        groups = [
            {"params": [p for n, p in model.named_parameters() if ("bias" in n) == bias], "weight_decay": 0.0 if bias else 0.01}
            for bias in (False, True)
        ]
        self.pair = model, torch.optim.AdamW(groups, lr=1e-2)
        config = settings_of("meltr_ahead", slopes=slopes)
        self.meltr = innermost(of(config).meltr.combiner)
        self.phi = torch.optim.Adam(self.meltr.parameters(), RATE, weight_decay=config.aid.weight_decay)

    def losses(self, pair, number: int) -> list[Tensor]:
        """Of each rank."""
        return [pair[0](source.made(source.trained(number))[0]) for source in self.sources]

    def step(self, pair, number: int, change) -> list[Tensor]:
        model, optimizer = pair
        rows = self.losses(pair, number)
        a = [change(of_phi(self.meltr, l, self.slopes_kind)) for l in rows]
        (sum(x @ l for x, l in zip(a, rows)) / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warm = 0.1 * STEPS
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (number + 1) / warm if number + 1 < warm else (STEPS - number) / (STEPS - warm))
        optimizer.step()
        optimizer.zero_grad()
        return a

    def held_out(self, pair, number: int) -> float:
        with torch.no_grad():
            return sum(float(pair[0](source.made(source.keys(number))[0], ("head",))) for source in self.sources) / len(self.sources)

    def standing(self, rows: list[Tensor]) -> Tensor:
        return torch.stack([of_phi(self.meltr, l, self.slopes_kind) for l in rows]).mean(0).double()

    def descend(self, rows: list[Tensor], e: Tensor) -> None:
        value = 0.0
        for l in rows:
            a = of_phi(self.meltr, l, self.slopes_kind, graph=True)
            total = self.meltr(l.detach()) if self.slopes_kind == "any" else a @ l.detach()
            value = value + ((a * e).sum() + GAMMA * (total - l.detach().sum()).abs()) / len(rows)
        self.phi.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.meltr.parameters(), 10.0)
        self.phi.step()

    def run(self) -> tuple[Tensor, dict[str, Tensor]]:
        """(slopes of each rank and step, w and phi)"""
        e, counts, seen, pending = torch.zeros(3, dtype=torch.float64), [0] * 3, [], None
        for number in range(STEPS):
            if pending and number == pending[0] + SETTINGS["horizon"]:
                start, t, turned, moved = pending
                counts[t] += 1
                e[t] = 0.5 * e[t] + 0.5 * (turned - self.held_out(self.pair, start)) / moved
                rows = [l.detach() for l in self.losses(self.pair, number)]
                mean = torch.stack([e[i] / (1 - 0.5 ** counts[i]) if counts[i] else e[i] for i in range(3)])
                a = self.standing(rows)
                mean[0] = -(a[1] * mean[1] + a[2] * mean[2]) / max(a[0], 0.1 * a.abs().mean())
                for _ in range(2):  # every / inner_steps, 7 / 3
                    self.descend(rows, (mean / mean.norm()).float())
            if number % SETTINGS["every"] == 0 and number + SETTINGS["horizon"] <= STEPS:
                t = 1 + number // SETTINGS["every"] % 2
                now = float(self.standing([l.detach() for l in self.losses(self.pair, number)])[t])
                target = 0.0 if now >= 0.5 else 1.0
                other = copy.deepcopy(self.pair)
                for ahead in range(SETTINGS["horizon"]):
                    self.step(other, number + ahead, lambda a: torch.cat([a[:t], torch.tensor([target]), a[t + 1 :]]))
                pending = number, t, self.held_out(other, number), target - now
            seen.append(torch.stack(self.step(self.pair, number, lambda a: a)))
        return torch.stack(seen, 1), dict(self.pair[0].named_parameters()) | {f"phi/{n}": p for n, p in self.meltr.named_parameters()}


@pytest.mark.parametrize("stage, ranks, slopes", [(0, 1, "any"), (0, 2, "simplex"), (3, 2, "any")])
def test_phi_learns_from_look_aheads_as_a_loop_with_copies_does(stage, ranks, slopes):
    expected, weights = Plain(ranks, slopes).run()
    assert (expected[0, -1] - expected[0, 0]).abs().max() > 0.05  # phi moved
    found = on_ranks(trained_on_a_rank, ranks, "meltr_ahead", stage, slopes)
    for rank, (seen, ours) in enumerate(found):
        assert torch.allclose(seen, expected[rank], atol=1e-3)
        known = {
            name: w for name, w in weights.items() if not name.endswith("in_proj_bias")
        }  # keys': no gradient, of whose rounding Adam makes steps
        # as whole tensors: Adam makes 1e-4 of the rounding of single gradients near 0, and 0.02 of each step of phi
        assert all((ours[name] - w).norm() <= 5e-4 * w.norm() for name, w in known.items())
        assert all(torch.equal(ours[name], found[0][1][name]) for name in weights)


@pytest.mark.parametrize("slopes", ["any", "simplex"])
def test_a_gated_slope_is_meltrs_or_zero(slopes):
    ((seen, weights),) = on_ranks(trained_on_a_rank, 1, "meltr_gated", 0, slopes)
    way = of(settings_of("meltr_gated", slopes=slopes))
    started = {f"phi/{name}": p for name, p in innermost(way.meltr.combiner).named_parameters()}
    assert (seen[:, 0] != 0).all() and seen[0, 1:].tolist() == [0, 0]  # the switches start with the primary alone
    assert any((weights[name] != p).any() for name, p in started.items())
    losses = torch.tensor([1.0, 0.5, 2.0])
    for open in ([1, 0, 1], [1, 1, 1], [1, 0, 0]):
        way.a = torch.tensor(open).float()
        way.switch()
        expected = of_phi(innermost(way.meltr.combiner), losses, slopes) * way.a
        assert torch.allclose(way.slopes(losses, None)[1], expected, atol=1e-6)
        flipped = way.changed([1], None)(losses, None)  # what a probe of loss 1 trains with
        expected = of_phi(innermost(way.meltr.combiner), losses, slopes) * torch.tensor([open[0], 1 - open[1], open[2]])
        assert torch.allclose(flipped, expected, atol=1e-6)
        assert way.meltr.combiner.open.tolist() == open


def test_phi_rests_while_a_probe_is_under_way():
    way, numbers = of(settings_of("meltr_gated")), range(STEPS)
    assert [n for n in numbers if way.phi_learns(n)] == [5, 11]
    assert [n for n in numbers if way.is_due(n)] == [0, 3, 5, 7, 10, 11, 14, 17]
    assert way.beside_step(5, Numbered(0)) == [("held_out", 5)]


@pytest.mark.parametrize("name, stage, settings, aid", [
    ("meltr_ahead", 0, dict(inputs="relative"), {}), ("meltr_ahead", 3, dict(slopes="simplex", dropout=0.2), {}),
    ("meltr_gated", 3, dict(start="uniform"), {}), ("meltr_gated", 0, dict(slopes="simplex"), dict(normalise=True)),
    ("meltr", 0, dict(slopes="simplex", inputs="relative"), dict(normalise=True, betas=[0.9, 0.99])),
])  # fmt: skip
@pytest.mark.parametrize("stop", [9, 12])
def test_a_run_stopped_within_a_probe_or_after_it_goes_on_bit_identical(name, stage, settings, aid, stop, tmp_path):
    """Steps 7 to 9 are those of a probe. phi and all else that is shared are alike on both ranks, whose data differ."""
    settings = (SETTINGS if name != "meltr" else {k: v for k, v in SETTINGS.items() if k not in ("horizon", "every")}) | settings
    aid = dict(learning_rate=RATE) | aid
    whole, resumed = (on_ranks(trained, 2, name, stage, 18, str(tmp_path), at, "exact", settings, aid) for at in (0, stop))
    for (slopes, state), (again, state_again) in zip(whole, resumed):
        assert torch.equal(slopes, again) and state.keys() == state_again.keys()
        assert all(torch.equal(state[key], state_again[key]) for key in state)
        assert all(torch.equal(state[key], whole[0][1][key]) for key in state if key.startswith("meta/"))
    assert (whole[0][0][-1] - whole[0][0][0]).abs().max() > 1e-3


def test_the_primarys_derivative_is_what_makes_scaling_all_slopes_do_nothing():
    way = of(settings_of("meltr_ahead"))
    way.counts[:], way.means[:] = 1, torch.tensor([0.0, 0.2, -0.05])
    a = torch.tensor([0.8, 1.0, 1.2], dtype=torch.float64)
    e = way.derivatives(a)
    assert e.norm() == pytest.approx(1) and a @ e == pytest.approx(0, abs=1e-12) and e[1] / e[2] == pytest.approx(-4)
    way.counts[:], way.means[:] = 0, torch.zeros(3)
    assert not way.derivatives(a).any()


@pytest.mark.parametrize("name, settings, aid, words", [
    ("meltr_gated", dict(every=21, horizon=18), {}, "combiner.every=21: leaves phi no step to learn in between probes; give combiner.horizon + aid.inner_steps + 1, 22"),
    ("meltr_ahead", dict(start="uniform"), {}, "combiner.start=uniform: combiner.name=meltr_ahead makes nothing of it"),
    ("meltr_ahead", dict(horizon=200, every=300), {}, "combiner.horizon=200: looks beyond the end of training"),
    ("meltr_gated", {}, dict(meta_batch="next"), "aid.meta_batch=next: combiner.name=meltr_gated judges by batches that training doesn't see"),
    ("meltr", dict(slopes="simplex"), dict(solver="cg"), "aid.solver=cg: takes the Hessian of g_phi"),
    ("meltr", dict(slopes="line"), {}, "combiner.slopes=line: unknown; use one of any, non_negative, simplex"),
    ("meltr", dict(floor=0.5), {}, "combiner.floor=0.5: combiner.slopes=any makes nothing of it"),
    ("meltr", dict(slopes="simplex", floor=1.0), {}, "combiner.floor=1.0: must lie between 0 and 0.99"),
    ("meltr", dict(inputs="sqrt"), {}, "combiner.inputs=sqrt: unknown; use one of raw, log, relative"),
    ("meltr", {}, dict(betas=[0.9]), "aid.betas=[0.9]: must be two numbers"),
    ("meltr", {}, dict(betas=[0.9, 1.0]), "aid.betas=1.0: must lie between 0 and 0.999999"),
])  # fmt: skip
def test_what_can_not_be_is_refused_in_one_line(name, settings, aid, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        Config(
            workload=ToyWorkload(),
            combiner=CombinerConfig(name=name, **settings),
            train=TrainConfig(batch_size=8, steps=100),
            aid=AidConfig(**aid),
        )


@pytest.mark.parametrize("horizon, every, inner_steps", [(20, 34, 3), (1, 500, 1), (80, 100, 10)])
@pytest.mark.parametrize("name", ["meltr_ahead", "meltr_gated"])
def test_the_short_runs_that_time_a_sweep_learn_too(name, horizon, every, inner_steps):
    from meltr_ray.cluster.timing import cut

    settings = CombinerConfig(name=name, horizon=horizon, every=every)
    config = Config(
        workload=ToyWorkload(), combiner=settings, train=TrainConfig(batch_size=8, steps=1000), aid=AidConfig(inner_steps=inner_steps)
    )
    short = cut(config)
    named.WAYS[name].check(short)
    way = named.WAYS[name].of(short, short.workload)
    assert short.train.steps >= 2 * short.combiner.every > 2 * short.combiner.horizon and any(map(way.is_due, range(short.train.steps)))
    assert name == "meltr_ahead" or any(map(way.phi_learns, range(short.train.steps)))
