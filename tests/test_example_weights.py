"""A weight for each example (NoisyLabels): the hypergradient of phi against dense float64, in one process and on two ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from meltr_ray import ModuleProblem, hypergradient
from meltr_ray.combining.named import WAYS
from meltr_ray.hypergrad.named import SOLVERS
from meltr_ray.training.batches import Batches
from meltr_ray.training.loss_vector import LossVector
from tests.commands import ROOT
from tests.ranks import on_ranks
from tests.reference import DenseBilevel, as_function, relative_error, trained
from workloads import cli

SOURCE = f"{ROOT}/workloads/examples/noisy_labels.py:NoisyLabels"
BATCH, MICRO = 6, 2
EXACT = ["aid.product=double_backward", "aid.hessian_product=double_backward"]


def made(*settings: str) -> tuple:
    """(configuration, model that DeepSpeed trains, combiner with phi away from its start)."""
    config = cli.configure([f"workload={SOURCE}", "experiment=noisy_labels", "workload.width=2", f"train.batch_size={BATCH}",
                            f"engine.gradient_accumulation={MICRO}", "optimizer.weight_decay=0", "aid.solver=cg", "aid.iterations=60",
                            "aid.damping=2", "aid.cg_tolerance=1e-8", *settings]).config  # fmt: skip
    torch.manual_seed(0)
    model, way = LossVector(config.workload.module(), config.workload), WAYS["own"].of(config, config.workload)
    torch.nn.init.normal_(way.combiner.phi)
    return config, model, way


def batches(config, rank: int, world_size: int) -> tuple[list[dict], list[dict]]:
    """Micro-batches of one optimiser step, and as many of the meta split."""
    train, meta = (Batches(config.workload, split, BATCH, 0, rank, world_size) for split in ("train", "meta"))
    return [train[i] for i in range(MICRO)], [meta[i] for i in range(MICRO)]


def dense(world_size: int) -> tuple[Tensor, list[int]]:
    """d F / d phi by whole matrices, L written out anew; and the numbers of the examples that the step trains on."""
    config, model, way = made()
    each = [batches(config, rank, world_size) for rank in range(world_size)]
    inner, outer = ([batch for rank in part for batch in rank] for part in zip(*each))
    inner, outer = ([batch | {"pixels": batch["pixels"].double()} for batch in part] for part in (inner, outer))
    module = model.of.double()

    def losses(module: torch.nn.Module, batch: dict) -> Tensor:
        return cross_entropy(module.body(batch["pixels"]), batch["label"], reduction="none")

    def L(w: Tensor, phi: Tensor) -> Tensor:
        weighted = [lambda m, b=b: (2 / (1 + torch.exp(-phi[b["number"]])) * losses(m, b)).sum() / BATCH for b in inner]
        return sum(as_function(module, function)(w) for function in weighted) / len(weighted)

    def F(w: Tensor, phi: Tensor) -> Tensor:
        return sum(as_function(module, lambda m, b=b: losses(m, b).sum() / BATCH)(w) for b in outer) / len(outer)

    bilevel = DenseBilevel(L, F, trained(module), way.combiner.phi.detach().double())
    damped = bilevel.hessian + config.aid.damping * torch.eye(len(bilevel.w)).double()
    v = torch.linalg.solve(damped, bilevel.outer_gradient)
    return bilevel.total(v), sorted({int(n) for batch in inner for n in batch["number"]})


def test_the_hypergradient_of_weights_is_the_dense_one():
    config, model, way = made(*EXACT)
    model, combiner = model.double(), way.combiner.double()
    inner, outer = ([b | {"pixels": b["pixels"].double()} for b in part] for part in batches(config, 0, 1))
    problem = ModuleProblem(model, [lambda b=b: model(b) for b in inner], [lambda b=b: model(b).mean() for b in outer],
                            product="double_backward", hessian_product="double_backward")  # fmt: skip
    (got,) = hypergradient(problem, combiner, SOLVERS["cg"].of(config.aid), batches=inner).total()
    expected, seen = dense(1)
    assert len(seen) == MICRO * BATCH and got.nonzero().flatten().tolist() == seen
    assert relative_error(got, expected) < 1e-8


def on_a_rank(stages: tuple[int, ...]) -> list[tuple[Tensor, Tensor, dict]]:
    return [meta_step(stage) for stage in stages]


def meta_step(stage: int) -> tuple[Tensor, Tensor, dict]:
    """(phi's gradient, how phi moved, what the step says) of one meta step on an engine."""
    from meltr_ray.training.engine import Engine

    config, model, way = made(f"engine.zero_stage={stage}")
    engine = Engine(model, config, torch.device("cpu"))
    inner, outer = batches(config, engine.rank, engine.world_size)
    before = way.combiner.phi.detach().clone()
    numbers = way.step(engine.problem(inner, outer, "label", config.aid), inner)
    return way.combiner.phi.grad.clone(), way.combiner.phi.detach() - before, numbers


def test_two_ranks_with_batches_of_their_own_take_one_step():
    """At ZeRO 0 and 3."""
    expected, seen = dense(2)
    assert len(seen) == 2 * MICRO * BATCH
    for first, second in zip(*on_ranks(on_a_rank, 2, (0, 3))):
        gradient, moved, numbers = first
        assert relative_error(gradient.double(), expected) < 1e-2  # float32 and differences
        assert gradient.nonzero().flatten().tolist() == moved.nonzero().flatten().tolist() == seen
        assert numbers["direct_norm"] == 0 < numbers["hypergradient_norm"]
        assert torch.equal(gradient, second[0]) and torch.equal(moved, second[1])


def test_fixed_weights_train_on_the_mean_loss():
    config, model, _ = made("combiner.name=fixed")
    batch = batches(config, 0, 1)[0][0]
    losses = model(batch).detach()
    value, a = WAYS["fixed"].of(config, config.workload).slopes(losses, batch)
    assert losses.shape == (BATCH,) and torch.allclose(value, losses.mean()) and torch.allclose(a, torch.full((BATCH,), 1 / BATCH))
