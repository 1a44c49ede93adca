"""Every way to combine losses: against torchjd on the exact Jacobian and in a plain loop, its state, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchjd.aggregation as aggregation
from scipy.optimize import minimize
from torch.func import jacrev

from meltr_ray.combining import named
from meltr_ray.combining.aligned import closed_form
from meltr_ray.combining.random_gramian import RandomGramian
from meltr_ray.combining.seeded import seeded
from meltr_ray.combining.way import EFFECTS
from meltr_ray.config import CombinerConfig
from meltr_ray.errors import ConfigError
from meltr_ray.hypergrad import ModuleProblem
from meltr_ray.hypergrad.vectors import Vector
from tests.engine_toy import ToyWorkload, toy, toy_batch, toy_config
from tests.ranks import on_ranks
from tests.reference import DenseReference, relative_error

ROWS = {
    "pcgrad": aggregation.PCGrad, "cagrad": lambda: aggregation.CAGrad(c=0.5), "mgda": aggregation.MGDA, "aligned_mtl": aggregation.AlignedMTL,
    "imtl_g": aggregation.IMTLG, "upgrad": aggregation.UPGrad, "dualproj": aggregation.DualProj, "gradvac": lambda: aggregation.GradVac(beta=0.5),
    "fairgrad": lambda: aggregation.FairGrad(alpha=2.0), "pcd": lambda: aggregation.PCD(tau=0.02),
}  # fmt: skip
"""Way -> torchjd's aggregator of a Jacobian."""


def config_of(name, stage=0, **settings):
    config = toy_config(stage, product="central")
    often = {key: 1 for key in ("every", "window", "horizon") if getattr(named.WAYS[name], key) is not None}
    aid = replace(config.aid, meta_batch="held_out")
    return replace(
        config, combiner=CombinerConfig(name=name, **often | settings), losses=replace(config.losses), workload=ToyWorkload(), aid=aid
    )


class Numbered:
    """Names of batches, and the batches of a rank."""

    def __init__(self, rank):
        self.start = {"train": 1000 * rank, "held_out": 1000 * rank + 500}

    def trained(self, step):
        return [("train", step)]

    def keys(self, step):
        return [("held_out", step)]

    def ahead(self, first, steps):
        return "train", range(first, first + steps)

    def of(self, way, step):
        """What the loop is given for a step."""
        beside = way.beside_step(step, self)
        return self.made(self.trained(step)), None if beside is None else self.made(beside)

    def made(self, keys):
        return [self.made([(source, each) for each in number]) if isinstance(number, range) else toy_batch(self.start[source] + number)
                for source, number in keys]  # fmt: skip


def way_of(name, **settings):
    return named.WAYS[name].of(config_of(name, **settings), ToyWorkload())


def trained(name, stage, steps, folder, stop, gramian="exact", settings=None, aid=None):
    """(slopes of each step, all state at the end) of a run that was stopped after `stop` steps and made again from its checkpoint; 0: never."""
    from meltr_ray.training import checkpoint
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.loop import Progress, train
    from meltr_ray.training.state import RunState, restore_weights

    config, root, cpu = config_of(name, stage, gramian=gramian, **settings or {}), Path(folder), torch.device("cpu")
    config.aid = replace(config.aid, **aid or {})
    config.train.steps = steps

    def build(found):
        model = toy(dropout=0.3)[0]
        if found:
            restore_weights(found, model)
        engine, way = Engine(model, config, cpu), Spied(named.WAYS[name].of(config, config.workload))
        torch.manual_seed(100 + engine.rank)
        state = RunState(engine, way, Progress())
        if found:
            state.restore(found)
        return state

    def advance(state, last):
        batches = [Numbered(state.engine.rank).of(state.way, step) for step in range(state.progress.step, last)]
        train(config, state.engine, state.way, batches, state.progress, lambda: None, lambda: None)
        state.save(root / f"{stop}-{last}", {})
        return checkpoint.load(checkpoint.latest(root / f"{stop}-{last}"), state.engine.rank)[:2]

    state, seen = build(None), []
    if stop:
        advance(state, stop)
        seen, state = state.way.seen, build(checkpoint.latest(root / f"{stop}-{stop}"))
    shared, own = advance(state, steps)
    return torch.stack(seen + state.way.seen), shared | own


class Spied:
    """A way whose slopes are kept."""

    def __init__(self, inner):
        self.inner, self.seen = inner, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def slopes(self, losses, batch):
        value, a = self.inner.slopes(losses, batch)
        self.seen.append(a.clone())
        return value, a


def gramian_on_a_rank(stage):
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.step import EngineStep

    config = toy_config(stage, accumulation=2)
    engine = Engine(toy()[0], config, torch.device("cpu"))
    step = EngineStep(engine, 0, [toy_batch(2 * engine.rank), toy_batch(2 * engine.rank + 1)], [], "head", config.aid)
    return step.gramian()


def jacobian(count):
    """(T, p): gradients of the mean losses over batches, dense in float64."""
    model = toy()[0].double()
    model.counting = False
    batches = [replace(batch, x=batch.x.double(), y=batch.y.double()) for batch in map(toy_batch, range(count))]
    dense = DenseReference(model, lambda m: torch.stack([m(batch) for batch in batches]).mean(0), lambda m: m(batches[0])[0])
    return jacrev(dense.losses)(dense.w)


@pytest.fixture(scope="module")
def exact():
    """Of two ranks and two micro-batches."""
    return jacobian(4)


@pytest.mark.parametrize("stage", [0, 3])
def test_the_gramian_is_that_of_the_mean_losses_alike_on_all_ranks(stage, exact):
    first, second = on_ranks(gramian_on_a_rank, 2, stage)
    assert torch.equal(first, second) and relative_error(first, exact @ exact.T) < 1e-6


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("stage", [0, 3])
def test_a_weighting_of_the_gramian_is_torchjds_step_on_the_jacobian(name, stage, exact):
    way = way_of(name)
    a = way.weights(on_ranks(gramian_on_a_rank, 2, stage)[0])
    with seeded(way.seed, 0):
        step = ROWS[name]()(exact)
    assert relative_error(exact.T @ a, step) < 1e-5


DRAWS = 4096


def random_gramian_on_a_rank(stage, num_micro, draws):
    """(G, entries of a draw that aren't 0)."""
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.step import EngineStep

    config = toy_config(stage, accumulation=num_micro, product="one_sided")
    engine = Engine(toy()[0], config, torch.device("cpu"))
    step = EngineStep(engine, 3, [toy_batch(num_micro * engine.rank + micro) for micro in range(num_micro)], [], "head", config.aid)
    return RandomGramian(draws, 64, seed=0)(step), sum(int(piece.count_nonzero()) for piece in step.problem().random(0).pieces)


def cosines(G):
    length = G.diagonal().sqrt()
    return G / torch.outer(length, length)


@pytest.mark.parametrize(
    "stage, num_micro, draws", [(0, 2, DRAWS), (3, 1, DRAWS // 8), pytest.param(3, 1, DRAWS, marks=pytest.mark.slow)]
)  # at ZeRO 3 a draw costs ten times as much
def test_a_random_gramian_is_near_the_exact_one_alike_on_all_ranks(stage, num_micro, draws):
    (first, entries), (second, others) = on_ranks(random_gramian_on_a_rank, 2, stage, num_micro, draws)
    J = jacobian(2 * num_micro)
    assert torch.equal(first, second)
    bound = 0.05 * (DRAWS / draws) ** 0.5
    assert (cosines(first) - cosines(J @ J.T)).abs().max() < bound
    assert (first.diagonal() / (J @ J.T).diagonal() - 1).abs().max() < 4 * (2 / draws) ** 0.5  # of a mean of squares of normal numbers
    assert (entries if stage == 0 else entries + others) == J.shape[1]  # padding of shards is no weight
    of_random, of_exact = (J.T @ way_of("fairgrad").weights(G) for G in (first, J @ J.T))
    assert relative_error(of_random, of_exact) < bound


def projections_on_a_rank(stage):
    """(J z, its rows' inner products with z) of three draws, with dropout."""
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.step import EngineStep

    config = toy_config(stage, accumulation=2, product="central")
    engine = Engine(toy(dropout=0.3)[0], config, torch.device("cpu"))
    step = EngineStep(engine, 0, [toy_batch(2 * engine.rank + micro) for micro in range(2)], [], "head", config.aid)
    by_gradients = torch.stack([step.problem().random(seed).dots(step.gradients()) for seed in range(3)])
    return step.problem().projections(range(3)), by_gradients


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_random_pass_is_the_product_of_the_exact_gradients_with_the_draw(stage):
    (first, by_gradients), (second, _) = on_ranks(projections_on_a_rank, 2, stage)
    assert torch.equal(first, second) and relative_error(first, by_gradients) < 5e-3


class WithConstants(torch.nn.Module):
    """The toy's losses and two more that don't depend on w: one a number, one but for rounding."""

    def __init__(self):
        super().__init__()
        self.toy = toy()[0]
        self.toy.counting = False

    def forward(self, batch):
        constants = torch.stack([torch.tensor(0.7, dtype=batch.x.dtype), 3.3 * self.toy.body(batch.x).softmax(1).sum(1).mean()])
        return torch.cat([self.toy(batch), constants])


def with_constants(product, dtype=torch.float32):
    model = WithConstants().to(dtype)
    batch = toy_batch(0)
    batch = replace(batch, x=batch.x.to(dtype), y=batch.y.to(dtype))
    return ModuleProblem(model, lambda: model(batch), lambda: model.toy(batch, ("head",))[0], product=product)


@pytest.mark.parametrize("product", ["one_sided", "central"])
def test_a_loss_that_changes_by_rounding_has_no_gradient_in_random_passes(product):
    problem = with_constants(product)
    G = RandomGramian(8, 64, seed=0)(SimpleNamespace(number=0, problem=lambda: problem))
    assert (G.diagonal()[:3] > 0).all() and not G[3:].any()
    config = config_of("mgda")
    config.losses.set = ["head", "decoder", "steep", "a number", "a constant"]
    assert named.WAYS["mgda"].of(config, config.workload).weights(G)[3:].tolist() == [0, 0]


def test_random_passes_in_adams_metric_see_its_gramian():
    """Scales over six decades, as those of weights that gradients seldom reach."""
    problem = with_constants("one_sided", torch.float64)
    generator = torch.Generator().manual_seed(0)
    scale = Vector(tuple(10 ** (-6 * torch.rand(p.shape, generator=generator, dtype=p.dtype)) for p in problem.parameters))
    found = problem.projections(range(DRAWS), scale)
    J = torch.stack(
        [
            torch.cat([(piece / root.sqrt()).flatten() for piece, root in zip(row.pieces, scale.pieces)])
            for row in problem.loss_gradients()[:3]
        ]
    )
    G, expected = (found.T @ found / DRAWS)[:3, :3], J @ J.T
    assert (cosines(G) - cosines(expected)).abs().max() < 0.05 and (G.diagonal() / expected.diagonal() - 1).abs().max() < 0.1


@pytest.mark.parametrize("name, forward, backward", [("mgda", 8, 0), ("aligned", 8 + 1 + 1, 1)])
def test_a_look_by_random_passes_costs_what_the_documentation_says(name, forward, backward):
    """And the mean over looks goes on: the first takes as many draws as the way needs."""
    config = config_of(name, gramian="random")
    way, least = named.WAYS[name].of(config, config.workload), named.WAYS[name].least_draws
    model = toy()[0]
    for number in range(3):
        problem = ModuleProblem(model, lambda: model(toy_batch(number)), lambda: model(toy_batch(9), ("head",))[0], product="one_sided")
        step = SimpleNamespace(number=number, problem=lambda: problem, adam_scale=lambda: None, average=list)
        problem.losses()  # the inner step's own
        found = {name: value for name, value in way.before(step).items() if name != EFFECTS}
        extra = least - 8 if number == 0 or name == "aligned" else 0  # without moments no look lasts
        assert found == {"meta_forward_passes": forward + extra, "meta_backward_passes": backward}
    assert way.random.draws == pytest.approx(0 if name == "aligned" else 0.81 * 64 + 0.9 * 8 + 8)


ODD = {
    "a loss without a gradient": [[2.0, -1.0, 0.5], [0.0, 0.0, 0.0], [-1.0, 3.0, 0.1]],
    "one direction": [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.5, 1.0, 1.5]],
    "against each other": [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    "tiny": [[1e-9, 2e-9, 0.0], [-1e-9, 1e-9, 0.0], [0.0, 1e-9, 1e-9]],
    "huge": [[1e9, 2e9, 0.0], [-1e9, 1e9, 0.0], [0.0, 1e9, 1e9]],
    "far apart": [[1e6, 0.0, 0.0], [0.0, 1e-6, 0.0], [1.0, 1.0, 1.0]],
}


@pytest.mark.parametrize("rows", ODD.values(), ids=ODD)
@pytest.mark.parametrize("name", named.OF_GRAMIAN)
def test_odd_gradients_give_finite_slopes_and_none_to_a_loss_without(name, rows):
    J = torch.tensor(rows, dtype=torch.float64)
    a = way_of(name).weights(J @ J.T)
    assert a.shape == (3,) and a.isfinite().all() and (a[J.norm(dim=1) == 0] == 0).all()


def test_a_single_loss_is_trained_on_by_every_way():
    config = config_of("mgda")
    config.losses.set = ["head"]
    for name, kind in named.OF_GRAMIAN.items():
        config.combiner = CombinerConfig(name=name)
        assert kind.of(config, config.workload).weights(torch.tensor([[4.0]], dtype=torch.float64)) > 0, name
    for name, kind in named.OF_LOSSES.items():
        config.combiner = CombinerConfig(name=name)
        assert kind.of(config, config.workload).slopes(torch.tensor([0.7]), None)[1] > 0, name


def test_a_gate_shuts_out_what_contradicts_the_primary():
    J = torch.tensor([[1.0, 0.0], [-0.1, 1.0], [0.1, -1.0]], dtype=torch.float64)
    config = config_of("cosine_gate")
    config.losses.primary = "decoder"
    assert way_of("cosine_gate").weights(J @ J.T).tolist() == [1, 0, 1]
    assert named.WAYS["cosine_gate"].of(config, config.workload).weights(J @ J.T).tolist() == [0, 1, 0]


def plain_loop(name, steps):
    """As torchjd's documentation trains: the scalarizer called on the losses, its parameters in an optimiser, backward, step."""
    import torchjd.scalarization as scalarization

    model = toy()[0]
    made = {"uncertainty": lambda: scalarization.UW(3), "imtl_l": lambda: scalarization.IMTLL(3), "dwa": lambda: scalarization.DWA(2.0),
            "stch": lambda: scalarization.STCH(0.1), "geometric_mean": scalarization.GeometricMean, "famo": lambda: scalarization.FAMO(3, lr=0.025)}  # fmt: skip
    scalarizer = made[name]()
    w = torch.optim.SGD(model.parameters(), 0.1)
    phi = torch.optim.Adam(scalarizer.parameters(), 0.01) if name in ("uncertainty", "imtl_l") else None
    for step in range(steps):
        for optimizer in filter(None, (w, phi)):
            optimizer.zero_grad()
        scalarizer(model(toy_batch(step))).backward()
        for optimizer in filter(None, (w, phi)):
            optimizer.step()
        if name == "famo":
            scalarizer.update(model(toy_batch(step)))
        if name == "dwa" and (step + 1) % 4 == 0:
            scalarizer.step()
    return model


def our_loop(name, steps):
    model = toy()[0]
    config = config_of(name, **{"window": 4} if name == "dwa" else {})
    config.optimizer.learning_rate = 0.01
    way, w = named.WAYS[name].of(config, config.workload), torch.optim.SGD(model.parameters(), 0.1)
    for step in range(steps):
        losses = model(toy_batch(step))
        _, a = way.slopes(losses, None)
        w.zero_grad()
        (a @ losses).backward()
        w.step()
        way.after(SimpleNamespace(number=step, losses_again=lambda: model(toy_batch(step)).detach()[None], average=list))
    return model


@pytest.mark.parametrize("name", ["uncertainty", "imtl_l", "dwa", "stch", "geometric_mean", "famo"])
def test_slopes_train_as_torchjds_own_loop_does(name):
    ours, theirs = our_loop(name, 14), plain_loop(name, 14)
    start = torch.cat([p.flatten() for p in toy()[0].parameters()])
    moved = [torch.cat([p.flatten() for p in model.parameters()]) - start for model in (ours, theirs)]
    assert relative_error(*moved) < 1e-5 and moved[1].norm() > 0.1


def test_softened_optimal_weights_are_those_of_the_paper():
    losses = torch.tensor([0.5, 2.0, 1.0])
    value, a = way_of("uw_so", temperature=2.0).slopes(losses, None)
    expected = torch.exp(1 / losses / 2.0)
    assert torch.allclose(a, expected / expected.sum()) and torch.allclose(value, a @ losses)


@pytest.mark.parametrize("name", named.OF_LOSSES)
def test_what_a_way_keeps_is_all_that_it_goes_on_from(name):
    """Of all that see losses alone, those to come too."""
    drawn = 0.5 + torch.rand(9, 3, generator=torch.Generator().manual_seed(0))

    def slopes(way, first, last):
        found = []
        for number in range(first, last):
            found.append(way.slopes(drawn[number], None)[1])
            way.after(SimpleNamespace(number=number, average=lambda each: each, losses_again=lambda: [0.9 * drawn[number]]))
        return torch.stack(found)

    whole, before, again = (way_of(name, **({"window": 2} if "window" in vars(named.WAYS[name]) else {})) for _ in range(3))
    expected = slopes(whole, 0, 9)
    slopes(before, 0, 5)
    again.load_state({key: value.clone() for key, value in before.state().items()})
    assert torch.equal(slopes(again, 5, 9), expected[5:])


@pytest.mark.parametrize("name, gramian", [*((name, "exact") for name in ("famo", "uncertainty", "dwa", "rlw", "gradvac", "pcgrad", "pcd", "aligned")),
                                           ("mgda", "random"), ("aligned", "random")])  # fmt: skip
def test_a_resumed_run_is_bit_identical_and_alike_on_ranks(name, gramian, tmp_path):
    stage = 3 if name in ("famo", "gradvac", "aligned") else 0
    whole, resumed = (on_ranks(trained, 2, name, stage, 7, str(tmp_path), stop, gramian) for stop in (0, 4))
    assert torch.equal(whole[0][0], whole[1][0])  # though their data differ
    assert len(whole[0][0].unique(dim=0)) > 3
    for (slopes, state), (again, state_again) in zip(whole, resumed):
        assert torch.equal(slopes, again) and state.keys() == state_again.keys()
        assert all(torch.equal(state[key], state_again[key]) for key in state)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("floor", [0.0, 0.25, 0.6])
def test_the_aligned_form_is_the_best_there_is(seed, floor):
    """Against a general solver from many starts; the step is as long as the primary's."""
    generator = torch.Generator().manual_seed(seed)
    J = (
        torch.randn(5, 4 if seed == 3 else 9, generator=generator, dtype=torch.float64)
        * torch.tensor([1.0, 30.0, 0.02, 1.0, 5.0], dtype=torch.float64)[:, None]
    )
    C, c = J @ J.T, J @ torch.randn(J.shape[1], generator=generator, dtype=torch.float64)
    w, length = closed_form(c, C, 0, floor), C.diagonal().sqrt()
    assert w @ C @ w == pytest.approx(float(C[0, 0]), rel=1e-6) and (w >= 0).all()
    assert w[0] * length[0] >= floor * (w * length).sum() - 1e-9

    def worse(u):
        w = torch.from_numpy(u) / length
        return -float(c @ w / (w @ C @ w).clamp(min=1e-12).sqrt())

    starts = np.random.default_rng(seed).random((20, 5)) + 0.05
    limits = [{"type": "ineq", "fun": lambda u: u[0] - floor * u.sum()}, {"type": "eq", "fun": lambda u: u.sum() - 1}]
    found = [minimize(worse, start / start.sum(), bounds=[(0, None)] * 5, constraints=limits) for start in starts]
    best = min((one.fun for one in found if one.success), default=0.0)
    if best < -1e-9:
        assert -worse((w * length).numpy()) == pytest.approx(-best, rel=1e-3)
    else:  # nothing helps: the primary alone
        assert torch.nonzero(w).flatten().tolist() == [0]


def test_the_aligned_form_leaves_out_what_has_no_gradient():
    C = torch.diag(torch.tensor([4.0, 0.0, 1.0], dtype=torch.float64))
    w = closed_form(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), C, 0, 0.0)
    assert w[1] == 0 and w[2] > 0 and closed_form(torch.tensor([-1.0, 0.0, -1.0], dtype=torch.float64), C, 0, 0.0).tolist() == [1, 0, 0]


@pytest.mark.parametrize("name", [name for name, kind in named.WAYS.items() if kind.positive])
def test_a_loss_that_is_not_positive_is_refused_where_that_would_be_wrong(name):
    way = way_of(name)
    way.slopes(torch.tensor([0.1, 1e-6, 3.0]), None)
    for bad in (-0.25, 0.0):
        with pytest.raises(ConfigError, match=f"^losses.set=decoder: is {bad:g}, and this way to combine losses needs positive ones"):
            way.slopes(torch.tensor([0.1, bad, 3.0]), None)


def test_settings_that_a_way_has_no_use_for_are_refused(monkeypatch):
    assert (
        CombinerConfig(name="aligned", gramian="random", passes=1).passes == 1 and CombinerConfig(name="mgda", gramian="random").passes == 8
    )
    assert CombinerConfig(name="cagrad").strength == 0.5 and CombinerConfig(name="dwa").temperature == 2.0
    for settings, rule in (({"name": "mgda", "strength": 0.5}, "combiner.strength=0.5: combiner.name=mgda makes nothing of it"),
                           ({"name": "fixed", "temperature": 2.0}, "combiner.temperature=2.0: combiner.name=fixed makes nothing"),
                           ({"name": "stch", "temperature": 0.0}, "combiner.temperature=0.0: must lie between 1e-06 and 1e+06"),
                           ({"name": "gradvac", "strength": 5.0}, "combiner.strength=5.0: must be at most 1 for combiner.name=gradvac"),
                           ({"name": "famo", "strength": float("inf")}, "combiner.strength=inf: must lie between 1e-09 and 1000"),
                           ({"name": "dwa", "every": 5}, "combiner.every=5: combiner.name=dwa makes nothing of it"),
                           ({"name": "mgda", "gramian": "sketched"}, "combiner.gramian=sketched: unknown; use one of exact, random"),
                           ({"name": "meltr", "gramian": "random"}, "combiner.gramian=random: combiner.name=meltr sees no Gramian; leave it out"),
                           ({"name": "mgda", "passes": 8}, "combiner.passes=8: combiner.gramian=exact draws nothing; leave it out, or use combiner.gramian=random"),
                           ({"name": "mgda", "gramian": "random", "passes": 3}, "combiner.passes=3: acts as 57 draws, and combiner.name=mgda needs 64; give 4 or more"),
                           ({"name": "aligned", "gramian": "random", "passes": 0}, "combiner.passes=0: must lie between 1 and 1024"),
                           ({"name": "mgda", "weights": [1, 2]}, "combiner.weights=[1, 2]: combiner.name=mgda makes nothing of them"),
                           ({"name": "fixed", "weights": [1, float("nan")]}, "combiner.weights=nan: is no number; give one between")):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            CombinerConfig(**settings)
        assert rule in str(caught.value)
    monkeypatch.setattr("meltr_ray.config.outer_level.find_spec", lambda name: None if name == "quadprog" else object())
    with pytest.raises(ConfigError, match="^combiner.name=upgrad: needs quadprog; pip install 'meltr-ray.methods.'$"):
        CombinerConfig(name="upgrad")
