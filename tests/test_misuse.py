"""No use of the library is wrong in silence: the rows of misuse.py and misuse_combiners.py, and those that are more than one call."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from meltr_ray import MELTR, BilevelProblem, ModuleProblem, hypergradient, unrolled_hypergradient
from meltr_ray.hypergrad import ConjugateGradient, FixedPoint, Identity, product_errors
from meltr_ray.hypergrad.products import HVP, Choice, NotAdmitted, tell
from meltr_ray.hypergrad.tested_hessian import settle_hessian
from meltr_ray.hypergrad.trust import Trust
from meltr_ray.hypergrad.vectors import Vector
from tests.misuse import DOUBLE, SINGLE, USES, Cube, Use, beside, by_list, changed, cubed, giving, over_a_running_mean, parts
from tests.misuse_combiners import COMBINER_USES
from tests.reference import flat, relative_error


@pytest.mark.parametrize("use", [*USES, *COMBINER_USES], ids=lambda use: use.name)
def test_a_use_ends_right_or_refused(use: Use):
    try:
        got = use.got()
    except ValueError as refusal:
        line = str(refusal)
        assert use.outcome != "right", line
        assert "\n" not in line and ": " in line and "; " in line, line
        return
    assert use.outcome != "refused" and relative_error(got, use.expected()) <= use.error, relative_error(got, use.expected())


def plain() -> tuple[nn.Module, nn.Module, object]:
    setting = changed(giving())(SINGLE)
    return setting.module, setting.combiner, setting


# --- one problem for several steps


def step_of(name: str, module: nn.Module):
    def by_data() -> None:
        for p in module.parameters():
            p.data.add_(p.grad, alpha=-0.3)

    def exchanged() -> None:
        for p in module.parameters():
            p.data = p.data - 0.3 * p.grad

    fused = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    return {"fused": fused.step, "p.data in place": by_data, "p.data exchanged": exchanged}[name]


@pytest.mark.parametrize("name", ["fused", "p.data in place", "p.data exchanged"])
@pytest.mark.parametrize("seen", ["losses", "hypergradient"])
def test_a_problem_that_is_kept_sees_the_weights_of_now(name, seen):
    module, combiner, use = plain()
    problem, step = ModuleProblem(module, use.losses, use.primary), step_of(name, module)
    problem.losses() if seen == "losses" else hypergradient(problem, combiner)
    use.losses().sum().backward()
    step()
    got = flat(hypergradient(problem, combiner).total())
    assert relative_error(got, flat(hypergradient(ModuleProblem(module, use.losses, use.primary), combiner).total())) < 1e-5
    assert torch.allclose(problem.losses()[0], use.losses())


def test_a_problem_that_is_kept_sees_another_batch():
    p, batch = parts(SINGLE), {}
    batch["x"] = p.x

    def losses() -> Tensor:
        return torch.stack([(p.net(batch["x"]) - p.y).square().mean(), p.net(batch["x"]).cosh().mean()])

    for solver in (Identity(), ConjugateGradient(4, damping=1.0)):
        problem = ModuleProblem(p.net, losses, p.primary)
        hypergradient(problem, p.combiner, solver)
        batch["x"] = 2 * torch.randn(10, 6)
        got, expected = (
            flat(hypergradient(each, p.combiner, solver).total()) for each in (problem, ModuleProblem(p.net, losses, p.primary))
        )
        assert relative_error(got, expected) < 1e-5


def test_a_bilevel_problem_that_is_kept_sees_another_batch_and_weights_of_now():
    p, batch, phi = parts(DOUBLE), {}, torch.tensor(-1.0, dtype=DOUBLE, requires_grad=True)
    batch["x"] = p.x

    def inner() -> Tensor:
        return (p.net(batch["x"]) - p.y).square().mean() + phi.exp() * sum(w.square().sum() for w in p.net.parameters())

    solver, kept = ConjugateGradient(30, damping=1.0), BilevelProblem(p.net, [phi], inner, p.primary, product="central")
    hypergradient(kept, solver=solver)
    batch["x"] = torch.randn(10, 6).double()
    p.net.head.weight.data.mul_(1.5)
    got, expected = (hypergradient(each, solver=solver).total()[0] for each in (kept, BilevelProblem(p.net, [phi], inner, p.primary)))
    assert float((got - expected).abs() / expected.abs()) < 1e-5


def test_losses_that_change_behind_the_same_function_are_tested_again():
    """One closure over a name whose meaning changes: the graph tells."""
    p, found = parts(SINGLE), {}
    for name, power in (("plain", lambda e: e**3), ("marked", Cube.apply), ("plain again", lambda e: e**3), ("marked again", Cube.apply)):
        more = cubed(power)(p)
        problem = ModuleProblem(p.net, lambda: torch.stack([p.fit(), more()]), p.primary)
        found[name] = flat(hypergradient(problem, p.combiner, ConjugateGradient(60, damping=1.0, tolerance=1e-6)).total())
    for name, got in found.items():
        assert relative_error(got, found["plain"]) < 1e-2, name


def test_losses_that_were_asked_for_before_go_with_the_buffers_of_their_pass():
    use = over_a_running_mean(True)
    got = []
    for first in (False, True):
        this = use(SINGLE)
        problem = ModuleProblem(this.module, this.losses, this.primary, product="one_sided", trust=True)
        if first:
            problem.losses()
        got.append(flat(hypergradient(problem, this.combiner).total()))
        assert this.module.mean > 2  # it has moved on, once, as in training
    assert relative_error(got[1], got[0]) < 1e-5


def test_what_is_trained_is_settled_when_a_problem_is_made():
    module, combiner, use = plain()
    module.head.requires_grad_(False)
    problem = ModuleProblem(module, use.losses, use.primary)
    hypergradient(problem, combiner)
    module.head.requires_grad_(True)
    with pytest.raises(ValueError, match="^(losses|primary): head.weight was frozen .*; "):
        hypergradient(problem, combiner)
    problem = ModuleProblem(module, use.losses, use.primary)
    module.trunk.requires_grad_(False)
    with pytest.raises(ValueError, match="^module: trunk.0.weight has been frozen .*; "):
        hypergradient(problem, combiner)


# --- phi


def bilevel(dtype: torch.dtype = DOUBLE):
    p = parts(dtype)
    phi = torch.tensor([-1.0, 0.5], dtype=dtype, requires_grad=True)

    def inner(phi: Tensor = phi) -> Tensor:
        squares = [sum(w.square().sum() for w in part.parameters()) for part in (p.net.trunk, p.net.head)]
        return p.fit() + phi.exp() @ torch.stack(squares)

    return p, phi, inner


def test_a_bare_tensor_is_phi_and_what_is_computed_or_frozen_is_refused():
    p, phi, inner = bilevel()
    whole = hypergradient(BilevelProblem(p.net, phi, inner, p.primary)).total()
    assert len(whole) == 1 and whole[0].shape == (2,) and whole[0].all()
    assert torch.equal(whole[0], hypergradient(BilevelProblem(p.net, [phi], inner, p.primary)).total()[0])
    for wrong in ([2 * phi], phi * 1.0, list(phi), [phi, torch.ones(2)], [phi, phi], [phi, 0.1], "phi", 0.1, [torch.ones(2)]):
        with pytest.raises(ValueError, match="^hyperparameters: .*; ") as refusal:
            BilevelProblem(p.net, wrong, inner, p.primary)
        assert "\n" not in str(refusal.value)


def test_phi_inside_the_module_is_not_a_weight():
    p, _, _ = bilevel()
    p.net.log_decay = nn.Parameter(torch.tensor(-1.0, dtype=DOUBLE))

    def inner() -> Tensor:
        return p.fit() + p.net.log_decay.exp() * sum(w.square().sum() for name, w in p.net.named_parameters() if name != "log_decay")

    got = hypergradient(BilevelProblem(p.net, [p.net.log_decay], inner, p.primary), solver=ConjugateGradient(60, damping=1.0)).total()[0]
    decay = p.net.log_decay
    del p.net.log_decay
    holder = {"decay": decay}

    def outside() -> Tensor:
        return p.fit() + holder["decay"].exp() * sum(w.square().sum() for w in p.net.parameters())

    expected = hypergradient(BilevelProblem(p.net, [decay], outside, p.primary), solver=ConjugateGradient(60, damping=1.0)).total()[0]
    assert float((got - expected).abs() / expected.abs()) < 1e-8
    with pytest.raises(ValueError, match="^hyperparameters: head.weight is a weight"):
        BilevelProblem(p.net, [nn.Parameter(p.net.head.weight.data)], outside, p.primary)


def test_bilevel_products_are_tested_too():
    p, phi, _ = bilevel(SINGLE)
    held = list(p.net.parameters())

    def inner() -> Tensor:
        return p.fit() + phi.exp().sum() * sum(w.square().sum() for w in held)

    def marked() -> Tensor:
        return (phi.exp()[0] * Cube.apply(p.net(p.x) - p.y).square()).mean() + phi.exp()[1] * p.fit()

    with pytest.raises(ValueError, match="product=forward"):
        hypergradient(BilevelProblem(p.net, phi, inner, p.primary, product="forward"))
    exact = hypergradient(BilevelProblem(p.net, phi, inner, p.primary, product="double_backward")).total()
    assert relative_error(flat(hypergradient(BilevelProblem(p.net, phi, inner, p.primary)).total()), flat(exact)) < 1e-4

    def plainly() -> Tensor:
        return (phi.exp()[0] * (p.net(p.x) - p.y).pow(3).square()).mean() + phi.exp()[1] * p.fit()

    for solver in (Identity(), ConjugateGradient(40, damping=1.0, tolerance=1e-6)):
        got, expected = (flat(hypergradient(BilevelProblem(p.net, phi, f, p.primary), solver=solver).total()) for f in (marked, plainly))
        assert relative_error(got, expected) < 1e-2


def test_a_frozen_part_of_the_combiner_leaves_each_gradient_with_its_parameter():
    module, combiner, use = plain()
    full = hypergradient(ModuleProblem(module, use.losses, use.primary), combiner).total()
    combiner.task_embedding.weight.requires_grad_(False)
    combiner.encoder.linear1.requires_grad_(False)
    part = hypergradient(ModuleProblem(module, use.losses, use.primary), combiner).total()
    for p, whole, got in zip(combiner.parameters(), full, part, strict=True):
        assert got.shape == p.shape and torch.allclose(got, whole if p.requires_grad else torch.zeros_like(p), atol=1e-7)


def test_a_combiner_without_parameters_or_with_several_numbers_is_refused():
    module, _, use = plain()

    class Row(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, l: Tensor) -> Tensor:
            return self.w * l

    for combiner in (lambda l: l.sum(), Row(), Row, MELTR(3), MELTR(2).double()):
        with pytest.raises(ValueError, match="^(combiner|losses): .*; "):
            hypergradient(ModuleProblem(module, use.losses, use.primary), combiner)


# --- the inner optimiser, unrolling, the self-check


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_weight_without_moments_counts_as_a_frozen_one(amsgrad):
    p = parts(SINGLE)
    model = nn.ModuleDict({"net": p.net, "pooler": nn.Linear(4, 4), "frozen": nn.Linear(2, 2).requires_grad_(False)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.3, amsgrad=amsgrad)
    for _ in range(10):
        optimizer.zero_grad()
        p.fit().backward()
        optimizer.step()
    found = []
    for trained in (True, False):
        model["pooler"].requires_grad_(trained)
        w = [q for q in model.parameters() if q.requires_grad]
        problem = ModuleProblem(
            model, lambda: torch.stack([p.fit(), p.net(p.x).cosh().mean()]), p.primary, fixed_point=FixedPoint.of(optimizer, w)
        )
        found.append([flat(hypergradient(problem, p.combiner, solver).total()) for solver in
                      (ConjugateGradient(20), ConjugateGradient(5, 0.1, adam="fixed_point"), Identity(adam="fixed_point"))])  # fmt: skip
    assert all(relative_error(got, expected) < 1e-4 for got, expected in zip(*found))


def test_unrolling_is_right_or_refused():
    p = parts(SINGLE)
    fresh = unrolled_hypergradient(p.net, lambda: torch.stack([p.fit(), p.net(p.x).cosh().mean()]), p.primary, p.combiner, 3, 0.05)
    assert all(g.isfinite().all() for g in fresh)
    held = by_list(p)
    stopped = {
        "weights past the module": lambda: torch.stack([p.fit(), held()]),
        "once-differentiable": lambda: torch.stack([p.fit(), cubed(Cube.apply)(p)()]),
        "a stopped target": lambda: torch.stack([p.fit(), 20 * (p.net(p.x) - p.net(p.meta_x).detach()).square().mean()]),
        "one loss": lambda: p.fit()[None],
    }
    for name, losses in stopped.items():
        with pytest.raises(ValueError, match="^(losses|unrolled): .*; "):
            unrolled_hypergradient(p.net, losses, p.primary, p.combiner, 3, 0.05)
            pytest.fail(name)


@pytest.mark.parametrize(
    "more, product, error", [(by_list, "double_backward", 0.0), (by_list, "forward", 0.1), (cubed(Cube.apply), "double_backward", 0.1)]
)
def test_the_self_check_takes_another_family_for_its_reference(more, product, error):
    """A wrong product is seen, and a right one isn't blamed."""
    use = beside(more, product=product, hessian_product="double_backward")(SINGLE)
    problem = ModuleProblem(use.module, use.losses, use.primary, **use.options)
    found = product_errors(problem, use.combiner, problem.outer_gradient())
    assert found["jvp"] >= error if error else found["jvp"] < 1e-4 and found["hvp"] < 1e-2


def test_a_layer_that_is_registered_twice_keeps_its_weights():
    module, combiner, use = plain()
    module.again = module.head
    before = list(module.parameters())
    for product in ("forward", "double_backward", "central", "auto"):
        hypergradient(ModuleProblem(module, use.losses, use.primary, product=product), combiner, ConjugateGradient(2, damping=5.0))
    unrolled_hypergradient(module, use.losses, use.primary, combiner, 2, 0.01)
    assert all(p is was for p, was in zip(module.parameters(), before, strict=True))


# --- what it costs


def test_the_test_of_products_is_made_once_a_module(caplog):
    caplog.set_level(logging.INFO, logger="meltr_ray")
    tell.cache_clear()
    module, combiner, use = plain()

    def spent(**options) -> tuple[int, int]:
        problem = ModuleProblem(module, use.losses, use.primary, **options)
        hypergradient(problem, combiner, ConjugateGradient(2, damping=1.0))
        return problem.weights.tests["forward"], problem.weights.tests["backward"]

    assert spent(trust=True) == (0, 0)
    first = spent()
    assert 0 < first[0] <= 22 and 0 < first[1] <= 16, first  # what docs/hypergradients.md says
    assert spent() == (0, 0)
    assert sum("has passed the test" in record.getMessage() for record in caplog.records) == 2


def test_losses_that_hardly_change_cost_no_dearer_product():
    """Some that are flat at the start, as contrastive losses of an untrained model are: what a difference shows of them is rounding."""
    torch.manual_seed(0)
    module, x = nn.Linear(600, 200), torch.randn(8, 600)
    out = lambda: module(x)  # noqa: E731
    losses = lambda: torch.stack([out().square().mean(), *(1.4 + 1e-7 * (k * out()).sin().mean() for k in range(1, 7))])  # noqa: E731
    problem = ModuleProblem(module, losses, lambda: (module(x[:4]) - 1).square().mean())
    hypergradient(problem, MELTR(7, embedding_size=16, loss_encoder_size=8, feed_forward_size=16))
    assert problem.jvp_choice.candidates[0] in ("one_sided", "central")


class Kinked(nn.Module):
    """Two losses of three weights; the first has a kink just above w_0 = 1, of a slope of its own beside the others' 4."""

    def __init__(self, jump: float):
        super().__init__()
        self.w, self.jump = nn.Parameter(torch.tensor([1.0, 2.0, -1.0])), jump

    def forward(self) -> Tensor:
        return torch.stack([self.w.square().sum() + self.jump * (self.w[0] - 1 - 1e-6).relu(), (self.w - 1).square().sum()])


@pytest.mark.parametrize("jump", [0.5, 2.0, -2.0])
def test_a_kink_right_at_the_weights_is_no_wrong_gradient(jump):
    """A ReLU that is about to switch: differences of all lengths agree on half of its jump, and training follows one side."""
    torch.manual_seed(0)
    combiner = MELTR(2, embedding_size=16, loss_encoder_size=8, feed_forward_size=16)
    nn.init.normal_(combiner.fc1.weight, std=0.5)
    found = []
    for module in (Kinked(jump), Kinked(0.0)):
        problem = ModuleProblem(module, module, lambda module=module: module.w.square().sum())
        found.append(flat(hypergradient(problem, combiner, ConjugateGradient(5, damping=0.1)).total()))
    assert relative_error(*found) < 1e-3 and found[0].norm() > 0


def test_a_product_that_torch_cannot_take_of_an_operator_is_refused_by_name_and_left_out_by_auto():
    """In forward over reverse, torch writes into a zero tangent of `mse_loss` of a column, which it forbids."""
    torch.manual_seed(0)
    module, x, y = nn.Linear(3, 4).double(), torch.randn(8, 3).double(), torch.rand(8).double()
    combiner = MELTR(2, embedding_size=16, loss_encoder_size=8, feed_forward_size=16).double()
    nn.init.normal_(combiner.fc1.weight, std=0.5)

    def found(product: str) -> Tensor:
        problem = ModuleProblem(module, lambda: torch.stack([nn.functional.mse_loss(module(x)[:, 1], y), module(x).square().mean()]),
                                lambda: module(x).square().mean(), hessian_product=product)  # fmt: skip
        return flat(hypergradient(problem, combiner, ConjugateGradient(20, damping=10.0)).total())

    with pytest.raises(ValueError, match="^hessian_product=forward_over_reverse: .*this model does not admit it .*; use "):
        found("forward_over_reverse")
    assert relative_error(found("auto"), found("double_backward")) < 1e-6


# --- an exact H that differences can't judge


@pytest.mark.parametrize("size", [300, 300_000])
@pytest.mark.parametrize("apart, fits", [(0.0, True), (0.15, False), (1.0, False)])
def test_an_exact_product_that_is_not_symmetric_is_found_among_many_weights(size, apart, fits):
    """H a decaying diagonal, beside an antisymmetric part of low rank, `apart` times as long along the direction of the test."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(size, 20, generator=generator) / size**0.5 for _ in range(2))
    decay = 1 / torch.arange(1.0, size + 1)[torch.randperm(size, generator=generator)]
    u, random = Vector((decay * torch.randn(size, generator=generator),)), Vector((torch.randn(size, generator=generator),))

    def curved(v: Tensor) -> Tensor:
        return x @ (y.T @ v) - y @ (x.T @ v)

    along = ((1 / u.norm()) * u + (1 / random.norm()) * random).pieces[0]
    scale = apart * (decay * along).norm() / curved(along).norm()

    def product(name: str, radius: float, v: Vector) -> Vector:
        (piece,) = v.pieces
        rough = 1e3 * radius * piece if name == "central" else 0.0  # differences of all lengths are off
        return Vector((decay * piece + scale * curved(piece) + rough,))

    choice = Choice("hessian_product", "double_backward", HVP, 1e-2, torch.float32, whole=True)
    trust = Trust(nn.Linear(1, 1), [], ())
    with nullcontext() if fits else pytest.raises(NotAdmitted, match="it isn't symmetric"):
        settle_hessian(trust, choice, product, lambda: u, u, random, 1e-3, None, torch.float32, whole=True)


# --- H by differences where no exact product is to be had, as under ZeRO 3


@pytest.mark.parametrize("apart", [0.0, 0.5])
def test_differences_alone_are_taken_where_two_lengths_agree(apart):
    radius, u, random = 1e-3, Vector((torch.ones(50),)), Vector((torch.randn(50, generator=torch.Generator().manual_seed(0)),))
    choice = Choice("hessian_product", "auto", HVP, 1e-2, torch.float32, whole=False)

    def product(name: str, length: float, x: Vector) -> Vector:  # H = 1, or more at the greater length
        return (1 + apart * (length > radius)) * x

    def settled() -> None:
        settle_hessian(Trust(nn.Linear(1, 1), [], ()), choice, product, lambda: u, u, random, radius, None, torch.float32, whole=False)

    if apart:
        with pytest.raises(NotAdmitted, match="differences of two lengths are .* apart .*; use"):
            settled()
    else:
        settled()
