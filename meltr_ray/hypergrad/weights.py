"""The weights w of a module, as the passes of a meta step use them: differentiated, moved along v, or given a tangent.

All of it leaves w, the buffers, the generators and each module's mode (training, evaluation) as they were, also when a pass raises:
w is swapped for moved copies and never added to and subtracted from.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from meltr_ray.hypergrad.generators import get_generators, set_generators
from meltr_ray.hypergrad.products import NotAdmitted, radius_of
from meltr_ray.hypergrad.vectors import Vector, is_nothing, nothing_like

REENTRANT = "checkpoint(use_reentrant=True): it admits no gradient of a meta step; use use_reentrant=False"
FEW = 100_000
FULL_SUM = 100_000
"""Weights up to which a change of any of them is seen; of more, every `numel // FULL_SUM`-th is looked at."""
Buffers = Mapping[tuple[nn.Module, str], Tensor]
"""Values by owner and name."""
ROUNDED = 60
"""Moves of a difference are longer than so many rounding errors of w, of half a unit each: an error of half a per cent."""


class ModuleWeights:
    """Parameters that require a gradient, of a module that this process holds whole.

    Args:
        module: its parameters are w; others stay as they are.
        average: mean of tensors over ranks; None in a single process.
        without: parameters that aren't w, though they require a gradient.

    Raises:
        ValueError: no parameter requires a gradient, or one is of complex numbers or stands for several in the same memory.
    """

    whole = True
    """Whether a pass sees all weights at once, which second derivatives and tangents need."""

    def __init__(
        self, module: nn.Module, average: Callable[[Sequence[Tensor]], list[Tensor]] | None = None, without: Sequence[Tensor] = ()
    ):
        if not isinstance(module, nn.Module):
            raise ValueError(f"module: a {type(module).__name__}; give the torch module whose parameters are trained")
        apart = {id(p) for p in without}
        named = {name: p for name, p in module.named_parameters() if p.requires_grad and id(p) not in apart}
        if not named:
            raise ValueError("module: none of its parameters requires a gradient; unfreeze those that are trained")
        for name, p in named.items():
            if p.is_complex():
                raise ValueError(f"module: {name} is of complex numbers; keep torch.view_as_real of it as the weight")
            if p.numel() > 1 and any(n > 1 and not step for n, step in zip(p.shape, p.stride())):
                raise ValueError(f"module: {name} is expanded, so that its entries share memory; give the tensor that it is expanded from")
        self.module, self.names = module, list(named)
        self.parameters: list[Tensor] = list(named.values())
        self.average = average or list
        self.device, self.dtype = self.parameters[0].device, self.parameters[0].dtype
        self.is_moved = self.is_tested = False
        self.passes: Counter[str] = Counter()
        """Forward and backward passes so far, without those of tests."""
        self.tests: Counter[str] = Counter()
        """Forward and backward passes of tests, once a module."""
        self._length: tuple[list[int], float] | None = None

    @property
    def few(self) -> bool:
        """So few weights that a pass costs more in launching its operators than in arithmetic."""
        return sum(p.numel() for p in self.parameters) <= FEW

    def versions(self) -> list[Any]:
        """Changes whenever an optimiser has changed w: a fused one, and one that writes `p.data`, leave torch's own counters alone."""
        every = max(1, sum(p.numel() for p in self.parameters) // FULL_SUM)
        with torch.no_grad():
            looked_at = [p.reshape(-1)[::every] for p in self.parameters]
            sums = torch.stack([x.sum() for x in looked_at] + list(torch._foreach_norm(looked_at)))
        return [p._version for p in self.parameters] + [p.data_ptr() for p in self.parameters] + sums.tolist()

    def radius_of(self, product: str) -> float:
        """Length of a difference's move: by the rule of products.py, but not below what the rounding of w allows."""
        if not self.whole:
            return radius_of(product, self.dtype)
        versions = [p._version for p in self.parameters]
        if self._length is None or self._length[0] != versions:
            self._length = versions, float(torch.stack(torch._foreach_norm([p.data for p in self.parameters])).double().norm())
        return max(radius_of(product, self.dtype), ROUNDED * 0.5 * torch.finfo(self.dtype).eps * self._length[1])

    @contextmanager
    def testing(self) -> Iterator[None]:
        """Passes inside count as those of tests, and are watched."""
        before, self.is_tested = self.passes.copy(), True
        try:
            yield
        finally:
            self.is_tested = False
            self.tests += self.passes - before
            self.passes.clear()
            self.passes.update(before)

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        """Run and count a forward pass."""
        self.passes["forward"] += 1
        return function()

    def differentiate(self, value: Tensor, also: Sequence[Tensor] = (), **options: Any) -> tuple[Tensor, ...]:
        """d value / d w, of this rank alone, and d value / d `also`; zero where `value` doesn't depend on one.

        Raises:
            ValueError: `value` depends on none.
        """
        if not isinstance(value, Tensor):
            raise ValueError(f"losses: a {type(value).__name__}; return a tensor")
        if not value.requires_grad:
            raise ValueError("losses: one doesn't depend on the module's weights; compute it with the module, without no_grad or detach")
        self.passes["backward"] += 1
        try:
            found = torch.autograd.grad(value, [*self.parameters, *also], allow_unused=True, **options)
        except RuntimeError as error:
            if "incompatible with .grad()" in str(error):
                raise NotAdmitted(REENTRANT) from error
            frozen = [name for name, p in zip(self.names, self.parameters) if not p.requires_grad]
            if not frozen:
                raise
            raise ValueError(f"module: {frozen[0]} has been frozen since the problem was made, or by a pass; make another problem, "
                             "or let each pass leave requires_grad as it was") from error  # fmt: skip
        for name, g in zip(self.names, found):
            if g is not None and g.layout is not torch.strided:
                raise ValueError(f"module: {name} has a sparse gradient; make its layer with sparse=False")
        whole = [torch.zeros_like(x) if g is None else g for x, g in zip(also, found[len(self.parameters) :])]
        return (*(nothing_like(p) if g is None else g for p, g in zip(self.parameters, found)), *whole)

    def gradient(self, values: Sequence[Callable[[], Tensor]]) -> Vector:
        """d_w of the mean of `values`, mean over ranks; each runs a forward pass, so that one graph lives at a time."""
        total = self.differentiate(values[0]())
        for value in values[1:]:
            total = torch._foreach_add(total, self.differentiate(value()))
        return self.vector(total if len(values) == 1 else torch._foreach_div(total, len(values)))

    def vector(self, pieces: Sequence[Tensor]) -> Vector:
        """Mean over ranks of pieces that each rank has for itself."""
        return self.hold(self.average(pieces))

    def hold(self, pieces: Sequence[Tensor]) -> Vector:
        """A vector of pieces that are alike on every rank, or this rank's shards."""
        return Vector(tuple(pieces))

    def random(self, seed: int) -> Vector:
        """A vector of independent standard normal entries, the same for the same seed."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return self.hold([torch.randn(p.shape, generator=generator, device=self.device, dtype=p.dtype) for p in self.parameters])

    @contextmanager
    def moved(self, v: Vector | None, eps: float, consume: bool = False) -> Iterator[None]:
        """w + eps v inside; w outside. None: w itself, without the autocast that a difference can't stand.

        `consume`: the moved weights take the place of v, which is lost: no memory, and less time where memory is slow to get.
        """
        held = [p.data for p in self.parameters]
        self.is_moved = True
        torch.clear_autocast_cache()  # else half-precision copies of the weights would hide the move
        try:
            if v is not None:
                reached = [(p, piece) for p, piece in zip(self.parameters, v.pieces) if not is_nothing(piece)]
                parameters, pieces = zip(*reached) if reached else ((), ())
                for p, there in zip(parameters, _sum([p.data for p in parameters], pieces, eps, consume)):
                    p.data = there
            with torch.autocast(self.device.type, enabled=False), self.watched():
                yield
        finally:
            self.is_moved = False
            torch.clear_autocast_cache()
            for p, here in zip(self.parameters, held):
                p.data = here

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raises ValueError: a pass inside changes parameters, moved weights or frozen ones; looked for in tests alone."""
        named = dict(self.module.named_parameters()) if self.is_tested else {}
        before = [_print_of(p) for p in named.values()]
        yield
        for (name, p), was in zip(named.items(), before):
            if not torch.equal(was, _print_of(p)):
                buffer = "" if p.requires_grad else ", or keep it as a buffer, which every pass finds as it was"
                raise ValueError(f"losses: a pass changes the module's {name}; change it after the optimiser's step{buffer}")

    def along(self, v: Vector, function: Callable[[list[Tensor]], Any], with_graph: bool = False) -> Any:
        """`function` of w as dual numbers w + eps v; use `tangent` on what it computes (forward-mode differentiation)."""
        # torch's fused attention has no forward-mode formula, its plain form has
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(with_graph):
            duals = [forward_ad.make_dual(p.detach().requires_grad_(with_graph), t) for p, t in zip(self.parameters, v.pieces)]
            return self.swapped(duals, function)

    def swapped(self, tensors: list[Tensor], function: Callable[[list[Tensor]], Any]) -> Any:
        """`function` of `tensors`, which stand in the place of w meanwhile.

        Each place is named once: of a module that is registered twice torch would put the stand-ins back for the weights.
        """
        stand_in = {id(p): tensor for p, tensor in zip(self.parameters, tensors)}
        named = {f"module.{prefix + '.' if prefix else ''}{name}": stand_in[id(p)] for prefix, owner in self.module.named_modules()
                 for name, p in owner._parameters.items() if id(p) in stand_in}  # fmt: skip
        return functional_call(Run(self.module), named, (function, tensors), tie_weights=False)

    @contextmanager
    def replayed(self, states: dict[str, Tensor], start: Buffers = MappingProxyType({})) -> Iterator[None]:
        """Generators at `states` and a copy of the buffers inside, those in `start` with the values there; outside as they were."""
        now = get_generators(self.device)
        modules = list(self.module.modules())
        modes = [m.training for m in modules]
        buffers = [(m, name, b) for m in modules for name, b in m._buffers.items() if b is not None]
        try:
            set_generators(states, self.device)
            for owner, name, buffer in buffers:
                owner._buffers[name] = start.get((owner, name), buffer).clone()
            yield
        finally:
            for owner, name, buffer in buffers:
                owner._buffers[name] = buffer
            for m, mode in zip(modules, modes):
                m.training = mode
            set_generators(now, self.device)

    @contextmanager
    def kept_on_error(self) -> Iterator[Buffers]:
        """Generators and buffers move on inside, as in training; if that raises they are put back. Gives the buffers of before."""
        now = get_generators(self.device)
        held = [(m, name, b, b.clone()) for m in self.module.modules() for name, b in m._buffers.items() if b is not None]
        try:
            yield {(owner, name): copy for owner, name, _, copy in held}
        except BaseException:
            set_generators(now, self.device)
            for owner, name, buffer, copy in held:
                owner._buffers[name] = buffer
                buffer.data.copy_(copy)
            raise


def _print_of(p: Tensor) -> Tensor:
    """Two numbers that change with p; of a large one, with every `numel // FULL_SUM`-th entry."""
    with torch.no_grad():
        x = (torch.view_as_real(p) if p.is_complex() else p).reshape(-1)
        x = x[:: max(1, x.numel() // FULL_SUM)].double()
        return torch.stack([x.sum(), x.abs().sum()]).nan_to_num()


def tangent(x: Tensor) -> Tensor:
    """Derivative that a dual number carries; zero for one that depends on no weight."""
    found = forward_ad.unpack_dual(x).tangent
    return torch.zeros_like(x) if found is None else found


def _sum(w: list[Tensor], v: tuple[Tensor, ...], eps: float, in_place_of_v: bool) -> Sequence[Tensor]:
    """w + eps v, in v's memory where that is allowed and no other piece lies there: autograd may give two weights one gradient."""
    if not in_place_of_v:
        return torch._foreach_add(w, v, alpha=eps)
    uses = Counter(piece.data_ptr() for piece in v)
    return [torch.add(x, piece, alpha=eps, out=piece) if piece.is_contiguous() and uses[piece.data_ptr()] == 1
            else torch.add(x, piece, alpha=eps) for x, piece in zip(w, v)]  # fmt: skip


class Run(nn.Module):
    """Runs a function while `functional_call` has other tensors in place of the module's parameters."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, function: Callable[[list[Tensor]], Any], tensors: list[Tensor]) -> Any:
        return function(tensors)
