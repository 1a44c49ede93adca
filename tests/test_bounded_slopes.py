"""Slopes on a simplex, losses switched off, inputs that don't saturate, normalised alignments: properties, and hypergradients against closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from meltr_ray import MELTR
from meltr_ray.combining.inputs import DECAY
from meltr_ray.combining.learned import Meltr
from meltr_ray.combining.meta_optimizer import DECAY as OF_LENGTHS
from meltr_ray.combining.slopes import Gated, SimplexSlopes, slopes
from meltr_ray.config import AidConfig
from meltr_ray.hypergrad import hypergradient
from tests.problems import ExponentialWeights, case
from tests.reference import flat, relative_error

PRIMARY, FLOOR = 1, 0.3


def meltr(inputs: str = "raw") -> MELTR:
    torch.manual_seed(3)
    combiner = MELTR(3, embedding_size=16, loss_encoder_size=8, feed_forward_size=16, inputs=inputs)
    nn.init.normal_(combiner.fc1.weight, std=0.5)
    return combiner.double()


def shares(s: Tensor) -> Tensor:
    """a of the inner slopes, by its formula."""
    return len(s) * ((1 - FLOOR) * s.exp() / s.exp().sum() + FLOOR * (torch.arange(len(s)) == PRIMARY))


@pytest.mark.parametrize("seed", range(5))
def test_slopes_on_the_simplex_are_positive_with_a_fixed_sum_and_a_floor(seed):
    torch.manual_seed(seed)
    weights = torch.randn(4).double()
    combiner = SimplexSlopes(ExponentialWeights(weights.tolist()).double(), PRIMARY, FLOOR)
    l = torch.randn(4).double()
    value, a = slopes(combiner, l)
    assert torch.allclose(a, shares(weights.float().double().exp())) and torch.allclose(value, a @ l)
    assert (a >= 0).all() and float(a.sum()) == pytest.approx(4) and a[PRIMARY] >= 4 * FLOOR - 1e-12


def test_meltr_starts_with_even_shares_of_what_the_floor_leaves():
    _, a = slopes(SimplexSlopes(MELTR(4), 0, 0.25), torch.rand(4))
    assert torch.allclose(a, torch.tensor([1.75, 0.75, 0.75, 0.75]))


@pytest.mark.parametrize("name", ["quadratic", "perceptron"])
def test_the_hypergradient_on_the_simplex_is_that_of_its_slopes(name):
    """Of exponential weights, whose shares have a derivative in closed form; J and b are dense."""
    plain = case(name)
    inner = ExponentialWeights([0.5, -0.25, 0.1]).double()
    found = hypergradient(plain.problem(), SimplexSlopes(inner, PRIMARY, FLOOR), gamma=0.0)
    c, s = plain.reference.jacobian @ plain.reference.outer_gradient, torch.tensor([0.5, -0.25, 0.1]).double().exp()
    p = s.softmax(0)
    expected = -3 * (1 - FLOOR) * p * (c - p @ c) * s
    assert relative_error(flat(found.implicit), expected) < 1e-9


@pytest.mark.parametrize("kind", ["simplex", "gated"])
def test_the_hypergradient_of_bounded_meltr_is_the_difference_of_its_slopes_in_phi(kind):
    plain, inner = case("perceptron"), meltr()
    problem, open = plain.problem(), torch.tensor([1.0, 1.0, 0.0]).double()
    c, l = plain.reference.jacobian @ plain.reference.outer_gradient, problem.losses().detach()[0]
    gated = Gated(inner, 3).double()
    gated.open.copy_(open)
    found = hypergradient(problem, SimplexSlopes(inner, PRIMARY, FLOOR) if kind == "simplex" else gated, gamma=0.2)
    torch.manual_seed(9)
    direction = {name: torch.randn_like(p) for name, p in inner.named_parameters()}

    def outer(eps: float) -> Tensor:
        """-<a, J b> and the regulariser, at phi + eps direction."""
        phi = {name: p.detach() + eps * direction[name] for name, p in inner.named_parameters()}
        at = l.clone().requires_grad_()
        value = functional_call(inner, phi, (at,))
        (s,) = torch.autograd.grad(value, at)
        a = shares(s) if kind == "simplex" else s * open
        return -(a @ c) + 0.2 * ((a @ l if kind == "simplex" else value.detach()) - l.sum()).abs()

    expected = (outer(1e-5) - outer(-1e-5)) / 2e-5
    ours = sum((g * d).sum() for g, d in zip(found.total(), direction.values()))
    assert float(ours) == pytest.approx(float(expected), rel=1e-6)


def test_a_closed_loss_has_no_slope_and_the_others_keep_theirs():
    inner, l = meltr(), torch.tensor([1.0, 0.5, 2.0]).double()
    gated = Gated(inner, 3).double()
    gated.open.copy_(torch.tensor([1.0, 0.0, 1.0]))
    assert torch.equal(slopes(gated, l)[1], slopes(inner, l)[1] * gated.open)
    assert torch.equal(slopes(gated, l)[0], slopes(inner, l)[0])


def test_relative_inputs_make_the_unit_of_a_loss_meaningless():
    combiner, l = meltr("relative"), torch.tensor([1.0, 0.5, 2.0]).double()
    combiner.inputs.observe(l)
    before = slopes(combiner, 1.2 * l)[1] - 1
    again, unit = meltr("relative"), torch.tensor([1000.0, 1.0, 1e-3]).double()
    again.inputs.observe(unit * l)
    assert torch.allclose((slopes(again, 1.2 * unit * l)[1] - 1) * unit, before)
    again.inputs.observe(3 * unit * l)
    assert torch.allclose(again.inputs.scale, unit * l * (DECAY + 3 * (1 - DECAY)))
    again.inputs.observe(torch.full((3,), torch.inf))
    assert again.inputs.scale.isfinite().all()


def test_log_inputs_are_smooth_for_any_sign_and_do_not_saturate():
    """Large losses that double still change what the transformer says; as raw values they have saturated its layer norm."""
    l = torch.tensor([3e4, 5e4, 2e4]).double()

    def difference(combiner: MELTR) -> float:
        learned = [float(combiner(x).detach() - x.sum()) for x in (l, 2 * l)]
        return abs(learned[1] - learned[0])

    assert difference(meltr("log")) > 5 * difference(meltr())
    log = meltr("log").inputs
    assert torch.autograd.gradgradcheck(log, torch.tensor([-2.0, 1e-3, 3.0]).double().requires_grad_())
    assert torch.allclose(log(-l), -(2 * l).log(), atol=1e-4)


def test_published_inputs_and_names_are_the_default():
    assert {name.partition(".")[0] for name in MELTR(3).state_dict()} == {"task_embedding", "loss_fc1", "loss_fc2", "encoder", "fc1"}


def test_normalised_alignments_count_alike_however_small_they_get():
    """phi's gradient is the implicit term over the mean length of the alignments so far, and the direct term as it is."""
    plain, aid = case("perceptron"), AidConfig(normalise=True, gamma=0.1, clip=0)
    way, lengths = Meltr(meltr(), aid), []
    for number, size in enumerate([1.0, 1e-3, 1e-3]):
        scaled = replace(plain, primary=tuple(lambda m, f=f: size * f(m) for f in plain.primary))
        expected = hypergradient(scaled.problem(), way.combiner, way.solver, aid.gamma)
        lengths.append(float(expected.alignments.mean(0).norm()))
        known = sum((1 - OF_LENGTHS) * OF_LENGTHS ** (number - i) * length for i, length in enumerate(lengths)) / (
            1 - OF_LENGTHS ** (number + 1)
        )
        way.step(scaled.problem())
        for p, i, d in zip(way.optimizer.phi, expected.implicit, expected.direct):
            assert torch.allclose(p.grad, i / known + d, rtol=1e-6, atol=1e-12)


def test_betas_are_those_of_phis_adam():
    given, default = (Meltr(meltr(), aid).optimizer.adam.defaults["betas"] for aid in (AidConfig(betas=[0.8, 0.99]), AidConfig()))
    assert given == (0.8, 0.99) and default == (0.9, 0.999)
