"""The test of a mixed product d_phi <d_w L, v>: beside a difference, in phi, of the gradient that training follows."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Optional, Sequence

import torch
from torch import Tensor

from meltr_ray.hypergrad.products import radius_of, tell
from meltr_ray.hypergrad.trust import SEED, allowed
from meltr_ray.hypergrad.vectors import Vector

DIRECTIONS = 2


def settle_mixed(problem: Any, v: Vector) -> None:
    """Test the candidates for the mixed product of a `BilevelProblem` along random directions of phi.

    Passes: 9 forward and backward, and those of the products that are tried.

    Raises:
        ValueError: two passes at the same w and phi differ.
        NotAdmitted: no product is right, or the one that was asked for by name is wrong.
    """
    choice, trust = problem.choice, problem.trust
    if trust.is_settled(choice):
        return
    problem.look()
    if trust.is_settled(choice):
        return
    g = problem.gradient()
    again = problem.gradient()
    if (again - g).norm() > 1e3 * torch.finfo(problem.weights.dtype).eps * g.norm():
        raise ValueError("inner: two passes at the same weights differ; use one batch and torch's own generator for all randomness")
    size = torch.stack([p.detach().norm() for p in problem.phi]).norm().item()
    step = radius_of("central", problem.weights.dtype) * max(1.0, size)
    noise = 16 * torch.finfo(problem.weights.dtype).eps * g.norm() * v.norm() / step

    def along(x: Sequence[Tensor], step: float) -> float:
        ends = []
        for side in (step, -step):
            with moved_along(problem.phi, x, side):
                ends.append(problem.gradient() @ v)
        return (ends[0] - ends[1]) / (2 * step)

    found = [(x, along(x, step), along(x, 3 * step)) for x in (random_unit(problem.phi, number) for number in range(DIRECTIONS))]
    within = max(allowed(choice, problem.weights.dtype, problem.radius), 1e-2)

    def test(name: str) -> Optional[str]:
        mixed, errors = problem.mixed_by(name, v), []
        for x, near, further in found:
            own = float(sum((m.double() * piece.double()).sum() for m, piece in zip(mixed, x)))
            scale = max(abs(near), abs(own))
            certain = abs(near - further) <= 0.3 * scale + noise
            if certain and min(abs(own - near), abs(own - further)) > within * scale + noise:
                errors.append(abs(own - near) / scale)
        return f"it is off by {max(errors):.0%} beside the gradients that training follows" if errors else None

    trust.settle(choice, test)
    tell(f"product={choice.name}: {choice.candidates[0]} has passed the test of this model")


def follows_values(problem: Any, u: Vector) -> bool:
    """Whether <d_w L, u> is the derivative of L along u; where two lengths of a difference disagree, nobody can tell."""
    own, length = problem.gradient() @ u, u.norm()
    if length == 0:
        return True
    found = []
    for radius in (problem.weights.radius_of("central"), 3 * problem.weights.radius_of("central")):
        eps = radius / length
        found.append((problem.value_at(u, eps) - problem.value_at(u, -eps)) / (2 * eps))
    noise = 16 * torch.finfo(problem.weights.dtype).eps * abs(problem.value_at(u, 0.0)) / eps
    scale = max(abs(own), *map(abs, found))
    return min(abs(own - each) for each in found) <= 0.1 * scale + noise or abs(found[0] - found[1]) > 0.1 * scale + noise


@contextmanager
def moved_along(phi: Sequence[Tensor], x: Sequence[Tensor], step: float) -> Iterator[None]:
    """phi + step x inside; phi outside."""
    held = [p.data for p in phi]
    try:
        for p, piece in zip(phi, x):
            p.data = p.data + step * piece
        yield
    finally:
        for p, here in zip(phi, held):
            p.data = here


def random_unit(phi: Sequence[Tensor], number: int = 0) -> list[Tensor]:
    """A direction of length 1, the same for the same number."""
    generator = torch.Generator().manual_seed(SEED + number)
    x = [torch.randn(p.shape, generator=generator).to(p) for p in phi]
    length = torch.stack([piece.norm() for piece in x]).norm()
    return [piece / length for piece in x]
