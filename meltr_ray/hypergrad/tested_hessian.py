"""The test of H u: exact products, of autograd's second derivatives, and differences of gradients judge each other.

An exact product is right where it agrees with a central difference. Where it doesn't, and differences of two lengths agree with each
other, it is wrong. Where these don't agree either (a unit that switches, or rounding), it is right if it is symmetric. Where no exact
one is to be had (ZeRO 3), differences are right if two lengths agree.
"""

from __future__ import annotations

from typing import Callable, Optional

import torch

from meltr_ray.hypergrad.products import Choice, NotAdmitted, tell
from meltr_ray.hypergrad.trust import ALLOWED_IN_HALF, Trust, allowed
from meltr_ray.hypergrad.vectors import Vector

SYMMETRIC = {torch.float64: 1e-4, torch.float32: 3e-3}
"""`asymmetry` up to which an exact H u counts as symmetric."""
EXACT = ("double_backward", "forward_over_reverse")

Product = Callable[[str, float, Vector], Vector]
"""(name, radius, u) -> H u; radius 0: the product's own."""


def settle_hessian(trust: Trust, choice: Choice, product: Product, gradient: Callable[[], Vector], u: Vector, random: Vector,
                   radius: float, chosen: Optional[float], arithmetic: torch.dtype, whole: bool) -> None:  # fmt: skip
    """Test the candidates for H u along one direction, that of u and `random`.

    Args:
        gradient: d_w L.
        radius: length of a central difference.
        chosen: the length that somebody has chosen for differences.
        whole: whether exact products can be had.

    Raises:
        NotAdmitted: none is left, or the gradient isn't that of the losses, so that there is no H.
    """
    if trust.is_settled(choice):
        return
    if not trust.verdict.follows:
        raise NotAdmitted(f"{choice.option}={choice.name}: the gradient of the losses isn't that of their values (a detach, or a backward of its own), "
                          "so H isn't defined; use Identity() or LossSpace(), or trust=True")  # fmt: skip
    direction, within = (1 / (u.norm() or 1.0)) * u + (1 / random.norm()) * random, allowed(choice, arithmetic, chosen)
    families = Families(product, direction, gradient().norm(), radius, arithmetic, within)

    def test(name: str) -> Optional[str]:
        if whole and name in EXACT:
            return families.fault_of_exact(name)
        return families.fault_of_difference(name, EXACT if whole else (), choice.is_auto)

    trust.settle(choice, test)
    tell(f"{choice.option}={choice.name}: {choice.candidates[0]} has passed the test of this model")


class Families:
    """H u along one direction by either family; an exact one is taken when it is first asked for.

    Args:
        length: |d_w L|.
        within: relative error that a difference may have.
    """

    def __init__(self, product: Product, direction: Vector, length: float, radius: float, arithmetic: torch.dtype, within: float):
        self.product, self.direction, self.arithmetic, self.within = product, direction, arithmetic, within
        self.near, self.further = (product("central", r, direction) for r in (radius, 3 * radius))
        self.noise = 8 * torch.finfo(self.near.pieces[0].dtype).eps * length * direction.norm() / radius
        self.room = max(within, 0.1 if arithmetic != torch.float64 else 1e-3)
        self.smooth = self.agree(self.near, self.further)
        self._exact: dict[str, Vector | NotAdmitted] = {}

    def agree(self, a: Vector, b: Vector) -> bool:
        return (a - b).norm() <= self.room * max(a.norm(), b.norm()) + self.noise

    def exact(self, name: str) -> Vector | NotAdmitted:
        if name not in self._exact:
            self._exact[name] = self._taken(name)
        return self._exact[name]

    def _taken(self, name: str) -> Vector | NotAdmitted:
        try:
            found = self.product(name, 0.0, self.direction)
        except NotAdmitted as refusal:
            return refusal
        if all(bool(piece.isfinite().all()) for piece in found.pieces):
            return found
        return NotAdmitted(f"{name}: it isn't finite (no second derivative here, as of F.normalize at zeros)")

    def fault_of_exact(self, name: str) -> Optional[str]:
        """Why it is wrong, or None. Raises NotAdmitted: it can't be had."""
        value = self.exact(name)
        if isinstance(value, NotAdmitted):
            raise value
        if self.agree(value, self.near) or self.agree(value, self.further):
            return None
        if self.smooth:
            return f"it is off by {apart(value, self.near):.0%} beside a difference (a backward without a derivative, or weights read past the module)"
        uneven = asymmetry(self.direction, value, self.product(name, 0.0, value))
        return "it isn't symmetric" if uneven > SYMMETRIC.get(self.arithmetic, ALLOWED_IN_HALF) else None

    def fault_of_difference(self, name: str, exact: tuple[str, ...], is_auto: bool) -> Optional[str]:
        """Why it is wrong, or None; one that is asked for by name may err by its rounding."""
        references = [value for each in exact if isinstance(value := self.exact(each), Vector)]
        own = self.product(name, 0.0, self.direction)
        if not references and self.smooth:
            return None
        if not references:
            return f"differences of two lengths are {apart(self.near, self.further):.0%} apart (rounding, or a unit that switches), and no exact product is to be had"
        bound, rounding = (self.within, 0.0) if is_auto else (self.room, self.noise)
        if any((own - value).norm() <= bound * max(value.norm(), own.norm()) + rounding for value in references):
            return None
        if self.smooth and not any(self.agree(value, self.near) for value in references) and self.agree(own, self.near):
            return None
        return f"it is off by {min(apart(own, value) for value in references):.0%} beside an exact product"


def apart(a: Vector, b: Vector) -> float:
    """|a - b| over the longer of both; 0 of two that are zero."""
    return (a - b).norm() / (max(a.norm(), b.norm()) or 1.0)


def asymmetry(u: Vector, H_u: Vector, H_H_u: Vector) -> float:
    """|<u, H H u> - |H u|^2| over |H u|^2, less what rounding may do: 0 of a symmetric H.

    An antisymmetric part of relative size a changes it by 2 a^2, or more, however many weights there are. <z, H u> - <u, H z> of two
    random directions is smaller by the root of their number (seen with a million weights and a = 1: 1e-3 of the norms).
    """
    square = H_u @ H_u
    rounding = 32 * torch.finfo(H_u.pieces[0].dtype).eps * H_H_u.norm() * u.norm()
    return max(0.0, abs(H_H_u @ u - square) - rounding) / square if square else 0.0
