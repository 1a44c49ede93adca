"""The test of J v: every way to take it beside <gradient of each loss, v>, and of what the losses are."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Iterator, Optional

import torch
from torch import Tensor

from meltr_ray.hypergrad.graph import graph_of
from meltr_ray.hypergrad.products import ROUNDING_UNITS, SPREAD, NotAdmitted, radius_of, tell
from meltr_ray.hypergrad.structure import InvalidLosses, check_values
from meltr_ray.hypergrad.trust import SEED, allowed, far
from meltr_ray.hypergrad.vectors import Vector

MANY = 10_000
"""Weights from which a random direction needs the longer move of `spread_difference`."""
ROOM = 0.01
"""Relative error beside a difference, of two lengths alike, from which the gradient isn't that of the losses."""
DIFFERENCES = ("one_sided", "central")
ROUNDING = 0.5
"""Relative error up to which a difference that is asked for by name, or the only product left, is taken to err by its rounding and its length,
if the gradient is that of the losses: said in the log, not refused."""


def settle_losses(problem: Any, v: Vector) -> None:
    """Test the candidates for J v of a `LossesProblem` along v and along a random direction.

    Passes, M micro-batches: 7 M forward and M T backward, and those of the products that are tried, twice each.

    Raises:
        ValueError: two passes at the same w differ.
        InvalidLosses: a loss is finite and its gradient isn't.
        NotAdmitted: the product that was asked for by name is wrong here.
    """
    choice, trust = problem.jvp_choice, problem.trust
    if trust.is_settled(choice):
        return
    look(problem)
    if trust.is_settled(choice):
        return
    l = _own(problem, check_repeatable(problem, v))
    z = problem.random(SEED)
    along_v, along_z, norms = slopes_along(problem, v, z)
    spread, within = sum(piece.numel() for piece in z.pieces) > MANY, 1.5 * problem.accuracy
    if not choice.is_auto:
        within = allowed(choice, problem.arithmetic, problem.radius)
    scale_v = max(float(along_v.norm()), 0.01 * float(norms.norm()) * v.norm())

    def off(name: str) -> float:
        error_z = _own(problem, problem.jvp(z, name, spread=spread)).double() - along_z  # a gradient's product with z is about its length
        certain = (error_z.abs() - _rounding(problem, name, l, z, spread)).clamp(min=0)  # a loss that hardly changes shows nothing else
        each = (certain / norms)[norms > 0] if choice.is_auto else error_z.norm().reshape(1) / norms.norm()
        worst = float(each.max()) if len(each) else 0.0
        return max(far(_own(problem, problem.jvp(v, name)), along_v, scale_v), worst / (5 if name in DIFFERENCES else 1))

    def test(name: str) -> Optional[str]:
        if name == "gradients":
            return None
        error = off(name)
        if within < error <= ROUNDING and name in DIFFERENCES and trust.verdict.follows and len(choice.candidates) == 1:
            tell(f"{choice.option}={choice.name}: {name} is off by {error:.0%} here beside the gradients that training follows")
            return None
        return None if error <= within else f"it is off by {error:.0%} beside the gradients that training follows"

    follows = _follows(problem, v, along_v, scale_v), _follows(problem, z, along_z, float(norms.norm()))
    trust.verdict.follows = on_all_ranks(problem, all(follows))
    trust.settle(choice, alike(problem, test))
    tell(f"product={choice.name}: {choice.candidates[0]} has passed the test of this model")


def look(problem: Any) -> None:
    """A forward pass that tells which verdict these losses have."""

    def signature() -> int:
        return problem.joint(graph_of([problem.checked(problem.weights.forward(forward)) for forward in problem.forwards]).signature)

    with problem.replay():
        problem.trust.look(signature, (problem.jvp_choice, problem.hvp_choice))


def on_all_ranks(problem: Any, holds: bool) -> bool:
    """Whether it holds on every rank; a collective of one number."""
    (failing,) = problem.average([torch.tensor([float(not holds)], device=problem.weights.device)])
    return bool(failing == 0)


def alike(problem: Any, test: Callable[[str], Optional[str]]) -> Callable[[str], Optional[str]]:
    """`test`, whose verdict is that of all ranks: what is wrong for the losses of one of them is struck off by each."""

    def tested(name: str) -> Optional[str]:
        refusal = None
        try:
            reason = test(name)
        except NotAdmitted as error:
            reason, refusal = "", error
        if on_all_ranks(problem, reason is None):
            return None
        if refusal is not None:
            raise refusal
        return reason or "it is off beside the gradients that training follows on another rank"

    return tested


def check_repeatable(problem: Any, v: Vector) -> Tensor:
    """The losses, (M, T): two passes at the same w give the same, but for the order of sums on a GPU."""
    first, second = (problem.losses_along(v)(None) for _ in range(2))
    check_values(first)
    if not on_all_ranks(problem, torch.allclose(first, second, rtol=64 * torch.finfo(first.dtype).eps, atol=0.0, equal_nan=True)):
        raise ValueError("losses: two passes at the same weights differ; use one batch and torch's own generator for all randomness")
    return first


def slopes_along(problem: Any, v: Vector, z: Vector) -> tuple[Tensor, Tensor, Tensor]:
    """<gradient of each loss, v>, the same along z, and the gradients' norms: each (M, T), or (1, T) of means in shards."""
    rows: Iterable[Iterable[Vector]] = gradients_of(problem) if problem.weights.whole else [problem.loss_gradients()]
    found = [[torch.cat([g.dots([v, z]), torch.tensor([g.norm()]).double()]) for g in row] for row in rows]
    stacked = torch.stack([torch.stack(row) for row in found]).to(problem.weights.device)
    for t in range(stacked.shape[1]):
        if not stacked[:, t].isfinite().all():
            raise InvalidLosses(
                f"losses: the gradient of loss {t} is not finite, though the loss is; mend that loss (a root or a quotient at 0)"
            )
    return stacked[..., 0], stacked[..., 1], stacked[..., 2]


def gradients_of(problem: Any) -> Iterator[Iterator[Vector]]:
    """Rows of gradients of this rank's own losses, micro-batch by micro-batch; a row is made while it is walked through."""
    weights = problem.weights

    def run() -> list[Tensor]:
        with problem.replay():
            return [problem.checked(weights.forward(forward)) for forward in problem.forwards]

    def gradient(m: int, l: Tensor, t: int) -> Vector:
        if not l.requires_grad:
            return Vector(tuple(torch.zeros_like(p) for p in weights.parameters))
        try:
            return Vector(weights.differentiate(l[t], retain_graph=True))
        except RuntimeError as error:
            if "retain_graph" not in str(error):
                raise
            return Vector(weights.differentiate(run()[m][t]))  # a compiled model admits one backward a forward

    return ((gradient(m, l, t) for t in range(len(l))) for m, l in enumerate(run()))


def by_gradients(problem: Any, v: Vector) -> Tensor:
    """J v, (M, T), a backward pass for each loss."""
    rows = [[g.dots([v])[0] for g in row] for row in gradients_of(problem)]
    return torch.stack([torch.stack(row) for row in rows]).to(problem.weights.device, problem.weights.dtype)


def _own(problem: Any, J_v: Tensor) -> Tensor:
    """J v as `slopes_along` has it."""
    return J_v if problem.weights.whole else problem.average([J_v.mean(0, keepdim=True)])[0]


def _rounding(problem: Any, name: str, l: Tensor, z: Vector, spread: bool) -> Tensor | float:
    """By how much a difference along z may be off for each of the losses l by the rounding of its two values; like l."""
    if name not in DIFFERENCES:
        return 0.0
    dtype = problem.weights.dtype
    step = SPREAD * radius_of(name, dtype) if spread else (problem.radius or problem.weights.radius_of(name)) / z.norm()
    width = step * (2 if name == "central" else 1)
    return l.abs().double() * 2 * ROUNDING_UNITS * torch.finfo(dtype).eps / width


def _follows(problem: Any, v: Vector, along_v: Tensor, scale: float) -> bool:
    """Whether differences of the losses are their gradients' products.

    Nobody can tell where two lengths of a difference disagree, nor where a kink, such as that of a ReLU, lies right at w: there
    central differences of any length agree on half of the jump, and the gradient is that of one side.
    """
    if v.norm() == 0:
        return True
    radius = problem.weights.radius_of("central")
    near, further = (_difference(problem, v, "central", length) for length in (radius, 3 * radius))
    if min(far(each, along_v, scale) for each in (near, further)) <= ROOM or far(near, further, scale) > 0.3 * far(near, along_v, scale):
        return True
    sides = []
    for sign in (1.0, -1.0):
        short, long = (sign * _difference(problem, sign * v, "one_sided", length) for length in (radius, 2 * radius))
        sides.append(2 * short - long - along_v)  # without the curvature of that side
    return float(torch.minimum(*(side.double().abs() for side in sides)).norm()) <= ROOM * scale


def _difference(problem: Any, v: Vector, name: str, radius: float) -> Tensor:
    """J v by a difference of that length, as `slopes_along` has it."""
    kept = problem.radius
    problem.radius = radius
    try:
        return _own(problem, problem.jvp(v, name))
    finally:
        problem.radius = kept
