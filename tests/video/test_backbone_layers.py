"""What the backbones' layers compute in another way than torch: products by oneDNN, attention in blocks, dropout."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F

from meltr_ray.video.backbones import layers
from meltr_ray.video.backbones.layers import Dropout, blocked_attention, linear, plain_attention, used_length


def derivatives(product, x, weight, bias, direction) -> list[torch.Tensor]:
    """Value, gradient, second derivative along a direction, and forward-mode derivative of a function that uses `product`."""
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
    value = product(*inputs).tanh()
    gradient = torch.autograd.grad(value.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum((g * d).sum() for g, d in zip(gradient, direction)), inputs)
    with forward_ad.dual_level():
        dual = product(*(forward_ad.make_dual(t, d) for t, d in zip((x, weight, bias), direction))).tanh()
        tangent = forward_ad.unpack_dual(dual).tangent
    return [t.detach() for t in (value, *gradient, *second, tangent)]


@pytest.mark.parametrize("shape", [(9, 100), (1201,), (600,), (5, 4, 50)])
def test_products_by_onednn_are_those_in_float64_and_so_are_their_derivatives(shape, monkeypatch):
    """600 rows are too few for oneDNN."""
    monkeypatch.setattr(layers, "ONEDNN_PRODUCT", 0)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator) for size in ((*shape, 24), (40, 24), (40,)) * 2]
    (x, weight, bias), direction = tensors[:3], tensors[3:]
    got = derivatives(linear, x, weight / 5, bias, direction)
    expected = derivatives(F.linear, *(t.double() for t in (x, weight / 5, bias)), [d.double() for d in direction])
    for value, reference in zip(got, expected, strict=True):
        assert (value - reference).norm() < 1e-5 * reference.norm()


@pytest.mark.skipif(not layers.has_onednn(torch.zeros(1)), reason="this CPU has no AVX-512, so every product is MKL's")
def test_large_products_are_given_to_onednn():
    x, weight = torch.randn(40, 50, 256), torch.randn(128, 256)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        linear(x, weight)
    assert "aten::mkldnn_convolution" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("bias_rows", [1, 3])
def test_attention_in_blocks_has_all_derivatives(bias_rows, monkeypatch):
    monkeypatch.setattr(layers, "CACHED_SCORES", 2 * 1 * 2 * 3)  # a block of two rows and one of one
    generator = torch.Generator().manual_seed(0)
    query, key, value, bias = (torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
                               for shape in ((3, 1, 2, 2), (3, 1, 3, 2), (3, 1, 3, 2), (bias_rows, 1, 2, 3)))  # fmt: skip
    inputs = (query, key, value, bias)
    torch.testing.assert_close(blocked_attention(*inputs), F.scaled_dot_product_attention(query, key, value, bias))
    assert torch.autograd.gradcheck(blocked_attention, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(blocked_attention, inputs)


def test_attention_in_blocks_drops_the_same_in_both_passes(monkeypatch):
    monkeypatch.setattr(layers, "CACHED_SCORES", 2 * 2 * 7 * 7)
    inputs = [torch.randn(6, 2, 7, 8, requires_grad=True) for _ in range(3)]
    bias, dropout = torch.zeros(1, 1, 1, 7), Dropout(0.4)
    torch.manual_seed(0)
    blocks = blocked_attention(*inputs, bias, dropout)
    torch.manual_seed(0)
    kept = torch.cat([plain_attention(*rows, bias, dropout) for rows in zip(*(x.split(2) for x in inputs))])
    assert torch.equal(blocks, kept)
    got, expected = (torch.autograd.grad(x.square().sum(), inputs) for x in (blocks, kept))
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_dropout_keeps_the_mean_and_passes_on_what_it_kept():
    x = torch.full((500, 401), 3.0, requires_grad=True)
    y = Dropout(0.1)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.mean().item() == pytest.approx(3, abs=0.02) and (y == 0).float().mean().item() == pytest.approx(0.1, abs=0.005)
    torch.testing.assert_close(gradient * 3, y.detach())


def test_used_length_is_the_last_used_position():
    used = torch.zeros(2, 3, 9, dtype=torch.bool)
    assert used_length(used) == 1
    used[1, 2, 4] = used[0, 0, 2] = True
    assert used_length(used) == 5
