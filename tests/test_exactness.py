"""Hypergradients against dense float64 answers, the true optimum and another library; the table is in docs/exactness.md."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from meltr_ray import unrolled_hypergradient
from meltr_ray.hypergrad import ConjugateGradient, Dense, LossSpace, Outcome
from tests.exactness import (
    DOUBLE,
    RULES,
    cells,
    damped_solve,
    difference_of_the_true_optimum,
    error_of,
    four_point_difference,
    gauss_newton_solve,
)
from tests.problems import EXACT, FACTORIES, Case, case, flat_vector, perceptron
from tests.reference import flat, textbook_conjugate_gradient

RULE = RULES["exact", DOUBLE]


def check(got: torch.Tensor, expected: torch.Tensor, rule: float, what: str) -> None:
    error = error_of(got, expected)
    assert error <= rule, f"{what}: relative error {error:.2e}, rule {rule:.0e}"


@pytest.mark.parametrize("name", FACTORIES)
def test_every_product_and_solver_keeps_its_rule(name):
    broken = [cell for cell in cells(name) if not cell.holds]
    assert not broken, "\n".join(map(str, broken))


@pytest.mark.parametrize("name", FACTORIES)
def test_the_dense_answers_are_derivatives(name):
    """H u and the mixed derivative by differences of first derivatives: whatever autograd does twice is not trusted twice."""
    reference, generator = case(name).reference, torch.Generator().manual_seed(0)
    u = torch.randn(len(reference.w), generator=generator).double()
    x = torch.randn(len(reference.phi), generator=generator).double()
    u, x, step = u / u.norm(), x / x.norm(), 1e-4

    def slope_along_u(dw: float, dphi: float) -> torch.Tensor:
        return u @ reference.gradient(reference.w + dw * u, reference.phi + dphi * x)

    def derivative(unit: tuple[float, float]) -> torch.Tensor:
        return four_point_difference(lambda t: slope_along_u(t[0] * unit[0], t[0] * unit[1]), torch.zeros(1).double(), step)

    check(derivative((1.0, 0.0)), (u @ reference.hessian @ u).view(1), 1e-7, "H")
    check(derivative((0.0, 1.0)), (u @ reference.mixed @ x).view(1), 1e-7, "mixed derivative")


@pytest.mark.parametrize("name", ["quadratic", "low rank", "indefinite", "perceptron"])
def test_conjugate_gradient_goes_the_textbook_way(name):
    """Every iterate, not only the last."""
    this = case(name)
    for k in range(1, 5):
        solution = this.hypergradient(ConjugateGradient(k, this.damping)).solution
        expected = textbook_conjugate_gradient(this.A, this.reference.outer_gradient, k)
        check(flat_vector(solution.v), expected, RULE, f"iterate {k}")
        assert solution.num_products == k and solution.outcome is Outcome.ITERATION_LIMIT
        residual = float((this.reference.outer_gradient - this.A @ expected).norm() / this.reference.outer_gradient.norm())
        assert solution.residual == pytest.approx(residual, rel=1e-8)


def test_an_indefinite_problem_without_damping_ends_at_negative_curvature_and_downhill():
    this = case("indefinite")
    solution = this.hypergradient(ConjugateGradient(50)).solution
    along = float(flat_vector(solution.v) @ this.reference.outer_gradient)
    assert solution.outcome is Outcome.NEGATIVE_CURVATURE and along > 0, f"<v, b> = {along:.2e}"
    undamped = flat(this.hypergradient(Dense()).implicit)  # a dense solve has no such scruples
    check(
        undamped,
        -this.reference.mixed.T @ torch.linalg.solve(this.reference.hessian, this.reference.outer_gradient),
        RULE,
        "Dense",
    )


def test_ridge_as_losses_is_ridge_by_strengths():
    """Two problem classes, one answer: the data loss has weight exp(0) = 1 in the first."""
    as_losses, by_strengths = (flat(case(name).hypergradient(Dense()).total()) for name in ("ridge, losses", "ridge, strengths"))
    check(as_losses[1:], by_strengths, RULE, "strengths")


def test_unrolling_differentiates_gradient_descent_and_ends_in_the_implicit_answer():
    this, (rate, steps) = case("ridge, losses"), (0.3, 3)
    reference, start = this.reference, this.reference.w

    def outer_after(phi: torch.Tensor) -> torch.Tensor:
        w = start
        for _ in range(steps):
            w = w - rate * reference.gradient(w, phi)
        return reference.outer(w, phi)

    def unrolled(steps: int) -> torch.Tensor:
        return flat(unrolled_hypergradient(this.module, lambda: this.losses[0](this.module), lambda: this.primary[0](this.module),
                                           this.combiner, steps=steps, learning_rate=rate))  # fmt: skip

    check(unrolled(steps), four_point_difference(outer_after, reference.phi, 1e-3), 1e-8, "three steps")
    check(unrolled(150), flat(this.hypergradient(Dense()).total()), 1e-8, "150 steps, from the optimum")


@hypothesis_settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), inputs=st.integers(1, 6), hidden=st.integers(1, 6), num_losses=st.integers(1, 5),
       embedding_size=st.sampled_from([8, 16]), micro_batches=st.integers(1, 3), dropout=st.sampled_from([0.0, 0.3]))  # fmt: skip
def test_random_networks(seed, inputs, hidden, num_losses, embedding_size, micro_batches, dropout):
    """Exact products only: where differences cross a kink of MELTR's, they err by any amount."""
    this = perceptron("random", seed, inputs, hidden, num_losses, embedding_size, micro_batches, dropout)
    for product, hessian_product in ((EXACT, EXACT), ("forward", "forward_over_reverse")):
        check(*this.mixed_product(product), RULE, f"J v, {product}")
        check(*this.hessian_product(hessian_product), RULE, f"H u, {hessian_product}")
    for solver, dense in ((Dense(this.damping), damped_solve), (ConjugateGradient(200, this.damping, 1e-13), damped_solve),
                          (LossSpace(this.gauss_newton_damping), gauss_newton_solve)):  # fmt: skip
        check(flat(this.hypergradient(solver).implicit), -this.reference.mixed.T @ dense(this), RULE, str(solver))


@pytest.mark.parametrize("name", ["quadratic", "curved", "ridge, strengths", "logistic"])
def test_another_library_agrees(name):
    torchopt = pytest.importorskip("torchopt")
    expected = _by_torchopt(torchopt, case(name))
    check(flat(case(name).hypergradient(Dense()).total()), expected, RULE, "TorchOpt")
    check(expected, difference_of_the_true_optimum(case(name)), 1e-6, "TorchOpt and the true optimum")


def _by_torchopt(torchopt, this: Case) -> torch.Tensor:
    """dF/dphi through TorchOpt's implicit differentiation of the root of d_w L, (q,)."""
    from torchopt.diff.implicit import custom_root

    reference = this.reference

    def stationarity(w: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(reference.inner)(w, phi)

    @custom_root(stationarity, argnums=1, solve=torchopt.linear_solve.solve_normal_cg(rtol=1e-14, atol=1e-14, maxiter=500))
    def optimum(w: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
        return this.optimum(phi.detach())

    phi = this.phi.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it calls functorch by its old name
        return torch.autograd.grad(reference.outer(optimum(reference.w, phi), phi), phi)[0]
