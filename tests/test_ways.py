"""What a way to combine losses may ask of a step, and what the loop makes of it: alignments, Gramian, losses after, state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev

from meltr_ray.combining.fixed import Fixed
from meltr_ray.combining.slopes import slopes
from meltr_ray.combining.way import Way
from meltr_ray.hypergrad import ModuleProblem, hypergradient
from meltr_ray.hypergrad.replayed import Replayed
from tests.engine_toy import toy, toy_batch, toy_config
from tests.ranks import on_ranks
from tests.reference import DenseReference, flat, relative_error


class Curious(Way):
    """Asks for everything, and trains on what it has seen."""

    learns = True

    def __init__(self):
        self.seen: dict[str, Tensor] = {}
        self.weights = torch.ones(3)

    def is_due(self, number: int) -> bool:
        return True

    def before(self, step: Any) -> dict[str, Any]:
        self.seen |= {"alignments": step.alignments(), "gramian": step.gramian(), "before": step.problem().losses().detach().clone()}
        return {}

    def slopes(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        return self.weights @ losses, self.weights

    def after(self, step: Any) -> None:
        self.seen["after"] = step.losses_again()

    def state(self) -> dict[str, Tensor]:
        return {"weights": self.weights}


def asked_on_a_rank(stage: int) -> dict[str, Tensor]:
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.loop import Progress, train

    config = toy_config(stage, steps=1, product="one_sided")
    engine, way = Engine(toy(dropout=0.3)[0], config, torch.device("cpu")), Curious()
    torch.manual_seed(7)
    expected = None
    train(config, engine, way, [([toy_batch(engine.rank)], [toy_batch(10 + engine.rank)])], Progress(), lambda: None, lambda: None)
    torch.manual_seed(7)
    with torch.no_grad():
        expected = engine.losses(toy_batch(engine.rank))[None]  # at the new w, with the masks that the step had
    return way.seen | {"expected": expected}


@pytest.mark.parametrize("stage", (0, 3))
def test_a_way_may_ask_alignments_the_gramian_and_the_losses_after_the_step(stage):
    """Against dense float64 at dropout 0; `after` is the same batch with the same masks at the w that the step led to.

    Alignments are those of a rank's own losses, the Gramian that of the losses' means over ranks.
    """
    for seen in on_ranks(asked_on_a_rank, 2, stage):
        assert torch.equal(seen["after"], seen["expected"]) and not torch.equal(seen["after"], seen["before"])
        assert seen["alignments"].shape == (1, 3)
    for rank, seen in enumerate(on_ranks(dense_asked_on_a_rank, 2, stage)):
        model = toy()[0].double()
        model.counting = False
        own, metas = [widened(toy_batch(i)) for i in range(2)], [widened(toy_batch(10 + i)) for i in range(2)]
        dense = DenseReference(
            model, lambda m: torch.stack([m(batch) for batch in own]), lambda m: sum(m(q, ("head",))[0] for q in metas) / 2
        )
        J = jacrev(dense.losses)(dense.w)  # (rank, T, p)
        assert relative_error(seen["alignments"][0].double(), J[rank] @ dense.outer_gradient()) < 1e-2
        assert relative_error(seen["gramian"], J.mean(0) @ J.mean(0).T) < 1e-4


def dense_asked_on_a_rank(stage: int) -> dict[str, Tensor]:
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.step import EngineStep

    config = toy_config(stage, steps=1, product="one_sided")
    engine = Engine(toy()[0], config, torch.device("cpu"))
    step = EngineStep(engine, 0, [toy_batch(engine.rank)], [toy_batch(10 + engine.rank)], "head", config.aid)
    return {"alignments": step.alignments(), "gramian": step.gramian()}


def widened(batch: Any) -> Any:
    return type(batch)(batch.x.double(), batch.y.double())


def test_fixed_slopes_are_those_of_the_weighted_sum():
    way, losses = Fixed([1.0, 0.5, 2.0]), torch.tensor([3.0, -1.0, 2.0])
    value, a = way.slopes(losses, None)
    by_autograd = slopes(way.combiner, losses)
    assert torch.equal(value, by_autograd[0]) and torch.equal(a, by_autograd[1])


class Dropping(nn.Module):
    """A combiner with dropout of its own, and no way to fix its masks."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64))

    def forward(self, losses: Tensor) -> Tensor:
        return nn.functional.dropout(self.weights * losses.square(), 0.5).sum()


def test_a_combiner_that_drops_out_is_the_same_function_in_every_pass():
    """The hypergradient is that of one draw, the one where the generators stood; and they stay there."""
    torch.manual_seed(0)
    model, combiner = toy()[0].double(), Dropping()
    model.counting = False
    batch, meta = widened(toy_batch(0)), widened(toy_batch(1))
    problem = ModuleProblem(model, lambda: model(batch), lambda: model(meta, ("head",))[0], product="central")
    torch.manual_seed(5)
    found, after = flat(hypergradient(problem, combiner, gamma=0.3).total()), torch.rand(1)
    torch.manual_seed(5)
    fixed = Replayed(combiner, seed=5)
    dense = DenseReference(model, lambda m: m(batch), lambda m: m(meta, ("head",))[0])
    deviation = 0.3 * (fixed(dense.losses(dense.w).detach()) - dense.losses(dense.w).detach().sum()).abs()
    (direct,) = torch.autograd.grad(deviation, [combiner.weights])
    l = dense.losses(dense.w).detach().requires_grad_()
    (a,) = torch.autograd.grad(fixed(l), l, create_graph=True)
    (mixed,) = torch.autograd.grad(a @ (jacrev(dense.losses)(dense.w) @ dense.outer_gradient()), [combiner.weights])
    assert relative_error(found, direct - mixed) < 1e-5 and torch.equal(after, torch.rand(1))


def shares_on_a_rank(stage: int) -> dict[str, Tensor]:
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.step import EngineStep

    config, a = toy_config(stage), torch.tensor([1.0, 0.2, 3.0])
    engine = Engine(toy()[0], config, torch.device("cpu"))
    step = EngineStep(engine, 0, [toy_batch(2 * engine.rank), toy_batch(2 * engine.rank + 1)], [], "head", config.aid)
    before = step.losses(0)
    shares = step.shares(a)
    engine.backward(a @ before)  # the inner step goes on as if nothing had been asked
    return {"shares": shares}


@pytest.mark.parametrize("stage", (0, 3))
def test_shares_of_a_step_are_those_of_the_exact_gradients(stage):
    batches, a = [widened(toy_batch(i)) for i in range(4)], torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64)
    model = toy()[0].double()
    model.counting = False
    dense = DenseReference(model, lambda m: torch.stack([m(batch) for batch in batches]).mean(0), lambda m: m(batches[0])[0])
    J = jacrev(dense.losses)(dense.w)
    g = a @ J
    for seen in on_ranks(shares_on_a_rank, 2, stage):
        assert relative_error(seen["shares"].double(), a * (J @ g) / (g @ g)) < 1e-2
        assert float(seen["shares"].sum()) == pytest.approx(1)
