"""`Problem` for a module with several losses, for whatever holds its weights; and its plain form, one process and no sharding.

Legend: M micro-batches, T losses, l(w) (M, T), J = dl/dw.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from meltr_ray.hypergrad import loss_products as exact
from meltr_ray.hypergrad.arguments import check_kind, check_number, check_passes
from meltr_ray.hypergrad.fixed_point import FixedPoint
from meltr_ray.hypergrad.generators import get_generators, set_generators
from meltr_ray.hypergrad.hessian import Hessian
from meltr_ray.hypergrad.problem import Combiner, Operator, Pass
from meltr_ray.hypergrad.products import HVP, JVP, NO_GRAPH, Choice, NotAdmitted, Product, difference, radius_of, spread_difference
from meltr_ray.hypergrad.structure import check_reach, check_scalar, check_vector_of_losses
from meltr_ray.hypergrad.tested import by_gradients, look, settle_losses
from meltr_ray.hypergrad.tested_combiner import check_combiner_of
from meltr_ray.hypergrad.tested_hessian import settle_hessian
from meltr_ray.hypergrad.trust import SEED, Trust
from meltr_ray.hypergrad.vectors import Vector
from meltr_ray.hypergrad.weights import REENTRANT, Buffers, ModuleWeights


def check_product_options(radius: Any, accuracy: Any, fixed_point: Any) -> None:
    """Raises ValueError: one of them is out of range, or of another kind."""
    if radius is not None:
        check_number("radius", radius, above=True)
    if accuracy is not None:
        check_number("accuracy", accuracy, high=1.0, above=True)
    if fixed_point is not None:
        check_kind("fixed_point", fixed_point, FixedPoint, "make one by FixedPoint.of(optimizer, parameters)")


class LossesProblem:
    """The bi-level problem of weights that several losses share.

    Args:
        weights: holds w.
        losses: forward pass of each micro-batch, () -> (T,).
        primary: forward pass of each meta batch, () -> scalar; the outer loss is their mean.
        product, hessian_product: how J v and H u are taken, see `JVP` and `HVP` in products.py; `auto`: the cheapest that the
            model admits at `accuracy`, or the choice of an earlier problem of the same module. `gauss_newton` leaves the curvature of the single losses out of H.
        radius: length of a difference's move in weight space; None: by the rule in products.py.
        accuracy: relative error that `auto` may make; None: 0.01, and 0.1 in half precision.
        fixed_point: weight decay and second moments of the inner optimiser; None: neither.
        inner: the inner step's own forward of the first micro-batch, whose losses count as at hand; None: that of `losses`.
        arithmetic: type that the passes compute in, where it isn't that of w; None: autocast's, if it is on around this.
        num_ranks, rank, gather: how many processes share w, and how they exchange small tensors.
        average_losses: average the losses over ranks before g_phi.
        trust: take products as they are, without the test of trust.py, once a module.
        differences: H u by differences alone, as where weights lie in shards.
    """

    def __init__(self, weights: ModuleWeights, losses: Sequence[Pass], primary: Sequence[Pass], *, product: str | Choice = "auto",
                 hessian_product: str | Choice = "auto", radius: float | None = None, accuracy: float | None = None,
                 fixed_point: FixedPoint | None = None, inner: Pass | None = None, arithmetic: torch.dtype | None = None,
                 num_ranks: int = 1, rank: int = 0, gather: Callable[[Tensor], list[Tensor]] | None = None,
                 average_losses: bool = False, trust: bool = False, differences: bool = False):  # fmt: skip
        check_product_options(radius, accuracy, fixed_point)
        check_passes("losses", losses)
        check_passes("primary", primary)
        self.weights, self.forwards, self.primary = weights, list(losses), list(primary)
        self.inner, self.radius, self.fixed_point = inner or self.forwards[0], radius, fixed_point
        self.num_ranks, self.rank, self.gather = num_ranks, rank, gather or (lambda own: [own])
        self.average_losses = average_losses and num_ranks > 1
        kind = weights.device.type
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights.dtype
        arithmetic = arithmetic or cast
        self.half = arithmetic not in (torch.float32, torch.float64)
        self.accuracy = accuracy or (0.1 if self.half else 0.01)
        self.arithmetic = arithmetic
        self.jvp_choice = self._choice("product", product, JVP, weights.whole)
        # an average over ranks inside L has no derivative here: its second derivative is left to differences
        self.exact_hessian = weights.whole and not differences
        self.hvp_choice = self._choice("hessian_product", hessian_product, HVP, self.exact_hessian and not self.average_losses)
        self.generators = get_generators(weights.device)
        self.trusts = trust or self.average_losses  # of averaged losses no rank sees all gradients
        self.trust = Trust(weights.module, self.forwards, (len(self.forwards), arithmetic, self.radius))
        self._served = False
        self._fit: Callable[[Tensor], object] | None = None
        self._losses: Tensor | None = None
        self._start: Buffers = {}
        """Buffers where the inner step's own forward, whose losses are at hand, found them."""
        self._versions: list[Any] = []
        self._num_losses = 0

    @property
    def parameters(self) -> list[Tensor]:
        return self.weights.parameters

    def passes(self) -> Counter[str]:
        """Forward and backward passes so far, without the inner step's own forward."""
        return self.weights.passes.copy()

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return self.weights.average(tensors)

    def random(self, seed: int) -> Vector:
        return self.weights.random(seed)

    def begin(self, combiner: Combiner | Sequence[Combiner], phi: Sequence[Tensor]) -> None:
        """A hypergradient starts. Of a problem that has served one before, what it kept may be of another batch."""
        if isinstance(combiner, Sequence) or self.trusts:
            return
        bare = getattr(combiner, "combiner", combiner)  # not `Replayed`, whose masks are those of its first call

        self._fit = lambda l: self.trust.fit(bare, l, lambda: check_combiner_of(bare, l, phi))
        if self._served:
            self._losses, self._start, self.trust.assumed = None, {}, True
        self._served = True

    def holds(self, phi: Sequence[Tensor]) -> bool:
        """Whether the products were tested on losses like those at hand; False: a hypergradient has to be taken again.

        Raises:
            ValueError: the losses don't depend on w as they should.
        """
        graph = check_reach("losses", [self.losses() if self._losses is None else self._losses], self.weights.module, self.parameters, phi)
        if graph.hidden and self.weights.whole and not self.trusts:  # the gradients that products were tested by lack what it hides
            raise NotAdmitted(REENTRANT)
        if self.trusts or self.trust.knows(self.joint(graph.signature)):
            return True
        self.jvp_choice.reset()
        self.hvp_choice.reset()
        return False

    def joint(self, signature: int) -> int:
        """That of the graphs of all ranks, alike on each, so that they go the same ways; a collective of one number."""
        if self.num_ranks == 1:
            return signature
        return hash(tuple(int(each) for each in self.gather(torch.tensor([signature], device=self.weights.device))))

    def losses(self) -> Tensor:
        """l(w), (M, T); row 0 with the graph of the inner step. At hand as long as no optimiser has changed w."""
        versions = self.weights.versions()
        if self._losses is None or self._versions != versions:
            device = self.weights.device
            in_place = _equal(get_generators(device), self.generators)  # then this is the inner step's own forward
            with self.weights.kept_on_error() if in_place else self.replay() as start:
                rows = [self.checked(self.inner()) if in_place else self.forward(self.inner)]
                after = get_generators(device)  # from here the next micro-batch draws its masks
            self._start = start or {}
            if len(self.forwards) > 1:
                with self.weights.replayed(after):
                    rows += [self.forward_alone(forward) for forward in self.forwards[1:]]
            self._losses, self._versions = self.shared(torch.stack(rows)), versions
        return self._losses

    def outer_gradient(self) -> Vector:
        with self.weights.replayed(self.generators):
            return self.weights.gradient([partial(self._outer, f) for f in self.primary])

    def gradient(self, functions: Combiner | Sequence[Combiner]) -> Vector:
        with self.replay():
            return self.weights.gradient(self._values(functions))

    def jvp(self, v: Vector, product: str | None = None, consume: bool = False, spread: bool = False) -> Tensor:
        """J v, (M, T), by the product of this problem or by another; `consume`: v may be overwritten; `spread`: v is random, its entries about 1."""
        if product is None and not self.trusts:
            self._test(lambda: settle_losses(self, v))
        choice = self._choice("product", product, JVP, self.weights.whole) if product else self.jvp_choice
        at_hand = (lambda: self.losses_along(v)(None)) if self.half else (lambda: self.losses().detach())
        taken = spread_difference if spread else difference

        def radius(name: str) -> float:
            return radius_of(name, self.weights.dtype) if spread else self.radius or self.weights.radius_of(name)

        return choice.take({
            "one_sided": lambda: taken(self.losses_along(v, consume), v, radius("one_sided"), at_hand),
            "central": lambda: taken(self.losses_along(v), v, radius("central")),
            "forward": lambda: exact.forward_mode(self, v),
            "double_backward": lambda: exact.double_backward(self, v),
            "gradients": lambda: by_gradients(self, v),
        })  # fmt: skip

    def losses_along(self, v: Vector | None, consume: bool = False) -> Callable[[float | None], Tensor]:
        """eps -> l(w + eps v), (M, T), without a graph and in the arithmetic of a difference; None: l(w) in that."""

        @torch.no_grad()
        def losses_at(eps: float | None) -> Tensor:
            with self.replay(), self.weights.moved(None if eps is None else v, eps or 0.0, consume):
                return self.shared(torch.stack([self.forward_alone(forward) for forward in self.forwards]))

        return losses_at

    def hessian(self, combiner: Combiner | Sequence[Combiner], product: str | None = None) -> Operator:
        """u -> H u, with what weight decay adds to H, by the product of this problem or by another."""
        choice = self._choice("hessian_product", product, HVP, self.weights.whole) if product else self.hvp_choice
        hessian = self._hessian(combiner, choice, self.radius)

        def product_with(u: Vector) -> Vector:
            if product is None and not self.trusts:
                self._test(lambda: self._settle_hessian(combiner, u))
            return hessian(u) if self.fixed_point is None else self.fixed_point.add_decay(hessian(u), u)

        return product_with

    def rows(self) -> list[Vector]:
        """One forward and N backward passes, N = M T, times the number of ranks unless losses are averaged; N p numbers."""
        num_rows, num_losses = self.losses().shape
        owners = [None] if self.average_losses else range(self.num_ranks)  # averaged: every rank has a share in each row
        if not self.weights.whole:  # the gradient of ZeRO stage 3 is a mean over ranks and micro-batches: undo it
            factor = num_rows * (1 if self.average_losses else self.num_ranks)
            picks = [(owner in (None, self.rank), m, t) for owner in owners for m in range(num_rows) for t in range(num_losses)]
            return [factor * self.gradient([picked(t, float(mine and k == m)) for k in range(num_rows)])
                    for mine, m, t in picks]  # fmt: skip
        with self.replay():
            l = torch.stack([self.forward(forward) for forward in self.forwards])
        found = []
        for owner in owners:
            factor = 1 if owner is None else self.num_ranks
            for loss in l.flatten():
                mine = owner in (None, self.rank) and loss.requires_grad
                own = self.weights.differentiate(loss, retain_graph=True) if mine else [torch.zeros_like(p) for p in self.parameters]
                found.append(factor * self.weights.vector(own))
        return found

    def loss_gradients(self) -> list[Vector]:
        """d_w of each loss, mean over micro-batches and ranks: T vectors, a backward pass each (and under ZeRO stage 3 a forward)."""
        count = self.losses().shape[1]
        if not self.weights.whole:
            return [self.gradient(picked(t)) for t in range(count)]
        with self.replay():  # a graph of its own: DeepSpeed's forward admits its own backward alone
            l = torch.stack([self.forward(forward) for forward in self.forwards]).mean(0)
        return [self.weights.vector(self.weights.differentiate(l[t], retain_graph=t < count - 1)) for t in range(count)]

    def projections(self, seeds: Sequence[int], scale: Vector | None = None) -> Tensor:
        """(n, T) float64 on the CPU, row i J D^(1/2) z_i: z_i ~ N(0, I) in weight space is drawn by `seeds[i]`, D = 1 / `scale`, or I.

        J d_w of the losses, mean over micro-batches and ranks; the mean of the rows' outer products is J D J' but for their number. A forward
        product each, and one vector at a time.
        """
        mean = 1.0 if scale is None else scale.mean()
        root = None if scale is None else (1 / mean * scale).root()

        def direction(seed: int) -> Vector:
            z = self.random(seed)
            return z if root is None else z.divided_by(root)

        rows = [self.jvp(direction(seed), consume=True, spread=True).mean(0) for seed in seeds]
        return self.average([torch.stack(rows).double() / mean**0.5])[0].cpu()

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Every pass inside sees the masks and the buffers of the inner step and leaves no trace."""
        with self.weights.replayed(self.generators, self._start):
            yield

    def _hessian(self, combiner: Combiner | Sequence[Combiner], choice: Choice, radius: float | None) -> Hessian:
        return Hessian(self.weights, self._values(combiner), self.replay, choice, radius, lambda u: exact.gauss_newton(self, combiner, u),
                       self.linearised(combiner))  # fmt: skip

    def _settle_hessian(self, combiner: Combiner | Sequence[Combiner], u: Vector) -> None:
        if self.trust.is_settled(self.hvp_choice) or self.hvp_choice.candidates[0] == "gauss_newton":
            return
        look(self)
        if self.trust.is_settled(self.hvp_choice):
            return
        settle_losses(self, u)

        def product(name: str, radius: float, u: Vector) -> Vector:
            own = self.radius if radius == 0 else radius
            return self._hessian(combiner, self._choice("hessian_product", name, HVP, self.exact_hessian), own)(u)

        settle_hessian(self.trust, self.hvp_choice, product, lambda: self.gradient(combiner), u, self.random(SEED),
                       self.weights.radius_of("central"), self.radius, self.arithmetic, self.exact_hessian)  # fmt: skip

    def _test(self, test: Callable[[], None]) -> None:
        with self.weights.testing():
            test()

    def _outer(self, forward: Pass) -> Tensor:
        value = check_scalar("primary", self.weights.forward(forward))
        if not value.requires_grad:
            raise ValueError("primary: it doesn't depend on the module's weights; compute it with the module, without no_grad or detach")
        if check_reach("primary", [value], self.weights.module, self.parameters).hidden and self.weights.whole:
            raise NotAdmitted(REENTRANT)
        return value

    def _choice(self, option: str, name: str | Choice, products: dict[str, Product], whole: bool) -> Choice:
        return (
            name
            if isinstance(name, Choice)
            else Choice(option, name, products, self.accuracy, self.arithmetic, whole, self.weights.few and not self.half)
        )

    def forward(self, forward: Pass) -> Tensor:
        return self.checked(self.weights.forward(forward))

    def forward_alone(self, forward: Pass) -> Tensor:
        """Losses without a graph; of those that take gradients of their own, such as a gradient penalty, detached.

        Raises:
            ValueError: they call `backward`, which leaves gradients with the weights.
        """
        book, states = self.trust.book, get_generators(self.weights.device)
        if not book.needs_graph:
            try:
                with torch.no_grad():
                    return self.forward(forward)
            except RuntimeError as error:
                if NO_GRAPH not in str(error):
                    raise
            book.needs_graph = True
            set_generators(states, self.weights.device)
        before = [(p.grad, getattr(p.grad, "_version", 0)) for p in self.parameters]
        with torch.enable_grad():
            l = self.forward(forward).detach()
        if any(p.grad is not g or getattr(g, "_version", 0) != version for p, (g, version) in zip(self.parameters, before)):
            raise ValueError("losses: they call backward(); return them, and leave backward() to the training step")
        return l

    def checked(self, l: Tensor) -> Tensor:
        check_vector_of_losses(l, self._num_losses)
        if not self._num_losses and self._fit is not None:
            self._fit(l.detach())
        self._num_losses = self._num_losses or len(l)
        return l

    def shared(self, l: Tensor) -> Tensor:
        """Losses as g_phi sees them: averaged over ranks if so configured, with the gradient of this rank's own."""
        if not self.average_losses:
            return l
        (mean,) = self.average([l.detach()])
        return l + (mean - l.detach())

    def _values(self, functions: Combiner | Sequence[Combiner]) -> list[Pass]:
        return [partial(self._value, f, g) for f, g in zip(self.forwards, self.each(functions))]

    def _value(self, forward: Pass, function: Combiner) -> Tensor:
        return function(self.shared(self.forward(forward)))

    def each(self, functions: Combiner | Sequence[Combiner]) -> Sequence[Combiner]:
        """One for each micro-batch."""
        return functions if isinstance(functions, Sequence) else [functions] * len(self.forwards)

    def linearised(self, combiner: Combiner | Sequence[Combiner]) -> list[Pass]:
        """Passes whose differences along u are H u."""
        return exact.linearised(self, combiner)


class ModuleProblem(LossesProblem):
    """The bi-level problem of a plain module in one process.

    Args:
        module: w are its parameters that require a gradient.
        losses: forward pass on the training batch, () -> (T,); or one for each micro-batch.
        primary: forward pass on the meta batch, () -> scalar; or one for each of several.
        options: `product`, `hessian_product`, `radius`, `accuracy`, `fixed_point`, `trust` and `differences` of `LossesProblem`.
    """

    def __init__(self, module: nn.Module, losses: Pass | Sequence[Pass], primary: Pass | Sequence[Pass], **options: Any):
        super().__init__(ModuleWeights(module), _listed(losses), _listed(primary), **options)


def picked(t: int, factor: float = 1.0) -> Combiner:
    """l -> l[t], times a factor."""
    return lambda l: l[t] * factor


def _listed(passes: Pass | Sequence[Pass]) -> list[Pass]:
    return list(passes) if isinstance(passes, Sequence) else [passes]


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)
