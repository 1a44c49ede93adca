"""The engine under ZeRO 0 to 3 on one and two real ranks: hypergradient against dense float64, ranks, collectives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.func import hessian, jacrev

from meltr_ray import MELTR
from meltr_ray.config import Config
from meltr_ray.hypergrad import hypergradient
from meltr_ray.hypergrad.named import SOLVERS
from tests.engine_toy import STAGES, Batch, Toy, toy, toy_batch, toy_config
from tests.ranks import on_ranks
from tests.reference import DenseReference, flat, relative_error

ONE_SIDED = dict(product="one_sided", hessian_product="one_sided")
CG = dict(solver="cg", iterations=30, damping=5.0, cg_tolerance=1e-6) | ONE_SIDED
WHOLE = {  # products that need whole weights: ZeRO 0 to 2
    "forward mode": dict(product="forward"),
    "double backward": CG | dict(product="double_backward", hessian_product="double_backward"),
    "forward over reverse": CG | dict(product="forward", hessian_product="forward_over_reverse"),
}
CASES = {
    "identity": dict(solver="identity", product="one_sided"),
    "cg": CG,
    "cg, central": CG | dict(product="central", hessian_product="central"),
    "cg, auto": CG | dict(product="auto", hessian_product="auto"),
    "two micro-batches": dict(accumulation=2, **CG),
    "averaged losses": dict(average_losses=True, **CG),
    "nystrom": dict(solver="nystrom", rank=75, damping=5.0) | ONE_SIDED,
    "loss space": dict(solver="loss_space", damping=0.5),
    "loss space, averaged losses": dict(solver="loss_space", damping=0.5, average_losses=True),
    "gauss_newton": dict(solver="cg", iterations=30, damping=0.5, cg_tolerance=1e-6, product="one_sided", hessian_product="gauss_newton"),
    "bfloat16, auto": CG | dict(precision="bfloat16", product="auto", hessian_product="auto"),
    "bfloat16, differences": CG | dict(precision="bfloat16"),
}


def hypergradients_on_a_rank(stage: int) -> dict[str, tuple]:
    """For each case: implicit and direct term averaged over ranks, and this rank's own implicit term; and the norm of b."""
    found = {}
    for name, aid in (CASES | (WHOLE if stage < 3 else {})).items():
        engine, config, combiner = toy_engine(stage, **aid)
        found[name] = terms(engine, config, combiner)
    engine, config, _ = toy_engine(stage, **CASES["identity"])
    problem = engine.problem([toy_batch(engine.rank)], [toy_batch(10 + engine.rank)], "head", config.aid)
    b = problem.outer_gradient()
    return found | {"norm of b, <b, 2 b>": (b.norm(), b @ (2.0 * b))}


def toy_engine(stage: int, **aid):
    from meltr_ray.training.engine import Engine

    model, combiner = toy()
    config = toy_config(stage, **aid)
    return Engine(model, config, torch.device("cpu")), config, combiner


def terms(engine, config: Config, combiner: MELTR) -> tuple[Tensor, Tensor, Tensor]:
    num_micro = config.engine.gradient_accumulation
    batches = [toy_batch(engine.rank * num_micro + micro) for micro in range(num_micro)]
    meta_batches = [toy_batch(10 + engine.rank * num_micro + micro) for micro in range(num_micro)]
    problem = engine.problem(batches, meta_batches, "head", config.aid)
    problem.fixed_point = None  # weight decay has a test of its own
    result = hypergradient(problem, combiner, SOLVERS[config.aid.solver].of(config.aid), gamma=0.5)
    local = flat(result.implicit)
    return flat(engine.average(result.implicit)), flat(engine.average(result.direct)), local


def dense_terms(ranks: int, aid: dict) -> tuple[Tensor, Tensor]:
    """L = mean over ranks and micro-batches of g_phi(l): v from the mean Hessian, J v and slopes of each, mean of phi's gradient."""
    damping = None if aid.get("solver", "identity") == "identity" else aid["damping"]
    gauss_newton = aid.get("solver") == "loss_space" or aid.get("hessian_product") == "gauss_newton"
    return dense_terms_of(ranks * aid.get("accumulation", 1), aid.get("average_losses", False), damping, gauss_newton)


@cache
def dense_terms_of(count: int, average_losses: bool, damping: float | None, gauss_newton: bool) -> tuple[Tensor, Tensor]:
    """Of `count` batches; v = b where `damping` is None."""
    model, combiner = toy()
    model, combiner = model.double(), combiner.double()
    model.counting = False  # torch.func admits no change in place
    doubled = [(Batch(b.x.double(), b.y.double()), Batch(m.x.double(), m.y.double()))
               for b, m in ((toy_batch(i), toy_batch(10 + i)) for i in range(count))]  # fmt: skip
    if average_losses:
        dense = [DenseReference(model, lambda m: sum(m(b) for b, _ in doubled) / count,
                                lambda m: sum(m(q, ("head",))[0] for _, q in doubled) / count)]  # fmt: skip
    else:
        dense = [DenseReference(model, lambda m, b=b: m(b), lambda m, q=q: m(q, ("head",))[0]) for b, q in doubled]
    v = sum(d.outer_gradient() for d in dense) / len(dense)
    if damping is not None:
        H = sum(gauss_newton_matrix(d, combiner) if gauss_newton else d.hessian(combiner) for d in dense) / len(dense)
        v = torch.linalg.solve(H + damping * torch.eye(len(H)).double(), v)
    implicit = sum(d.implicit(combiner, v) for d in dense) / len(dense)
    deviations = [0.5 * (combiner(l) - l.sum()).abs() for l in (d.losses(d.w).detach() for d in dense)]
    direct = flat(list(torch.autograd.grad(sum(deviations) / len(dense), list(combiner.parameters()))))
    return implicit, direct


def gauss_newton_matrix(dense: DenseReference, combiner: MELTR) -> Tensor:
    J, G = jacrev(dense.losses)(dense.w), hessian(combiner)(dense.losses(dense.w))
    return J.T @ G @ J


@cache
def found_by(stage: int, ranks: int) -> list[dict]:
    """What each rank found; taken once."""
    return on_ranks(hypergradients_on_a_rank, ranks, stage)


@pytest.fixture
def found(request) -> list[dict]:
    """What each rank found, for the stage and the number of ranks of the test."""
    return found_by(*request.param)


PLACES = [(stage, ranks) for stage in STAGES for ranks in (1, 2)]


@pytest.mark.parametrize("found", PLACES, indirect=True, ids=[f"zero{s}-{r}ranks" for s, r in PLACES])
def test_each_term_is_the_dense_hypergradient(found):
    """Float32 and bfloat16 against dense float64, every solver and product."""
    wrong = []
    for name, aid in (CASES | WHOLE).items():
        if name not in found[0]:
            continue
        implicit, direct = dense_terms(len(found), aid)
        # of bfloat16 the passes at w; differences and weights are float32
        tolerance, direct_tolerance = (0.1, 0.1) if "bfloat16" in name else (1e-2, 1e-5)
        for rank, (got_implicit, got_direct, _) in enumerate(one[name] for one in found):
            errors = relative_error(got_implicit.double(), implicit), relative_error(got_direct.double(), direct)
            if errors[0] > tolerance or errors[1] > direct_tolerance:
                wrong.append(f"{name}, rank {rank}: implicit {errors[0]:.1e}, direct {errors[1]:.1e}")
    assert not wrong, wrong


@pytest.mark.parametrize("found", PLACES, indirect=True, ids=[f"zero{s}-{r}ranks" for s, r in PLACES])
def test_norms_and_inner_products_are_those_of_whole_vectors(found):
    """A norm that is not reduced over shards gives each rank a step of its own."""
    model, _ = toy()
    model = model.double()
    model.counting = False
    batches = [toy_batch(10 + rank) for rank in range(len(found))]
    dense = DenseReference(model, lambda m: m(batches[0]),
                           lambda m: sum(m(Batch(b.x.double(), b.y.double()), ("head",))[0] for b in batches) / len(batches))  # fmt: skip
    for one in found:
        norm, inner = one["norm of b, <b, 2 b>"]
        assert norm == pytest.approx(float(dense.outer_gradient().norm()), rel=1e-5) and inner == pytest.approx(2 * norm**2, rel=1e-5)


@pytest.mark.parametrize("found", [(0, 2), (3, 2)], indirect=True, ids=["zero0-2ranks", "zero3-2ranks"])
def test_ranks_disagree_before_the_average_and_agree_bit_for_bit_after_it(found):
    first, second = (one["cg"] for one in found)
    assert relative_error(first[2], second[2]) > 1e-2 and torch.equal(first[0], second[0])


@pytest.mark.parametrize("stage", (0, 3))
def test_two_ranks_are_one_rank_with_two_micro_batches(stage):
    """Always; and one batch of both only where losses separate over examples and are averaged before g_phi."""
    one, two = found_by(stage, 1)[0], found_by(stage, 2)[0]
    assert relative_error(two["cg"][0], one["two micro-batches"][0]) < 1e-3
    assert relative_error(two["averaged losses"][0], one["two micro-batches"][0]) > 1e-2
    both, _ = dense_terms(2, CASES["averaged losses"])
    model, combiner = toy()
    model.counting = False
    joined = [Batch(torch.cat([a.x, b.x]).double(), torch.cat([a.y, b.y]).double())
              for a, b in ((toy_batch(0), toy_batch(1)), (toy_batch(10), toy_batch(11)))]  # fmt: skip
    dense = DenseReference(model.double(), lambda m: m(joined[0]), lambda m: m(joined[1], ("head",))[0])
    expected = dense.implicit(combiner.double(), dense.v(combiner.double(), 5.0))
    assert relative_error(both, expected) < 1e-10  # all losses of the toy are means over examples
    assert relative_error(two["averaged losses"][0].double(), expected) < 1e-2


def collectives_on_a_rank(stage: int) -> dict[str, tuple[dict[str, int], int]]:
    """Collectives by kind in one hypergradient, as torch's profiler sees them, and the number of gradients taken."""
    found = {}
    for name, aid in {"identity": CASES["identity"], "cg": dict(solver="cg", iterations=3, damping=50.0, cg_tolerance=0.0) | ONE_SIDED,
                      "loss space": CASES["loss space"]}.items():  # fmt: skip
        engine, config, combiner = toy_engine(stage, **aid)

        def make():
            problem = engine.problem([toy_batch(engine.rank)], [toy_batch(10 + engine.rank)], "head", config.aid)
            problem.fixed_point = None
            return problem

        hypergradient(make(), combiner, SOLVERS[config.aid.solver].of(config.aid))  # products are tested once a module
        problem = make()
        problem.losses()  # stage 3 gathers in the inner forward; only the meta step is counted
        before = problem.passes()["backward"]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            hypergradient(problem, combiner, SOLVERS[config.aid.solver].of(config.aid))
        kinds = [event.name.removeprefix("c10d::") for event in profile.events() if event.name.startswith("c10d::")]
        found[name] = {kind: kinds.count(kind) for kind in set(kinds)}, problem.passes()["backward"] - before
    return found


@pytest.mark.parametrize("stage", (0, 3))
def test_a_meta_step_makes_the_collectives_that_the_documentation_says(stage):
    """ZeRO 0 to 2: one for each gradient, none for J v and inner products; one number of each rank at the end. ZeRO 3: one number for each inner product as well."""
    for found in on_ranks(collectives_on_a_rank, 2, stage):
        print(stage, found)
        if stage < 3:
            assert found["identity"] == ({"allreduce_": 1, "allgather_": 1}, 1)  # whether all ranks' losses have been tested
            assert found["cg"] == (
                {"allreduce_": 1 + 1 + 3, "allgather_": 1},
                1 + 1 + 3,
            )  # outer gradient, d_w L at w, and at moved weights
            rows = 2 * 3  # R T; each rank takes its own T and all of them are averaged
            assert found["loss space"] == ({"allreduce_": 1 + rows, "allgather_": 1 + 1}, 1 + 3)
        else:
            assert found["identity"][0]["allreduce_"] == 1  # |v|
            assert found["cg"][0]["allreduce_"] == 1 + 1 + 3 * 3 + 1  # |b|, r'z; |u|, d'A d and r'z of each product; |v|


class OneRankDiffers(Toy):
    """Losses of a marked batch aren't those that a plain one has: another rank's would not tell."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how

    def forward(self, batch, names=None):
        losses, again = super().forward(batch, names), self.head(self.body(batch.x))  # ZeRO 3: each rank runs the same layers
        if names is not None:
            return losses
        if self.how == "stops its gradient":
            return losses + 0.5 * again.square().mean().detach() * torch.tensor([0.0, 1.0, 1.0]) if batch.marked else losses
        squared = HalfAGradient.apply(again) if batch.marked else again.square()
        return losses + 0.5 * squared.mean() * torch.tensor([1.0, 0.0, 0.0])


class HalfAGradient(torch.autograd.Function):
    """Whose backward has no derivative of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


@dataclass
class Marked(Batch):
    marked: bool = False


def verdicts_on_a_rank(stage: int, how: str, aid: dict, marked: tuple[bool, ...]) -> list[tuple]:
    """Of a meta step on each of `marked`, where rank 1 alone has marked batches: products that are left, or the refusal, and errors."""
    from meltr_ray.hypergrad import NotAdmitted
    from meltr_ray.training.engine import Engine

    config, found = toy_config(stage, **aid), []
    torch.manual_seed(0)
    model, combiner = OneRankDiffers(how), toy()[1]
    engine = Engine(model, config, torch.device("cpu"))
    for number, mark in enumerate(marked):
        each = toy_batch(20 + 2 * number + engine.rank)
        batch, held_out = Marked(each.x, each.y, mark and engine.rank == 1), Marked(each.x, -each.y)
        problem = engine.problem([batch], [held_out], "head", config.aid)
        try:
            v = problem.outer_gradient()
            result = hypergradient(problem, combiner, SOLVERS[config.aid.solver].of(config.aid))
            implicit = torch.cat([t.flatten() for t in engine.average(result.implicit)])
            problem.trusts = True
            slope = torch.tensor([float(g @ v) for g in problem.loss_gradients()])
            error = relative_error(problem.average([problem.jvp(v).mean(0)])[0].double(), slope.double())
            found.append((problem.jvp_choice.candidates[0], problem.hvp_choice.candidates[0], error, implicit))
        except NotAdmitted as refusal:
            found.append((str(refusal).partition(":")[0], "", 0.0, torch.zeros(())))
            break
    return found


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["stops its gradient", "has no second derivative"])
def test_a_fault_of_one_rank_is_a_verdict_of_all(how, stage):
    """At the first meta step, and at the second one where the first had seen nothing of it; with H and without."""
    for aid in (dict(solver="identity"), dict(solver="cg", iterations=2, damping=50.0)):
        for marked in ((True, False), (False, True)):
            first, second = on_ranks(verdicts_on_a_rank, 2, stage, how, aid, marked)
            print(stage, how, aid["solver"], marked, [step[:3] for step in first])
            assert [step[:2] for step in first] == [step[:2] for step in second]
            assert all(torch.equal(a[3], b[3]) for a, b in zip(first, second))
            assert all(step[2] < 0.03 for step in first), first
            if how == "stops its gradient" and (stage == 3 or aid["solver"] == "cg"):
                assert first[-1][1] == "", first  # differences are wrong, or H isn't defined
            else:
                assert len(first) == 2 and all(step[1] for step in first), first
