"""The hypergradient on a plain module in float64, against dense matrices and against the true optimum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from meltr_ray import MELTR, ModuleProblem, hypergradient
from meltr_ray.hypergrad import ConjugateGradient, Identity, Neumann, Outcome
from meltr_ray.vectors import Vector
from tests.reference import DenseReference, flat, relative_error


def small_problem(product: str = "exact", radius: float = 0.1):
    """A two-layer network with three losses of different scale and a combiner away from the plain sum."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    combiner = MELTR(3, embedding_size=16, loss_encoder_size=8, feed_forward_size=16).double()
    nn.init.normal_(combiner.fc1.weight, std=0.5)
    x, y, meta_x, meta_y = (torch.randn(8, n).double() for n in (4, 3, 4, 3))

    def losses(m):
        error = m(x) - y
        return torch.stack([error[:, 0].pow(2).mean(), 10 * error[:, 1].abs().pow(1.5).mean(), error[:, 2].cosh().mean()])

    def primary(m):
        return (m(meta_x) - meta_y)[:, 0].pow(2).mean()

    problem = ModuleProblem(list(module.parameters()), lambda: losses(module), lambda: primary(module), product, radius)
    return problem, combiner, DenseReference(module, losses, primary)


@pytest.mark.parametrize("product, tolerance", [("exact", 1e-6), ("central", 1e-5), ("one_sided", 1e-2)])
@pytest.mark.parametrize("name", ["identity", "neumann", "cg"])
def test_the_implicit_term_is_the_dense_formula(name, product, tolerance):
    problem, combiner, dense = small_problem(product, radius=1e-3)
    solver, v = {
        "identity": (Identity(), dense.outer_gradient()),
        "neumann": (Neumann(4, 0.01, damping=0.1), dense.neumann(combiner, 4, 0.01, damping=0.1)),
        "cg": (ConjugateGradient(200, damping=20.0, tolerance=1e-13), dense.v(combiner, damping=20.0)),
    }[name]
    result = hypergradient(problem, combiner, solver)
    assert relative_error(flat(result.implicit), dense.implicit(combiner, v)) < tolerance


@pytest.mark.parametrize("regulariser", ["phi_only", "full", "paper"])
def test_the_regulariser_keeps_the_terms_it_promises(regulariser):
    problem, combiner, dense = small_problem()
    gamma, phi = 0.7, list(combiner.parameters())

    def deviation(l):
        return gamma * (combiner(l) - l.sum()).abs()

    from torch.func import jacrev

    b = dense.outer_gradient()
    if regulariser != "phi_only":
        b = b + jacrev(lambda w: deviation(dense.losses(w)))(dense.w)
    expected = dense.implicit(combiner, b)
    if regulariser != "paper":
        direct = torch.autograd.grad(deviation(dense.losses(dense.w).detach()), phi, materialize_grads=True, allow_unused=True)
        expected = expected + flat(direct)
    result = hypergradient(problem, combiner, Identity(), gamma, regulariser)
    assert relative_error(flat(result.total()), expected) < 1e-10


def test_paper_mode_is_the_published_double_backward():
    """-grad_phi <dL/dw, dF/dw>, as in the published MELTR code, through the whole model."""
    problem, combiner, _ = small_problem()
    w, phi, gamma = problem.parameters, list(combiner.parameters()), 0.3
    losses = problem.forward()
    training = combiner(losses)
    outer = problem.primary() + gamma * (losses.sum() - training).abs()
    of_outer = torch.autograd.grad(outer, w, retain_graph=True)
    of_training = torch.autograd.grad(training, w, create_graph=True)
    published = torch.autograd.grad(of_training, phi, [-g for g in of_outer], allow_unused=True, materialize_grads=True)
    ours = hypergradient(problem, combiner, Identity(), gamma, "paper").total()
    assert relative_error(flat(ours), flat(list(published))) < 1e-10


def test_hypergradient_is_the_derivative_of_the_true_optimum():
    """Perturb phi, solve the inner problem again in closed form, difference the outer loss: no formula of ours in it."""
    torch.manual_seed(1)
    A, c = torch.randn(3, 6, 4).double(), torch.randn(3, 6).double() + 2  # three quadratic losses, optimum not at 0
    A[1] *= 10
    target = torch.randn(4).double()
    weights = nn.Linear(3, 1, bias=False).double()
    nn.init.uniform_(weights.weight, 0.5, 2.0)
    combiner = nn.Sequential(weights, nn.Flatten(0))

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = combiner

        def forward(self, l):
            return self.inner(l).squeeze()

    def optimum(p):
        H = sum(p[t] * A[t].T @ A[t] for t in range(3))
        return torch.linalg.solve(H, sum(p[t] * A[t].T @ c[t] for t in range(3)))

    def outer(p):
        return 0.5 * (optimum(p) - target).pow(2).sum()

    p = weights.weight.detach().flatten().clone()
    w = nn.Parameter(optimum(p))
    problem = ModuleProblem([w], lambda: 0.5 * (A @ w - c).pow(2).sum(1), lambda: 0.5 * (w - target).pow(2).sum())
    got = flat(hypergradient(problem, Sum(), ConjugateGradient(50, tolerance=1e-14)).total())
    eps, I = 1e-5, torch.eye(3).double()
    expected = torch.stack([(outer(p + eps * I[t]) - outer(p - eps * I[t])) / (2 * eps) for t in range(3)])
    assert relative_error(got, expected) < 1e-6


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12))
def test_conjugate_gradient_solves_and_reports_its_true_residual(seed, size):
    torch.manual_seed(seed)
    root = torch.randn(size, size).double()
    H, b = root @ root.T + 0.1 * torch.eye(size).double(), torch.randn(size).double()
    solution = ConjugateGradient(10 * size, damping=0.5, tolerance=1e-10)(lambda u: Vector((H @ u.pieces[0],)), Vector((b,)))
    v = solution.v.pieces[0]
    assert solution.outcome is Outcome.CONVERGED
    assert relative_error(H @ v + 0.5 * v, b) < 1e-8  # the damped system, not only its direction


def test_solvers_name_how_they_ended():
    H, b = torch.diag(torch.tensor([2.0, -1.0, 3.0])).double(), Vector((torch.ones(3).double(),))

    def product(u):
        return Vector((H @ u.pieces[0],))

    assert ConjugateGradient(10)(product, b).outcome is Outcome.NEGATIVE_CURVATURE
    assert ConjugateGradient(10, damping=2.0, tolerance=1e-9)(product, b).outcome is Outcome.CONVERGED
    assert ConjugateGradient(1, damping=2.0)(product, b).outcome is Outcome.ITERATION_LIMIT
    assert Neumann(30, step=1.0)(product, b).outcome is Outcome.DIVERGED
    nan = ConjugateGradient(3)(lambda u: float("nan") * u, b)
    assert nan.outcome is Outcome.NOT_FINITE and torch.equal(nan.v.pieces[0], b.pieces[0])


def test_negative_curvature_never_turns_v_against_b():
    torch.manual_seed(3)
    noise = torch.randn(40, 40).double()
    H = torch.diag(torch.logspace(-2, 0, 40).double()) + 0.1 * (noise + noise.T)
    b = torch.randn(40).double()
    solution = ConjugateGradient(40)(lambda u: Vector((H @ u.pieces[0],)), Vector((b,)))
    assert solution.outcome is Outcome.NEGATIVE_CURVATURE and float(solution.v.pieces[0] @ b) > 0


def test_a_pass_that_raises_leaves_weights_and_generator_bit_identical():
    problem, _, _ = small_problem("central")
    direction = Vector(tuple(torch.randn_like(p) for p in problem.parameters))
    before, generator = [p.clone() for p in problem.parameters], torch.get_rng_state()
    calls = 0

    def failing():
        nonlocal calls
        calls += 1
        torch.rand(1)
        raise RuntimeError("in the middle")

    problem.forward = failing
    with pytest.raises(RuntimeError):
        problem.jvp(direction)
    assert calls == 1 and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.parameters))


def test_meltr_is_permutation_equivariant_and_starts_at_the_plain_sum():
    torch.manual_seed(0)
    combiner, l, order = MELTR(4), torch.rand(4), torch.tensor([2, 0, 3, 1])
    assert torch.allclose(combiner(l), l.sum())
    nn.init.normal_(combiner.fc1.weight)
    before = combiner(l)
    combiner.task_embedding.weight.data = combiner.task_embedding.weight.data[order]
    assert torch.allclose(combiner(l[order]), before, atol=1e-5)
