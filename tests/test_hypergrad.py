"""What a hypergradient promises beyond the table of tests/test_exactness.py: terms, states left alone, outcomes, bad input."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import jacrev
from torch.utils.checkpoint import checkpoint

from meltr_ray import MELTR, BilevelProblem, FixedWeights, ModuleProblem, hypergradient, unrolled_hypergradient
from meltr_ray.combining.slopes import NonNegativeSlopes, slopes
from meltr_ray.hypergrad import (
    ConjugateGradient,
    Dense,
    FixedPoint,
    Identity,
    InvalidLosses,
    LossSpace,
    Neumann,
    NotAdmitted,
    Nystrom,
    Outcome,
    product_errors,
)
from meltr_ray.hypergrad.products import tell
from meltr_ray.hypergrad.vectors import Vector
from tests.reference import DenseBilevel, DenseReference, as_function, flat, relative_error, rows, trained

EXACT = dict(product="forward", hessian_product="double_backward")


class Network(nn.Module):
    """Two layers, dropout, batch norm whose statistics each forward changes, and attention."""

    def __init__(self, dropout: float = 0.0, attention: bool = False, batch_norm: bool = False):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6) if batch_norm else nn.Identity()
        self.dropout, self.attention = nn.Dropout(dropout), attention

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(torch.tanh(self.norm(self.first(x))))
        if self.attention:
            heads = hidden.view(1, 1, *hidden.shape)
            hidden = hidden + F.scaled_dot_product_attention(heads, heads, heads)[0, 0]
        return self.second(hidden)


def make_losses(x: Tensor, y: Tensor):
    def losses(m: nn.Module) -> Tensor:
        error = m(x) - y
        return torch.stack([error[:, 0].pow(2).mean(), 10 * error[:, 1].abs().pow(1.5).mean(), error[:, 2].cosh().mean()])

    return losses


def small_case(dtype=torch.float64, **network):
    torch.manual_seed(0)
    module, combiner = Network(**network), MELTR(3, embedding_size=16, loss_encoder_size=8, feed_forward_size=16)
    nn.init.normal_(combiner.fc1.weight, std=0.5)
    x, y, meta_x, meta_y = (torch.randn(8, n).to(dtype) for n in (4, 3, 4, 3))
    losses = make_losses(x, y)
    return module.to(dtype), combiner.to(dtype), losses, lambda m: (m(meta_x) - meta_y)[:, 0].pow(2).mean()


def small_problem(dtype=torch.float64, network: dict | None = None, **options):
    module, combiner, losses, primary = small_case(dtype, **(network or {}))
    problem = ModuleProblem(module, lambda: losses(module), lambda: primary(module), **(EXACT | options))
    return problem, combiner, DenseReference(module, losses, primary)


# --- the terms


@pytest.mark.parametrize("regulariser", ["phi_only", "full", "paper"])
def test_the_regulariser_keeps_the_terms_it_promises(regulariser):
    problem, combiner, dense = small_problem()
    gamma, phi = 0.7, list(combiner.parameters())

    def deviation(l):
        return gamma * (combiner(l) - l.sum()).abs()

    b = dense.outer_gradient()
    if regulariser != "phi_only":
        b = b + jacrev(lambda w: deviation(dense.losses(w)))(dense.w)
    expected = dense.implicit(combiner, b)
    if regulariser != "paper":
        direct = torch.autograd.grad(deviation(dense.losses(dense.w).detach()), phi, materialize_grads=True, allow_unused=True)
        expected = expected + flat(direct)
    result = hypergradient(problem, combiner, Identity(), gamma, regulariser)
    assert relative_error(flat(result.total()), expected) < 1e-10


def test_micro_batches_and_meta_batches_are_means():
    """Two micro-batches and two meta batches with dropout on: masks follow one another as in the inner step."""
    module, combiner, _, _ = small_case(dropout=0.4)
    data = [torch.randn(8, n).double() for n in (4, 3, 4, 3, 4, 3, 4, 3)]
    losses = [make_losses(*data[0:2]), make_losses(*data[2:4])]

    def together(m):
        torch.manual_seed(7)
        return torch.stack([f(m) for f in losses])

    def primary(m):
        torch.manual_seed(7)
        return sum((m(x) - y)[:, 0].pow(2).mean() for x, y in (data[4:6], data[6:8])) / 2

    torch.manual_seed(7)
    problem = ModuleProblem(module, [lambda f=f: f(module) for f in losses],
                            [lambda x=x, y=y: (module(x) - y)[:, 0].pow(2).mean() for x, y in (data[4:6], data[6:8])], **EXACT)  # fmt: skip
    flat_losses, phi = as_function(module, together), list(combiner.parameters())

    def both(l: Tensor) -> Tensor:
        return (combiner(l[0]) + combiner(l[1])) / 2

    dense = DenseBilevel(
        lambda w, _: both(flat_losses(w)), lambda w, _: as_function(module, primary)(w), trained(module), torch.zeros(1).double()
    )
    v = torch.linalg.solve(dense.hessian + 3 * torch.eye(len(v0 := dense.outer_gradient)).double(), v0)
    w = dense.w.clone().requires_grad_()
    J_v = (rows(flat_losses(w).flatten(), [w])[0] @ v).view(2, 3)
    l = flat_losses(w).detach().requires_grad_()
    (a,) = torch.autograd.grad(both(l), l, create_graph=True)
    expected = -flat(list(torch.autograd.grad((a * J_v).sum(), phi, materialize_grads=True, allow_unused=True)))
    torch.manual_seed(7)
    problem.losses()
    got = hypergradient(problem, combiner, Dense(damping=3.0))
    assert relative_error(flat(got.implicit), expected) < 1e-8


def test_a_learned_regularisation_strength_and_example_weights():
    """phi enters otherwise: every mixed product against the dense second derivatives of the whole inner loss."""
    torch.manual_seed(0)
    x, y, meta_x, meta_y = (torch.randn(*s).double() for s in ((12, 4), (12, 3), (6, 4), (6, 3)))
    module, phi = Network(dropout=0.3).double(), [torch.randn(12).double().requires_grad_(), torch.tensor(-1.0).double().requires_grad_()]

    def inner():
        squares = sum(p.pow(2).sum() for p in module.parameters())
        return (phi[0].sigmoid() * (module(x) - y).pow(2).mean(1)).mean() + phi[1].exp() * squares

    def outer():
        return (module(meta_x) - meta_y).pow(2).mean() + 0.1 * phi[0].sigmoid().sum()

    state, found = torch.get_rng_state(), {}
    for name in ("double_backward", "forward", "central", "one_sided"):
        torch.set_rng_state(state)
        found[name] = flat(hypergradient(BilevelProblem(module, phi, inner, outer, product=name, hessian_product="double_backward"),
                                         solver=Dense(damping=1.0)).total())  # fmt: skip
    w, n = list(module.parameters()), sum(p.numel() for p in module.parameters())

    def replayed(function):
        torch.set_rng_state(state)
        return function()

    first = flat(list(torch.autograd.grad(replayed(inner), w, create_graph=True)))
    seconds = [torch.autograd.grad(g, [*w, *phi], retain_graph=True, materialize_grads=True, allow_unused=True) for g in first]
    whole = torch.stack([flat(list(row)) for row in seconds])  # [H, d2 L / dw dphi]
    b = flat(list(torch.autograd.grad(replayed(outer), w)))
    v = torch.linalg.solve(whole[:, :n] + torch.eye(n).double(), b)
    direct = flat(list(torch.autograd.grad(replayed(outer), phi, materialize_grads=True, allow_unused=True)))
    expected = direct - whole[:, n:].T @ v
    for (name, got), tolerance in zip(found.items(), (1e-10, 1e-10, 1e-7, 1e-5)):
        assert relative_error(got, expected) < tolerance, name


def test_unrolling_to_the_optimum_is_implicit_differentiation():
    """Reverse mode through many steps of gradient descent from the optimum tends to the implicit answer; few are short-sighted."""
    torch.manual_seed(1)
    A, c, target = torch.randn(3, 6, 4).double(), torch.randn(3, 6).double() + 2, torch.randn(4).double()
    module = nn.Linear(4, 1, bias=False).double()
    combiner = FixedWeights([1.0, 0.5, 2.0]).double()
    combiner.weights = nn.Parameter(combiner.weights)

    def losses():
        return 0.5 * (A @ module.weight[0] - c).pow(2).sum(1)

    def primary():
        return 0.5 * (module.weight[0] - target).pow(2).sum()

    p = combiner.weights.detach()
    H = sum(q * a.T @ a for q, a in zip(p, A))
    module.weight.data[0] = torch.linalg.solve(H, sum(q * a.T @ b for q, a, b in zip(p, A, c)))
    expected = flat(hypergradient(ModuleProblem(module, losses, primary, **EXACT), combiner, Dense()).total())
    rate = float(1.0 / torch.linalg.eigvalsh(H)[-1])
    errors = [relative_error(flat(unrolled_hypergradient(module, losses, primary, combiner, k, rate)), expected) for k in (1, 30, 300)]
    assert errors[2] < 1e-6 < errors[1] < errors[0]


# --- the inner optimiser's fixed point


@pytest.mark.parametrize("optimizer", ["l2", "adamw"])
def test_weight_decay_belongs_in_the_hessian(optimizer):
    """Perturb phi, find the optimiser's resting point again by Newton, difference the outer loss there."""
    torch.manual_seed(1)
    A, c, target = torch.randn(3, 6, 4).double(), torch.randn(3, 6).double() + 2, torch.randn(4).double()
    module, decay, D_inverse = nn.Linear(4, 1, bias=False).double(), 0.8, torch.tensor([0.1, 1.0, 3.0, 10.0]).double()
    combiner = FixedWeights([1.0, 0.5, 2.0]).double()
    combiner.weights = nn.Parameter(combiner.weights)
    pull = decay * (torch.ones(4).double() if optimizer == "l2" else D_inverse)

    def resting_point(p: Tensor) -> Tensor:  # d_w L + decay (D^-1) w = 0
        return torch.linalg.solve(sum(q * a.T @ a for q, a in zip(p, A)) + torch.diag(pull), sum(q * a.T @ b for q, a, b in zip(p, A, c)))

    def outer(p: Tensor) -> Tensor:
        return 0.5 * (resting_point(p) - target).pow(2).sum()

    p, eps = combiner.weights.detach().clone(), 1e-5
    expected = torch.stack([(outer(p + eps * e) - outer(p - eps * e)) / (2 * eps) for e in torch.eye(3).double()])
    module.weight.data[0] = resting_point(p)
    scale = Vector((D_inverse[None],)) if optimizer == "adamw" else None

    def error(fixed_point):
        problem = ModuleProblem(module, lambda: 0.5 * (A @ module.weight[0] - c).pow(2).sum(1),
                                lambda: 0.5 * (module.weight[0] - target).pow(2).sum(), fixed_point=fixed_point, **EXACT)  # fmt: skip
        return relative_error(flat(hypergradient(problem, combiner, Dense()).total()), expected)

    assert error(FixedPoint([decay], scale, decoupled=optimizer == "adamw")) < 1e-6
    assert error(None) > 1e-2  # it does change the answer


def test_the_fixed_point_of_torch_optimizers_is_read_from_them():
    module = nn.Linear(3, 2)
    for make, decoupled in ((torch.optim.AdamW, True), (torch.optim.Adam, False)):
        optimizer = make(module.parameters(), lr=0.1, weight_decay=0.3, betas=(0.9, 0.5), eps=1e-3)
        for _step in range(3):
            module(torch.randn(5, 3)).pow(2).sum().backward()
            optimizer.step()
        found = FixedPoint.of(optimizer, list(module.parameters()))
        expected = [(optimizer.state[p]["exp_avg_sq"] / (1 - 0.5**3)).sqrt() + 1e-3 for p in module.parameters()]
        assert found.decoupled is decoupled and list(found.decay) == [0.3, 0.3]
        assert all(torch.allclose(a, b) for a, b in zip(found.scale.pieces, expected))


def badly_scaled():
    """min over w of sum of three losses of one diagonal quadratic with condition number 1e4, and Adam's D^-1 near its diagonal."""
    torch.manual_seed(2)
    curvature = torch.logspace(-2, 2, 60).double()
    module, centre, target = nn.Linear(60, 1, bias=False).double(), torch.randn(60).double(), torch.randn(60).double()
    scale = Vector(((curvature * (0.5 + torch.rand(60).double()))[None],))

    def losses():
        return torch.stack([0.5 * (curvature * (module.weight[0] - k * centre).pow(2)).sum() for k in (1, 2, -1)])

    def primary():
        return 0.5 * (module.weight[0] - target).pow(2).sum()

    module.weight.data[0] = 0.7 * centre
    problem = ModuleProblem(module, losses, primary, fixed_point=FixedPoint([0.0], scale), **EXACT)
    combiner = MELTR(3, embedding_size=16, loss_encoder_size=8, feed_forward_size=16).double()
    b = (module.weight[0] - target).detach()
    D_inverse = scale.pieces[0][0] / scale.pieces[0].mean()
    return problem, combiner, torch.diag(3 * curvature), b, D_inverse  # plain sum: H = 3 diag(curvature)


def test_adam_as_preconditioner_gives_the_same_answer_in_fewer_iterations():
    problem, combiner, H, b, _ = badly_scaled()
    exact = torch.linalg.solve(H + 0.01 * torch.eye(60).double(), b)
    plain, conditioned = (
        hypergradient(problem, combiner, ConjugateGradient(500, 0.01, 1e-9, adam)).solution for adam in ("ignore", "precondition")
    )
    for solution in (plain, conditioned):
        assert solution.outcome is Outcome.CONVERGED and relative_error(solution.v.pieces[0][0], exact) < 1e-6
    assert conditioned.num_products < plain.num_products / 2


def test_adams_fixed_point_matters_in_damped_and_truncated_solves_alone():
    problem, combiner, H, b, D_inverse = badly_scaled()

    def v(solver):
        return hypergradient(problem, combiner, solver).solution.v.pieces[0][0]

    assert relative_error(v(Identity("fixed_point")), b / D_inverse) < 1e-12
    damped = torch.linalg.solve(H + 0.5 * torch.diag(D_inverse), b)
    assert relative_error(v(ConjugateGradient(500, 0.5, 1e-12, "fixed_point")), damped) < 1e-8
    assert relative_error(torch.linalg.solve(H + 0.5 * torch.eye(60).double(), b), damped) > 0.1
    undamped = torch.linalg.solve(H, b)
    assert relative_error(v(ConjugateGradient(500, 0.0, 1e-12, "fixed_point")), undamped) < 1e-8
    D, I = torch.diag(1 / D_inverse), torch.eye(60).double()
    series = sum(torch.linalg.matrix_power(I - 1e-3 * D @ (H + 0.5 * torch.diag(D_inverse)), j) for j in range(6)) * 1e-3 @ D @ b
    assert relative_error(v(Neumann(5, 1e-3, 0.5, "fixed_point")), series) < 1e-10


# --- how solves end


class Matrix:
    """`Bilevel` of a given H, as far as solvers look at it."""

    fixed_point = None

    def __init__(self, H: Tensor):
        self.H = H

    def hessian(self):
        return lambda u: Vector((self.H @ u.pieces[0],))

    def random(self, seed: int) -> Vector:
        return Vector((torch.randn(len(self.H), generator=torch.Generator().manual_seed(seed)).double(),))


def test_solvers_name_how_they_ended():
    level, b = Matrix(torch.diag(torch.tensor([2.0, -1.0, 3.0])).double()), Vector((torch.ones(3).double(),))
    assert ConjugateGradient(10)(level, b).outcome is Outcome.NEGATIVE_CURVATURE
    assert ConjugateGradient(10, damping=2.0, tolerance=1e-9)(level, b).outcome is Outcome.CONVERGED
    assert ConjugateGradient(1, damping=2.0)(level, b).outcome is Outcome.ITERATION_LIMIT
    assert Nystrom(3, damping=0.5)(level, b).outcome is Outcome.NEGATIVE_CURVATURE
    assert Nystrom(3, damping=2.0)(level, b).outcome is Outcome.EXACT
    diverged = Neumann(30, step=1.0)(level, b)
    assert diverged.outcome is Outcome.DIVERGED and diverged.num_products < 30 and diverged.v.norm() < 10
    nan = Matrix(torch.full((3, 3), float("nan")).double())
    for solver in (ConjugateGradient(3), Neumann(3, 0.1), Nystrom(2, 1.0)):
        solution = solver(nan, b)
        assert solution.outcome is Outcome.NOT_FINITE and torch.equal(solution.v.pieces[0], b.pieces[0])


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 40))
def test_negative_curvature_never_turns_v_against_b(seed, size):
    torch.manual_seed(seed)
    noise = torch.randn(size, size).double()
    level = Matrix(torch.diag(torch.logspace(-2, 0, size).double()) + 0.2 * (noise + noise.T))
    b = Vector((torch.randn(size).double(),))
    solution = ConjugateGradient(size)(level, b)
    assert solution.v @ b > 0, solution.outcome


def test_a_warm_start_pays_one_product_and_saves_more():
    torch.manual_seed(0)
    root = torch.randn(50, 50).double()
    level, b = Matrix(root @ root.T / 50 + 0.1 * torch.eye(50).double()), Vector((torch.randn(50).double(),))
    solver = ConjugateGradient(200, tolerance=1e-6)
    cold = solver(level, b)
    near = b.plus(1e-3, level.random(1))  # as b moves from one meta step to the next
    again, warm = solver(level, near), solver(level, near, cold.v)
    assert warm.outcome is Outcome.CONVERGED and warm.num_products < again.num_products
    exact = torch.linalg.solve(level.H, near.pieces[0])
    assert relative_error(warm.v.pieces[0], exact) < 1e-4
    assert solver(level, near, -5.0 * cold.v).num_products == again.num_products + 1  # a bad start is dropped


# --- nothing is left behind


def test_a_meta_step_leaves_weights_buffers_and_generators_bit_identical():
    """Dropout and batch norm on; for each product, also when a forward raises in the middle."""
    module, combiner, losses, primary = small_case(dropout=0.3, batch_norm=True)
    for name in ("one_sided", "central", "forward", "double_backward"):
        hessian = "central" if name == "forward" else name
        for failing in (0, 1, 2, 3, 4):
            calls = 0

            def forward():
                nonlocal calls
                calls += 1
                value = losses(module)
                if calls == failing:
                    raise KeyError("in the middle")
                return value

            problem = ModuleProblem(module, forward, lambda: primary(module), product=name, hessian_product=hessian)
            if not failing:
                problem.losses()  # the inner step's own forward moves generators and statistics on, once
            before = [t.clone() for t in [*module.parameters(), *module.buffers(), torch.get_rng_state()]]
            with pytest.raises(KeyError) if failing else nullcontext():
                hypergradient(problem, combiner, ConjugateGradient(2, damping=5.0))
                if failing:  # fewer forwards than that
                    raise KeyError
            after = [*module.parameters(), *module.buffers(), torch.get_rng_state()]
            if calls < failing:
                continue  # it ran to the end, inner forward included
            assert all(torch.equal(a, b) for a, b in zip(before, after)), (name, failing)


def test_a_hundred_moves_change_no_bit_of_the_weights():
    """Adding and subtracting the same step changes a weight in two (betty 0.2.1: 48 % of them, after one pair)."""
    for dtype in (torch.float32, torch.bfloat16):
        problem, _, _ = small_problem(dtype, product="central")
        before = [p.detach().clone() for p in problem.parameters]
        for seed in range(100):
            problem.jvp(problem.random(seed))
        assert all(torch.equal(a, b) for a, b in zip(before, problem.parameters))
    drifted = [p.detach().clone() for p in problem.parameters]
    torch._foreach_add_(drifted, problem.random(0).pieces, alpha=0.01)
    torch._foreach_add_(drifted, problem.random(0).pieces, alpha=-0.01)
    assert not all(torch.equal(a, b) for a, b in zip(before, drifted))  # so the test can fail


def test_giving_up_v_changes_no_answer():
    """Also where two weights share one gradient tensor, as the summands of a sum do."""
    first, second = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))
    module = nn.Module()
    module.first, module.second, module.third = first, second, nn.Parameter(torch.randn(5))
    x, combiner = torch.randn(3, 5), small_case(torch.float32)[1]

    def losses():
        return torch.sin(x * (module.first + module.second) * module.third).pow(2).sum(1)

    found = []
    for keep_v in (True, False):
        problem = ModuleProblem(module, losses, lambda: losses().sum(), product="one_sided")
        before = [p.clone() for p in module.parameters()]
        found.append(hypergradient(problem, combiner, keep_v=keep_v))
        assert all(torch.equal(a, b) for a, b in zip(before, module.parameters()))
    assert torch.equal(flat(found[0].implicit), flat(found[1].implicit))
    assert found[0].solution.v is not None and found[1].solution.v is None


def test_losses_at_hand_count_only_at_the_same_weights_and_masks():
    module, combiner, losses, primary = small_case(dropout=0.3)
    problem = ModuleProblem(module, lambda: losses(module), lambda: primary(module), product="one_sided")
    torch.rand(3)  # the generator has moved on: the masks of `problem` are those of its making
    J_v = problem.jvp(problem.random(0))
    assert relative_error(J_v, problem.jvp(problem.random(0), "forward")) < 1e-5
    torch.optim.SGD(module.parameters(), lr=0.1).step()  # without gradients: w stays
    before = problem.losses().detach().clone()
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert not torch.allclose(problem.losses(), before)
    assert relative_error(problem.jvp(problem.random(0)), problem.jvp(problem.random(0), "forward")) < 1e-5


@pytest.mark.parametrize("solver, product, hessian_product, forwards, backwards", [
    (Identity(), "one_sided", "auto", 2, 1),  # primary on the meta batch; losses at moved weights
    (Identity(), "central", "auto", 3, 1),
    (Identity(), "forward", "auto", 2, 1),
    (ConjugateGradient(3), "one_sided", "one_sided", 2 + 4, 1 + 4),  # one gradient at w, and one for each product
    (ConjugateGradient(3), "one_sided", "central", 2 + 7, 1 + 6),
    (ConjugateGradient(3), "one_sided", "double_backward", 2 + 1, 1 + 4),  # the graph of d_w L is made once
    (ConjugateGradient(3), "one_sided", "forward_over_reverse", 2 + 3, 1 + 3),
    (ConjugateGradient(3, damping=100.0), "one_sided", "gauss_newton", 2 + 6, 1 + 3),  # each a J u and a gradient
    (Nystrom(3, 5.0), "one_sided", "one_sided", 2 + 4, 1 + 4),
    (LossSpace(1.0), "one_sided", "auto", 1 + 1, 1 + 3),  # one forward, T backwards
])  # fmt: skip
def test_a_meta_step_costs_the_passes_that_the_documentation_says(solver, product, hessian_product, forwards, backwards):
    """Counted at the module and at torch's own autograd, not by our counter, which must agree. The inner forward is the inner step's."""
    module, combiner, losses, primary = small_case()

    def make() -> ModuleProblem:
        return ModuleProblem(module, lambda: losses(module), lambda: primary(module), product=product, hessian_product=hessian_product)

    hypergradient(make(), combiner, solver)  # products are tested once a module
    problem = make()
    counted = {"forward": 0, "backward": 0}
    handle = module.register_forward_hook(lambda *_: counted.__setitem__("forward", counted["forward"] + 1))
    grad = torch.autograd.grad

    def counting(outputs, inputs, *rest, **options):
        counted["backward"] += len(list(inputs)) == len(problem.parameters) if isinstance(inputs, (list, tuple)) else 0
        return grad(outputs, inputs, *rest, **options)

    torch.autograd.grad = counting
    try:
        hypergradient(problem, combiner, solver)
    finally:
        torch.autograd.grad = grad
        handle.remove()
    assert (counted["forward"] - 1, counted["backward"]) == (forwards, backwards)
    assert (problem.passes()["forward"], problem.passes()["backward"]) == (forwards, backwards)


# --- which product


def test_auto_takes_the_cheapest_that_the_model_admits_and_says_so(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="meltr_ray")

    def chosen(**options):
        caplog.clear()
        tell.cache_clear()
        problem, combiner, _ = small_problem(torch.float32, **({"product": "auto", "hessian_product": "auto"} | options))
        hypergradient(problem, combiner, ConjugateGradient(1, damping=5.0))
        return [record.getMessage() for record in caplog.records]

    jvp, hvp = sorted(line for line in chosen() if "cheapest" in line)[::-1]
    assert jvp.startswith("product=auto: forward") and hvp.startswith("hessian_product=auto: double_backward")  # few weights
    monkeypatch.setattr("meltr_ray.hypergrad.weights.FEW", 0)
    jvp, hvp = sorted(line for line in chosen() if "cheapest" in line)[::-1]
    assert jvp.startswith("product=auto: one_sided") and hvp.startswith("hessian_product=auto: one_sided")
    assert any(line.startswith("product=auto: central") for line in chosen(accuracy=5e-3))
    lines = chosen(accuracy=1e-4, network=dict(attention=True))
    assert any(line.startswith("product=auto: forward") for line in lines)
    # fused attention has no second derivative: refused by name, and the next best is taken
    assert any("double_backward refused" in line for line in lines) and any("hessian_product=auto: forward_over" in line for line in lines)


def test_a_difference_under_autocast_runs_in_float32():
    """Outer gradient in bfloat16, differences in float32, weights' cached half-precision copies dropped when w moves."""
    problem, combiner, dense = small_problem(torch.float32)
    expected = small_problem()[2].implicit(combiner.double(), small_problem()[2].outer_gradient())
    combiner.float()
    module, _, losses, primary = small_case(torch.float32)
    for product in ("one_sided", "central", "forward", "auto"):
        with torch.autocast("cpu", torch.bfloat16):
            problem = ModuleProblem(module, lambda: losses(module).float(), lambda: primary(module).float(), product=product)
            problem.losses()
            got = flat(hypergradient(problem, combiner).implicit)
        assert relative_error(got.double(), expected) < 0.1, product


def test_the_self_check_measures_the_error_that_there_is():
    problem, combiner, dense = small_problem(product="one_sided", hessian_product="one_sided", radius=0.05)
    v = problem.random(0)
    flat_v = flat(list(v.pieces))
    errors = product_errors(problem, combiner, v)
    true_jvp = relative_error(problem.jvp(v)[0], jacrev(dense.losses)(dense.w) @ flat_v)
    true_hvp = relative_error(flat(list(problem.hessian(combiner)(v).pieces)), dense.hessian(combiner) @ flat_v)
    assert errors["jvp"] == pytest.approx(true_jvp, rel=1e-3) and errors["hvp"] == pytest.approx(true_hvp, rel=1e-3)
    assert true_jvp > 1e-4  # there is something to measure


@pytest.mark.parametrize("wrap", ["activation checkpointing", "compiled"])
def test_products_see_through_checkpointing_and_compilation_or_refuse(wrap):
    """No wrong number: each product is the dense one or NotAdmitted; `auto` finds one that works. Masks are replayed, too."""
    module, combiner, losses, primary = small_case(dropout=0.3)
    wrapped = torch.compile(module, backend="aot_eager") if wrap == "compiled" else None

    def call(x: Tensor) -> Tensor:
        return wrapped(x) if wrapped is not None else checkpoint(module, x, use_reentrant=False)

    state, expected, refused = torch.get_rng_state(), None, set()
    for bare in (True, False):
        for product, hessian in (("forward", "double_backward"), ("central", "forward_over_reverse"), ("central", "central"),
                                 ("auto", "auto")):  # fmt: skip
            torch.set_rng_state(state)
            model = module if bare else call
            problem = ModuleProblem(module, lambda: losses(model), lambda: primary(model), product=product, hessian_product=hessian)
            try:
                got = flat(hypergradient(problem, combiner, Dense(damping=5.0)).implicit)
            except NotAdmitted:
                refused.add((product, hessian))
                continue
            expected = got if expected is None else expected
            assert relative_error(got, expected) < 1e-6, (bare, product, hessian)
    assert ("auto", "auto") not in refused and ("central", "central") not in refused


# --- any losses


def test_negative_zero_and_badly_scaled_losses():
    torch.manual_seed(4)
    module, x, y = Network().double(), torch.randn(8, 4).double(), torch.randn(8, 3).double()
    combiner = MELTR(4, embedding_size=16, loss_encoder_size=8, feed_forward_size=16).double()
    nn.init.normal_(combiner.fc1.weight, std=0.5)

    def losses(m):
        error = m(x) - y
        return torch.stack([1e3 * error.pow(2).mean(), -(error[:, 0].pow(2) + 0.1).log().mean(), 0.0 * error.sum(), 1e-3 * error.sum()])

    def primary(m):
        return (m(x) - y)[:, 1].pow(2).mean()

    dense = DenseReference(module, losses, primary)
    problem = ModuleProblem(module, lambda: losses(module), lambda: primary(module), product="one_sided", hessian_product="double_backward")
    got = hypergradient(problem, combiner, Dense(damping=1.0))
    assert relative_error(flat(got.implicit), dense.implicit(combiner, dense.v(combiner, 1.0))) < 1e-4


def test_non_negative_slopes_hold_a_loss_instead_of_raising_it():
    module, _, losses, primary = small_case()
    signed = FixedWeights([1.0, -0.5, 2.0]).double()
    signed.weights = nn.Parameter(signed.weights)
    cut, l = NonNegativeSlopes(signed), losses(module).detach()
    assert slopes(signed, l)[1].tolist() == [1.0, -0.5, 2.0] and slopes(cut, l)[1].tolist() == [1.0, 0.0, 2.0]
    problem = ModuleProblem(module, lambda: losses(module), lambda: primary(module), **EXACT)
    kept = DenseReference(module, losses, primary)
    H = kept.hessian(FixedWeights([1.0, 0.0, 2.0]).double())
    v = torch.linalg.solve(H + 5 * torch.eye(len(H)).double(), kept.outer_gradient())
    expected = -(jacrev(kept.losses)(kept.w) @ v) * torch.tensor([1.0, 0.0, 1.0]).double()
    assert relative_error(flat(hypergradient(problem, cut, Dense(damping=5.0)).implicit), expected) < 1e-10


def test_meltr_is_permutation_equivariant_and_starts_at_the_plain_sum():
    torch.manual_seed(0)
    combiner, l, order = MELTR(4), torch.rand(4), torch.tensor([2, 0, 3, 1])
    assert torch.allclose(combiner(l), l.sum())
    nn.init.normal_(combiner.fc1.weight)
    before = combiner(l)
    combiner.task_embedding.weight.data = combiner.task_embedding.weight.data[order]
    assert torch.allclose(combiner(l[order]), before, atol=1e-5)


# --- bad input


def test_bad_input_meets_one_line_with_the_mend():
    module, combiner, losses, primary = small_case()
    attention = Network(attention=True)
    x = torch.randn(8, 4)

    def take(m, l, p, solver=Identity(), combined=combiner, **options):
        return lambda: hypergradient(ModuleProblem(m, l, p, **options), combined, solver)

    def good():
        return losses(module)

    frozen = Network().double().requires_grad_(False)
    sizes = iter(range(3, 100))
    cases = [
        (take(module, lambda: good() * torch.tensor([1, float("nan"), 1]), lambda: primary(module)), InvalidLosses, "loss 1 is nan"),
        (take(module, good, lambda: torch.ones(())), ValueError, "doesn't depend on the module's weights"),
        (take(frozen, good, lambda: primary(frozen)), ValueError, "unfreeze"),
        (take(module, good, lambda: primary(module), combined=FixedWeights([0.0, 0.0, 0.0]).double()), InvalidLosses, "all slopes are zero"),
        (take(attention, lambda: attention(x).pow(2).mean(0), lambda: attention(x).sum(), combined=MELTR(3), product="double_backward"),
         NotAdmitted, "product=double_backward"),
        (take(module, lambda: good()[:1].expand(next(sizes)), lambda: primary(module)), ValueError, "same losses of the same batch"),
        (take(module, lambda: good().sum(), lambda: primary(module)), ValueError, "return one vector (T,)"),
        (take(module, good, lambda: primary(module), product="magic"), ValueError, "unknown; use one of auto, one_sided"),
        (take(module, good, lambda: primary(module), combined=None), ValueError, "needs one"),
        (lambda: hypergradient(ModuleProblem(module, good, good), combiner, regulariser="none"), ValueError, "use one of phi_only"),
        (lambda: ConjugateGradient(0), ValueError, "use Identity()"),
        (lambda: Neumann(3, step=0.0), ValueError, "must be positive"),
        (lambda: Nystrom(3, damping=0.0), ValueError, "must be positive"),
        (lambda: Identity("magic"), ValueError, "unknown; use one of"),
        (take(module, good, lambda: primary(module), ConjugateGradient(2, adam="precondition")), ValueError, "FixedPoint.of"),
        (lambda: hypergradient(BilevelProblem(module, [torch.ones(2)], good, good)), ValueError, "none requires a gradient"),
    ]  # fmt: skip
    for act, kind, words in cases:
        with pytest.raises(kind) as caught:
            act()
        assert words in str(caught.value) and "\n" not in str(caught.value), words
