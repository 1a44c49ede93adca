"""The test of a combiner: it is one function, and has the second derivative that a hypergradient takes of it.

A hypergradient is d_phi <a, J v> with a = d_l g_phi. Of a function whose backward has no derivative (once-differentiable, or numbers that
autograd doesn't see) torch gives zeros there in silence. Two differences judge it: of a in phi, and of d_phi g in l, which is the same by
the symmetry of second derivatives. Where they agree with each other, autograd has to agree with them. They differ where a detach or a
straight-through estimate is meant, at a kink, and by rounding: nobody can tell then.

Rounding is seen by a copy in float64: a layer norm over tokens of 1 and of 1e7 cancels all that single precision keeps.
"""

from __future__ import annotations

import copy
from typing import Any, Callable, Optional, Sequence

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad.replayed import Replayed
from meltr_ray.hypergrad.structure import InvalidLosses, check_combined
from meltr_ray.hypergrad.trust import SEED

ALIKE, OFF = 0.05, 0.1
"""Relative errors: of the two differences beside each other, and of autograd beside them."""
NOISE = 100
"""Rounding errors of what is differenced, over its step, below which a derivative counts as none."""


def check_combiner_of(combiner: Any, l: Tensor, phi: Sequence[Tensor]) -> None:
    """All that is asked of g_phi at losses such as l (T,); it is left as it was. A dozen passes through it.

    Raises:
        InvalidLosses: it doesn't take them, two calls differ, it can't be differentiated twice, or its second derivative is wrong.
    """
    g = Replayed(combiner, without_trace=True)
    check_combined(g, l, phi)
    check_one_function(g, l)
    check_second_derivative(g, l, [p for p in phi if p.requires_grad and p.numel()])
    check_rounding(combiner, l)


def check_second_derivative(g: Replayed, l: Tensor, trained: Sequence[Tensor]) -> None:
    """Along one random direction of phi and one of l.

    Raises:
        InvalidLosses: it can't be taken, or is wrong.
    """
    if not trained:
        return
    generator = torch.Generator().manual_seed(SEED)

    def like(x: Tensor) -> Tensor:
        drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        return drawn * max(float(x.detach().double().square().mean().sqrt()), 1e-3)

    z, q = like(l), [like(p) for p in trained]
    step = torch.finfo(l.dtype).eps ** (1 / 3)

    def slopes(at: Tensor, graph: bool = False) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(g(at), at, create_graph=graph)[0]

    def along_phi(at: Tensor) -> Tensor:
        value = g(at.detach())
        return (
            _inner(torch.autograd.grad(value, trained, allow_unused=True, materialize_grads=True), q) if value.requires_grad else 0 * z[0]
        )

    try:
        with torch.enable_grad():
            a = slopes(l, graph=True)
            if not a.requires_grad and not g(l.detach()).requires_grad:
                raise InvalidLosses(
                    "combiner: what it gives doesn't depend on its parameters; compute with them as tensors, without detach or float()"
                )
            exact = torch.zeros_like(z[0])
            if a.requires_grad:
                exact = _inner(torch.autograd.grad(a @ z, trained, allow_unused=True, materialize_grads=True), q)
            in_l = _central(lambda eps: along_phi(l + eps * z), step)
            in_phi = _central(lambda eps: _moved(trained, q, eps, lambda: slopes(l) @ z), step)
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise InvalidLosses(
            f"combiner: it can't be differentiated twice ({reason[:90]}); leave it uncompiled, without changes in place"
        ) from error
    size = max(abs(in_l[0]), abs(in_phi[0]))
    noise = NOISE * torch.finfo(l.dtype).eps / step * max(in_l[1], in_phi[1])
    if not size > noise or abs(in_l[0] - in_phi[0]) > ALIKE * size:
        return
    if abs(float(exact) - in_phi[0]) > OFF * size + noise:
        raise InvalidLosses("combiner: the derivative of its slopes in its parameters isn't that of their values (a backward without a derivative of its own); "
                            "write it with torch's operators, or a backward that can be differentiated")  # fmt: skip


def check_rounding(combiner: Any, l: Tensor) -> None:
    """What it trains on, where every loss changes by some percent: beside the same of a copy in float64.

    A combiner that can't be copied, or computes in one type only, isn't tested.

    Raises:
        InvalidLosses: most of it is rounding.
    """
    if not isinstance(combiner, nn.Module) or l.dtype == torch.float64:
        return
    own, exact = _mixed_of_copy(combiner, l, l.dtype), _mixed_of_copy(combiner, l, torch.float64)
    if own is None or exact is None:
        return
    error, size = float((own - exact).norm()), float(exact.norm())
    if size > 0 and not error <= OFF * size:
        sizes = l.detach().abs()
        raise InvalidLosses(
            f"combiner: at losses of {float(sizes.min()):.3g} to {float(sizes.max()):.3g} the derivative of its slopes is off by {error / size:.0%} through rounding; "
            "bring the losses to one size, or take MELTR's inputs=log"
        )


def _mixed_of_copy(combiner: nn.Module, l: Tensor, dtype: torch.dtype) -> Optional[Tensor]:
    """d_phi <d_l g, z>, z the losses times random numbers, of a copy in evaluation mode: flat, in float64; None where it can't be had."""
    try:
        twin = copy.deepcopy(combiner).to(dtype).eval()
        phi = [p for p in twin.parameters() if p.requires_grad]
        at = l.detach().to(dtype).requires_grad_()
        z = at.detach() * torch.randn(l.shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64).to(at)
        with torch.enable_grad():
            (a,) = torch.autograd.grad(twin(at), at, create_graph=True)
            mixed = torch.autograd.grad(a @ z, phi, allow_unused=True, materialize_grads=True)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None
    return torch.cat([m.double().flatten() for m in mixed])


def check_one_function(g: Replayed, l: Tensor) -> None:
    """Raises InvalidLosses: two calls with the same losses and masks give two values."""
    with torch.no_grad():
        first, second = (g(l.detach().clone()) for _ in range(2))
    if not torch.allclose(first, second, rtol=64 * torch.finfo(l.dtype).eps, atol=0.0, equal_nan=True):
        raise InvalidLosses("combiner: two calls with the same losses differ; use torch's own generator for all randomness")


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b)]).sum()


def _central(value_at: Callable[[float], Tensor], step: float) -> tuple[float, float]:
    """The derivative at 0, and the size of what is differenced."""
    ahead, behind = float(value_at(step)), float(value_at(-step))
    return (ahead - behind) / (2 * step), max(abs(ahead), abs(behind))


def _moved(phi: Sequence[Tensor], q: Sequence[Tensor], eps: float, value: Callable[[], Tensor]) -> Tensor:
    """`value` at phi + eps q; phi is the same tensors before and after."""
    held = [p.data for p in phi]
    try:
        for p, piece in zip(phi, q):
            p.data = p.data + eps * piece
        return value()
    finally:
        for p, here in zip(phi, held):
            p.data = here
