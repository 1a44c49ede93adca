"""The hypergradient through training: exact reverse mode through K steps of AdamW as it was run, for small modules; an oracle.

Legend: w weights, m and v Adam's moments, K steps, a slopes (T,), phi parameters of a combiner g_phi, F outer loss. With
s_k = (w_k, m_k, v_k), s_{k+1} = step(s_k, d_w g_phi(l_k(w_k)), k) (adam_rule.py), it is d F(w_K) / d phi, phi the same in every step.

Source: reverse mode through training, Maclaurin et al. 2015 (arXiv 1502.03492); through Adam, with checkpoints, Engstrom et al. 2025
(2503.13751). Differs from the latter in that there is one level of checkpoints, whose segments are run twice, and no tree of them.
"""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Callable, Iterator, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from meltr_ray.errors import check
from meltr_ray.hypergrad.adam_rule import AdamRule, AdamState
from meltr_ray.hypergrad.arguments import check_count, check_kind, check_number, check_passes
from meltr_ray.hypergrad.generators import get_generators, set_generators
from meltr_ray.hypergrad.graph_bytes import GraphBytes
from meltr_ray.hypergrad.module_problem import ModuleProblem
from meltr_ray.hypergrad.products import NotAdmitted
from meltr_ray.hypergrad.tested import look
from meltr_ray.hypergrad.trust import SEED
from meltr_ray.hypergrad.weights import ModuleWeights, Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingGradient:
    """What training came to, and its derivative."""

    gradient: list[Tensor]
    """d F(w_K) / d phi, one tensor a parameter; of slopes one tensor, of their shape."""
    value: float
    """F(w_K)."""
    weights: list[Tensor]
    """w_K, in the order of the module's parameters that require a gradient."""
    num_bytes: int
    """Memory that was foreseen."""


def training_gradient(module: nn.Module, losses: Callable[[int], Tensor], primary: Callable[[], Tensor], combine: nn.Module | Tensor,
                      rule: AdamRule, steps: int, segments: int = 1, max_bytes: Optional[int] = None,
                      trust: bool = False) -> TrainingGradient:  # fmt: skip
    """d F(w_K) / d phi through `steps` steps of training from the module's weights, which stay as they are.

    The generators run on from step to step, as in training, so each step draws its own masks; afterwards they and the buffers stand as before.
    Buffers are constants: what a running mean passes on of w is left out. Attention takes its plain form. Before it starts one step is
    rehearsed, which says what memory all of them will take.

    Args:
        losses: forward pass of step k, counted from 0: k -> (T,), or (M, T) for M micro-batches, of which the step takes the mean. It is
            asked for a step several times, and has to give the same for the same weights and masks.
        primary: forward pass on the held-out batch, () -> scalar F, at the end; it is for the caller to switch dropout off in it.
        combine: combiner g_phi, (T,) -> scalar, whose dropout draws after the losses; or slopes (T,), alike in all steps, or (K, T).
        rule: AdamW, its moments, schedule and clip.
        steps: K, at least 1.
        segments: at most so many, of equal length. 1 keeps the graphs of all steps at once. More: only those of a segment's steps, and
            (w, m, v) at the start of each; all but the last segment are run twice. About sqrt(K) is usual, K takes the fewest graphs: one.
        max_bytes: most memory that it may take beside the module and the data; None: any.
        trust: leave out the test of the first step's second derivatives beside differences, once a module.

    Raises:
        NotAdmitted: autograd's second derivatives aren't those of the gradient that training follows.
        ValueError: steps or segments out of range, slopes or losses of another shape, F that depends on no weight, too much memory, or a
            derivative that isn't finite.
    """
    check_passes("losses", [losses])
    check_passes("primary", [primary])
    check_count("steps", steps, mend="with none, phi has no effect")
    check_count("segments", segments)
    check(segments <= steps, "segments", segments, f"must lie in 1 to steps={steps}; about its root is usual")
    if max_bytes is not None:
        check_number("max_bytes", max_bytes)
    check_kind("rule", rule, AdamRule, "make one by AdamRule.of(optimizer, parameters)")
    if not isinstance(combine, nn.Module):
        check_kind("combine", combine, Tensor, "give slopes as a tensor, or a combiner")
    training = _Training(module, losses, primary, combine, rule, steps)
    with training.put_back_after():
        num_bytes = training.check_bytes(segments, max_bytes)
        if not trust:
            training.check_second_derivatives()
        found = training.gradient(segments, num_bytes)
    if not all(bool(g.isfinite().all()) for g in found.gradient):
        raise ValueError(
            f"gradient: isn't finite after {steps} steps; where weights and losses are finite, a loss has no second derivative at some "
            "example, as F.normalize at a vector of zeros; torch.autograd.set_detect_anomaly(True) names the operation"
        )
    return found


@dataclass(frozen=True)
class _Start:
    """All that a segment needs to be run again."""

    state: AdamState
    generators: dict[str, Tensor]
    buffers: list[Tensor]


class _Training:
    """K steps as a function."""

    def __init__(self, module: nn.Module, losses: Callable[[int], Tensor], primary: Callable[[], Tensor], combine: nn.Module | Tensor,
                 rule: AdamRule, steps: int):  # fmt: skip
        self.weights, self.runner = ModuleWeights(module), Run(module)
        self.losses, self.primary, self.rule, self.steps = losses, primary, rule, steps
        if isinstance(combine, Tensor):
            dtype = self.weights.dtype
            check(
                combine.dtype == dtype, "combine", f"slopes of {combine.dtype}", f"differ from the weights, {dtype}; give them in that type"
            )
            check(bool(combine.isfinite().all()), "combine", combine.tolist(), "has a slope that is no finite number; mend it")
        self.combine = combine.detach().clone().requires_grad_() if isinstance(combine, Tensor) else combine
        self.phi = [self.combine] if isinstance(self.combine, Tensor) else [p for p in self.combine.parameters() if p.requires_grad]
        if isinstance(combine, Tensor) and combine.dim() != 1 and not (combine.dim() == 2 and len(combine) == steps):
            raise ValueError(
                f"combine={tuple(combine.shape)}: must have a row for each of {steps} steps; give (T,) for slopes that are alike in all"
            )

    # --- forward

    def losses_of(self, number: int) -> Tensor:
        """(M, T)"""
        l = self.losses(number)
        if l.dim() not in (1, 2):
            raise ValueError(
                f"losses: shape {tuple(l.shape)}; return one vector (T,) with a number for each loss, or (M, T) for M micro-batches"
            )
        return l.view(-1, l.shape[-1])

    def inner(self, number: int) -> Tensor:
        """The training loss of step `number`."""
        rows = self.losses_of(number)
        if not isinstance(self.combine, Tensor):
            return torch.stack([self.combine(row) for row in rows]).mean()
        a = self.combine if self.combine.dim() == 1 else self.combine[number]
        if len(a) != rows.shape[1]:
            raise ValueError(
                f"combine={tuple(self.combine.shape)}: has slopes of {len(a)} losses, and there are {rows.shape[1]}; give one for each"
            )
        return (rows @ a).mean()

    def at(self, w: Sequence[Tensor], function: Callable[[], Tensor]) -> Tensor:
        """`function` with w in place of the module's weights."""
        named = {f"module.{name}": tensor for name, tensor in zip(self.weights.names, w)}
        return functional_call(self.runner, named, (lambda tensors: function(), list(w)))

    def step(self, state: AdamState, number: int, with_graph: bool) -> AdamState:
        start = state if with_graph else state.leaves()
        value = self.at(start.w, lambda: self.inner(number))
        gradients = torch.autograd.grad(value, start.w, create_graph=with_graph, allow_unused=True) if value.requires_grad else [None]
        if all(g is None for g in gradients):
            raise ValueError(
                f"losses: those of step {number} don't depend on the module's weights; compute them with the module, without no_grad or detach"
            )
        with nullcontext() if with_graph else torch.no_grad():
            return self.rule.step(start, gradients, number)

    def run(self, state: AdamState, numbers: range, with_graph: bool) -> AdamState:
        for number in numbers:
            state = self.step(state, number, with_graph)
        return state

    # --- reverse

    def gradient(self, segments: int, num_bytes: int) -> TrainingGradient:
        length = math.ceil(self.steps / segments)
        parts = [range(first, min(first + length, self.steps)) for first in range(0, self.steps, length)]
        starts = [self.here(self.rule.start(self.weights.parameters))]
        for part in parts[:-1]:
            starts.append(self.here(self.run(starts[-1].state, part, with_graph=False)))

        start = starts.pop().state.leaves()
        end = self.run(start, parts[-1], with_graph=True)
        outer = self.at(end.w, self.primary)
        if not outer.requires_grad:
            raise ValueError("primary: doesn't depend on the module's weights; compute it with the module, without no_grad or detach")
        weights, value = [x.detach() for x in end.w], float(outer.detach())
        adjoint, total = self.swept([outer], None, start)
        del end, outer
        for part in reversed(parts[:-1]):
            start = self.resumed(starts.pop()).leaves()
            adjoint, more = self.swept(self.run(start, part, with_graph=True).tensors, adjoint, start)
            total = [x + y for x, y in zip(total, more)]
        return TrainingGradient(total, value, weights, num_bytes)

    def swept(self, values: list[Tensor], adjoint: Optional[list[Tensor]], start: AdamState) -> tuple[list[Tensor], list[Tensor]]:
        """Adjoints of what a segment starts from, and its part of the gradient."""
        found = torch.autograd.grad(values, [*start.tensors, *self.phi], adjoint, allow_unused=True, materialize_grads=True)
        count = len(start.tensors)
        return list(found[:count]), list(found[count:])

    def check_second_derivatives(self) -> None:
        """Of the first step's training loss, along a random direction.

        Raises:
            NotAdmitted: they are off beside differences.
        """
        start = self.here(self.rule.start(self.weights.parameters))
        count = len(self.losses_of(0))
        self.resumed(start)
        a = self.combine if not isinstance(self.combine, Tensor) or self.combine.dim() == 1 else self.combine[0]
        combiner = (lambda l: l @ a.detach()) if isinstance(a, Tensor) else a
        passes = [lambda m=m: self.losses_of(0)[m] for m in range(count)]
        problem = ModuleProblem(self.weights.module, passes, self.primary, hessian_product="double_backward")
        look(problem)  # all problems have these passes: what they were tested on is told by their graph
        try:
            problem.hessian(combiner)(problem.random(SEED))
        except NotAdmitted as error:
            raise NotAdmitted(f"{error}: the derivative through training needs it") from error

    # --- where it stands

    @contextmanager
    def put_back_after(self) -> Iterator[None]:
        """Generators and buffers as they were, afterwards; attention in the form that has second derivatives."""
        with self.weights.replayed(get_generators(self.weights.device)), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield

    def here(self, state: AdamState) -> _Start:
        return _Start(state, get_generators(self.weights.device), [b.clone() for b in self.weights.module.buffers()])

    def resumed(self, start: _Start) -> AdamState:
        set_generators(start.generators, self.weights.device)
        for buffer, kept in zip(self.weights.module.buffers(), start.buffers):
            buffer.data.copy_(kept)
        return start.state

    # --- memory

    def check_bytes(self, segments: int, most: Optional[int]) -> int:
        """Bytes that `segments` segments take, foreseen from one step; nothing has moved afterwards.

        Raises:
            ValueError: more than `most`.
        """
        start = self.here(self.rule.start(self.weights.parameters))
        graph, last = self.rehearsed(start.state.leaves())
        self.resumed(start)
        kept, needed = start.state.num_bytes, {}
        for count in range(1, self.steps + 1):
            length = math.ceil(self.steps / count)
            # starts, the graphs of one segment and that of F; adjoints and what becomes of them; and the sweep's own, about as much as a graph
            needed[count] = (math.ceil(self.steps / length) + 3) * kept + (length + 1) * graph + last
        if most is not None and needed[segments] > most:
            best = min(needed, key=lambda count: needed[count])
            mend = (
                f"give segments={best}, which takes {needed[best]}"
                if needed[best] <= most
                else f"take fewer steps or a smaller module: segments={best} still takes {needed[best]}"
            )
            raise ValueError(f"max_bytes={most}: {self.steps} steps in {segments} segments take {needed[segments]} bytes; {mend}")
        log.info(f"training_gradient: {self.steps} steps in {segments} segments take {needed[segments]} bytes")
        return needed[segments]

    def rehearsed(self, start: AdamState) -> tuple[int, int]:
        """Bytes that the graph of a step keeps, and those of F's."""
        beside = [*self.weights.module.buffers(), *(p for p in self.weights.module.parameters() if not p.requires_grad), *self.phi]
        step, outer = GraphBytes(beside), GraphBytes(beside)
        with step.counting():
            end = self.step(start, 0, with_graph=True)
        with outer.counting():
            value = self.at(end.w, self.primary)
        del value
        return step.total, outer.total
