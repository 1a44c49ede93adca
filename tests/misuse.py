"""Uses of the library that go wrong in silence elsewhere: each ends right, within its error, or refused in one line.

A row builds its problem in a type of numbers; the reference is dense float64 along the gradient that training follows (`plain`, where
the row's own losses can't be differentiated twice).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from meltr_ray import MELTR, ModuleProblem, hypergradient
from meltr_ray.hypergrad import ConjugateGradient, Identity
from tests.reference import flat

SINGLE, DOUBLE = torch.float32, torch.float64
DAMPING = 5.0
CG = ConjugateGradient(60, damping=DAMPING, tolerance=1e-7)


@dataclass
class Setting:
    """One use; all tensors of one type."""

    module: nn.Module
    losses: Callable[[], Any]
    primary: Callable[[], Any]
    combiner: nn.Module
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Use:
    """A row of the table.

    Args:
        make: type of numbers -> setting.
        solver: Identity or CG to convergence.
        plain: type of numbers -> a setting of the same answer that plain torch can differentiate; None: `make`.
        error: relative error that is still right.
        outcome: "right", "refused", or "either".
    """

    name: str
    make: Callable[[torch.dtype], Setting]
    solver: Any = Identity()
    plain: Optional[Callable[[torch.dtype], Setting]] = None
    error: float = 1e-2
    outcome: str = "right"

    def got(self) -> Tensor:
        this = self.make(SINGLE)
        return flat(
            hypergradient(ModuleProblem(this.module, this.losses, this.primary, **this.options), this.combiner, self.solver).total()
        ).double()

    def expected(self) -> Tensor:
        """-d_phi <d_w g_phi(l), v> in float64: rows of autograd, and for CG, damped until H is positive, a dense solve."""
        this = (self.plain or self.make)(DOUBLE)
        w, phi = [p for p in this.module.parameters() if p.requires_grad], list(this.combiner.parameters())

        def slopes(value: Tensor, graph: bool = False) -> Tensor:
            return torch.cat(
                [g.flatten() for g in torch.autograd.grad(value, w, create_graph=graph, allow_unused=True, materialize_grads=True)]
            )

        v, g = slopes(this.primary()), slopes(this.combiner(this.losses()), graph=True)
        if self.solver is CG:
            rows = [torch.autograd.grad(each, w, retain_graph=True, allow_unused=True, materialize_grads=True) for each in g]
            H = torch.stack([torch.cat([piece.flatten() for piece in row]) for row in rows])
            v = torch.linalg.solve(H + DAMPING * torch.eye(len(H)).double(), v)
        return -flat(list(torch.autograd.grad(g @ v, phi, allow_unused=True, materialize_grads=True)))


class Net(nn.Module):
    """A trunk and a head."""

    def __init__(self, hidden: int = 8):
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Linear(6, hidden), nn.Tanh()), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


@dataclass
class Parts:
    """A network with its data, the same numbers in every type."""

    net: Net
    x: Tensor
    y: Tensor
    meta_x: Tensor
    meta_y: Tensor
    combiner: nn.Module

    def fit(self) -> Tensor:
        return (self.net(self.x) - self.y).square().mean()

    def primary(self) -> Tensor:
        return (self.net(self.meta_x) - self.meta_y).square().mean()


def parts(dtype: torch.dtype, hidden: int = 8, num_losses: int = 2) -> Parts:
    torch.manual_seed(3)
    net, combiner = Net(hidden), MELTR(num_losses, 16, 8, 16)
    nn.init.normal_(combiner.fc1.weight, std=0.3)
    x, y, meta_x, meta_y = (torch.randn(10, n).to(dtype) for n in (6, 3, 6, 3))
    return Parts(net.to(dtype), x, y, meta_x, meta_y, combiner.to(dtype))


def beside(more: Callable[[Parts], Callable[[], Tensor]], hidden: int = 8, **options: Any) -> Callable[[torch.dtype], Setting]:
    """The fit, and another loss beside it."""

    def make(dtype: torch.dtype) -> Setting:
        p = parts(dtype, hidden)
        other = more(p)
        return Setting(p.net, lambda: torch.stack([p.fit(), other()]), p.primary, p.combiner, options)

    return make


# --- weights read past the module


def by_list(p: Parts) -> Callable[[], Tensor]:
    held = list(p.net.parameters())
    return lambda: sum(w.square().sum() for w in held)


def by_attribute(p: Parts) -> Callable[[], Tensor]:
    p.net.__dict__["cached"] = (p.net.head.weight, p.net.trunk[0].weight)
    return lambda: p.net.cached[0].square().sum() + p.net.cached[1].abs().pow(1.5).sum()


def by_optimizer(p: Parts) -> Callable[[], Tensor]:
    groups = torch.optim.SGD(p.net.parameters(), lr=0.1).param_groups
    return lambda: sum((w.square() * 0.3).sum() for group in groups for w in group["params"])


def by_view(p: Parts) -> Callable[[], Tensor]:
    flat_head = p.net.head.weight.view(-1)
    return lambda: flat_head.square().sum()


# --- gradients that aren't those of the values, backwards without a derivative


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return -0.7 * g


class Cube(torch.autograd.Function):
    """x^3, whose backward can't be differentiated."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Unmarked(torch.autograd.Function):
    """x^3 by numbers that autograd doesn't see, and without a mark that says so."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return x**3

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        with torch.no_grad():
            return 3 * ctx.x**2 * g.detach()


def cubed(cube: Callable[[Tensor], Tensor]) -> Callable[[Parts], Callable[[], Tensor]]:
    return lambda p: lambda: 0.05 * cube(p.net(p.x) - p.y).square().mean()


STOPPED: dict[str, Callable[[Parts], Callable[[], Tensor]]] = {
    "a stopped target": lambda p: lambda: (p.net(p.x) - p.net(p.meta_x).detach()).square().mean(),
    "detached weights of examples": lambda p: lambda: (lambda e: (e.detach().softmax(0) * e).sum())((p.net(p.x) - p.y).square().mean(1)),
    "straight-through rounding": lambda p: lambda: p.net.head((lambda h: h + (h.sign() - h).detach())(p.net.trunk(p.x))).square().mean(),
    "a reversed gradient": lambda p: lambda: (p.net.head(Reversed.apply(p.net.trunk(p.x))) - p.y).square().mean(),
    "a trunk under no_grad": lambda p: lambda: (p.net.head(under_no_grad(p.net.trunk, p.x)) - p.y).square().mean(),
}


def under_no_grad(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return function(x)


# --- passes that aren't plain forward passes


def penalty(graph: bool) -> Callable[[Parts], Callable[[], Tensor]]:
    """Of the gradient by the input, which a pass without a graph can't take."""

    def of(p: Parts) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            x = p.x.clone().requires_grad_()
            with torch.set_grad_enabled(graph or torch.is_grad_enabled()):
                (slope,) = torch.autograd.grad(p.net(x).square().sum(), x, create_graph=True)
            return slope.square().mean()

        return loss

    return of


def recomputed(p: Parts) -> Callable[[], Tensor]:
    """A checkpoint by whose graph no weight is seen, since its input alone requires a gradient."""
    return lambda: checkpoint(p.net, p.x.clone().requires_grad_(), use_reentrant=True).cosh().mean()


def calling_backward(setting: Setting) -> None:
    own = setting.losses

    def losses() -> Tensor:
        l = own()
        l.sum().backward(retain_graph=True)
        return l

    setting.losses = losses


def over_a_running_mean(moves: bool) -> Callable[[torch.dtype], Setting]:
    """A loss over a buffer that each training pass moves towards it."""

    def make(dtype: torch.dtype) -> Setting:
        p = parts(dtype)
        p.net.register_buffer("mean", torch.tensor(1.0, dtype=dtype))

        def losses() -> Tensor:
            l, before = p.net(p.x).cosh().mean(), p.net.mean.clone()
            mean = 0.5 * before + 1.5 * l.detach()
            if moves:
                p.net.mean = mean
            return torch.stack([p.fit(), l / mean])

        return Setting(p.net, losses, p.primary, p.combiner)

    return make


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def primary_in_evaluation(leaves: bool) -> Callable[[torch.dtype], Setting]:
    """Batch norm; the primary loss is measured in evaluation mode, and the module perhaps left in it."""

    def make(dtype: torch.dtype) -> Setting:
        p = parts(dtype)
        net = Normed().to(dtype)
        running = [b.clone() for b in net.buffers()]

        def primary() -> Tensor:
            net.eval()
            y = nn.functional.batch_norm(net.body[0](p.meta_x), running[0], running[1], net.body[1].weight, net.body[1].bias)
            found = (net.head(y.tanh()) - p.meta_y).square().mean()
            return found if leaves or net.train() is None else found

        def losses() -> Tensor:
            return torch.stack([(net(p.x) - p.y).square().mean(), net(p.x).cosh().mean()])

        return Setting(net, losses, primary, p.combiner)

    return make


# --- others


def clamped(inside: bool) -> Callable[[torch.dtype], Setting]:
    """A forward that clamps a weight, some of whose entries lie on the bound."""

    def make(dtype: torch.dtype) -> Setting:
        setting = beside(lambda p: lambda: p.net(p.x).cosh().mean())(dtype)
        own, weight = setting.losses, setting.module.head.weight
        weight.data.clamp_(-0.2, 0.2)
        setting.losses = lambda: own() if not inside or weight.data.clamp_(-0.2, 0.2) is None else own()
        return setting

    return make


class Taught(nn.Module):
    """A network beside its own slow mean (Tarvainen and Valpola 2017), which each pass moves on."""

    def __init__(self, keep: str):
        super().__init__()
        self.net, self.keep = Net(), keep
        mean = self.net.head.weight.detach() * 0.9
        self.teacher = nn.Parameter(mean, requires_grad=False) if keep == "parameter" else None
        if self.teacher is None:
            del self.teacher
            self.register_buffer("teacher", mean)

    def forward(self, x: Tensor) -> Tensor:
        if self.keep == "buffer":
            self.teacher = 0.9 * self.teacher + 0.1 * self.net.head.weight.detach()
        elif self.keep == "parameter":
            self.teacher.data = 0.9 * self.teacher.data + 0.1 * self.net.head.weight.data
        target = F.linear(self.net.trunk(x), self.teacher).detach()
        return self.net(x) + (self.net(x) - target).square()


def taught(keep: str) -> Callable[[torch.dtype], Setting]:
    def make(dtype: torch.dtype) -> Setting:
        p = parts(dtype)
        module = Taught(keep).to(dtype)
        module.net = p.net
        return Setting(module, lambda: torch.stack([p.fit(), (module(p.x) - p.y).square().mean()]), p.primary, p.combiner)

    return make


def of_normed_rows(by_hand: bool) -> Callable[[torch.dtype], Setting]:
    """Weight normalisation (Salimans and Kingma 2016), whose second derivative torch (2.13) has wrong on a CPU: the row lengths count as constants."""

    def make(dtype: torch.dtype) -> Setting:
        p = parts(dtype)
        weight_norm(p.net.head)
        normed = p.net.head.parametrizations.weight

        def run(x: Tensor) -> Tensor:
            if not by_hand:
                return p.net(x)
            length, rows = normed.original0, normed.original1
            return F.linear(p.net.trunk(x), length * rows / rows.square().sum(1, keepdim=True).sqrt(), p.net.head.bias)

        return Setting(p.net, lambda: torch.stack([(run(p.x) - p.y).square().mean(), run(p.x).cosh().mean()]),
                       lambda: (run(p.meta_x) - p.meta_y).square().mean(), p.combiner)  # fmt: skip

    return make


def half_inside(p: Parts) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=p.x.dtype == SINGLE):
            return (p.net(p.x).to(p.y) - p.y).abs().pow(1.5).mean()

    return loss


def large(scale: float, hidden: int = 8) -> Callable[[torch.dtype], Setting]:
    """A network that is the same function of weights `scale` times as large."""

    def make(dtype: torch.dtype) -> Setting:
        p = parts(dtype, hidden)
        with torch.no_grad():
            for w in p.net.parameters():
                w.mul_(scale)

        def run(x: Tensor) -> Tensor:
            first, head = p.net.trunk[0], p.net.head
            return F.linear(torch.tanh(F.linear(x, first.weight / scale, first.bias / scale)), head.weight / scale, head.bias / scale)

        return Setting(p.net, lambda: torch.stack([(run(p.x) - p.y).square().mean(), run(p.x).cosh().mean()]),
                       lambda: (run(p.meta_x) - p.meta_y).square().mean(), p.combiner)  # fmt: skip

    return make


def changed(change: Callable[[Setting], None]) -> Callable[[torch.dtype], Setting]:
    def make(dtype: torch.dtype) -> Setting:
        setting = beside(lambda p: lambda: p.net(p.x).cosh().mean())(dtype)
        change(setting)
        return setting

    return make


def of_a_copy(which: str) -> Callable[[Setting], None]:
    def change(setting: Setting) -> None:
        twin = copy.deepcopy(setting.module)
        x = torch.randn(5, 6, dtype=next(twin.parameters()).dtype)
        losses = setting.losses
        if which == "all":
            setting.losses = lambda: torch.stack([twin(x).square().mean(), twin(x).cosh().mean()])
        elif which == "one":
            setting.losses = lambda: torch.stack([losses()[0], twin(x).cosh().mean()])
        else:
            setting.primary = lambda: twin(x).square().mean()

    return change


def drawn(source: str) -> Callable[[Setting], None]:
    numpy, own = np.random.default_rng(0), torch.Generator().manual_seed(0)

    def change(setting: Setting) -> None:
        losses = setting.losses
        draw = {"numpy": lambda: torch.tensor(numpy.uniform(0.5, 1.5, 2), dtype=SINGLE), "own": lambda: torch.rand(2, generator=own)}[
            source
        ]
        setting.losses = lambda: losses() * draw()

    return change


def giving(
    losses: Callable[[Tensor], Any] = lambda l: l, primary: Callable[[Tensor], Any] = lambda value: value
) -> Callable[[Setting], None]:
    def change(setting: Setting) -> None:
        own, outer = setting.losses, setting.primary
        setting.losses, setting.primary = lambda: losses(own()), lambda: primary(outer())

    return change


class Weighted(nn.Module):
    """A product with a weight of each loss: it broadcasts."""

    def __init__(self, count: int):
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-1.0, 1.0, count))

    def forward(self, l: Tensor) -> Tensor:
        return (self.logits.exp() * l).sum()


def broadcast(setting: Setting) -> None:
    setting.combiner, own = Weighted(3), setting.losses
    setting.losses = lambda: own()[:1]


def nan_gradient(setting: Setting) -> None:
    own, net = setting.losses, setting.module
    setting.losses = lambda: torch.stack([own()[0], (net.head.bias - net.head.bias).square().sum().sqrt() + own()[1]])


def nan_outer_gradient(setting: Setting) -> None:
    own, net = setting.primary, setting.module
    setting.primary = lambda: own() + (net.head.bias - net.head.bias).square().sum().sqrt()


def phi_inside(setting: Setting) -> None:
    setting.module.aux = setting.combiner


def registered_twice(setting: Setting) -> None:
    setting.module.again = setting.module.head


def with_weight(make: Callable[[torch.dtype], Tensor], scale: Callable[[Tensor], Tensor]) -> Callable[[Setting], None]:
    """Losses scaled by another weight of the module."""

    def change(setting: Setting) -> None:
        own, net = setting.losses, setting.module
        net.more = nn.Parameter(make(net.head.weight.dtype))
        setting.losses = lambda: own() * scale(net.more)

    return change


def sparse_rows(dtype: torch.dtype) -> Setting:
    p, rows = parts(dtype), nn.Embedding(10, 6, sparse=True).to(dtype)
    module = nn.ModuleDict({"net": p.net, "rows": rows})
    return Setting(module, lambda: torch.stack([p.fit(), p.net(rows(torch.arange(10))).cosh().mean()]), p.primary, p.combiner)


def tied(setting: Setting) -> None:
    setting.module.tie = nn.Linear(8, 3, bias=False)
    setting.module.tie.weight = setting.module.head.weight


def phi_in_losses(setting: Setting) -> None:
    own, scale = setting.losses, setting.combiner.fc1.weight
    setting.losses = lambda: own() * scale.square().mean()


BIG = 15_000  # hidden units, more than 100,000 weights: where a difference is the cheapest
USES = [
    *(Use(f"weights by {name}", beside(more), solver) for name, more in
      {"a list": by_list, "an attribute": by_attribute, "an optimiser's groups": by_optimizer, "a view made before": by_view}.items()
      for solver in (Identity(), CG) if not (name == "a view made before" and solver is CG)),
    *(Use(f"weights by a list, {product}", beside(by_list, product=product), outcome=outcome)
      for product, outcome in (("forward", "refused"), ("double_backward", "right"), ("central", "right"), ("one_sided", "right"))),
    Use("weights by a list, forward over reverse", beside(by_list, hessian_product="forward_over_reverse"), CG, outcome="refused"),
    *(Use(f"{name}, {kind}", beside(cubed(cube.apply)), solver, beside(cubed(lambda e: e**3)))
      for name, cube in (("once-differentiable", Cube), ("an unmarked backward", Unmarked)) for kind, solver in (("identity", Identity()), ("CG", CG))),
    Use("once-differentiable, double backward", beside(cubed(Cube.apply), product="double_backward"), plain=beside(cubed(lambda e: e**3)), outcome="refused"),
    Use("once-differentiable, H by double backward", beside(cubed(Cube.apply), hessian_product="double_backward"), CG,
        beside(cubed(lambda e: e**3)), outcome="refused"),
    *(Use(f"{name}, {size} weights", beside(more, hidden)) for name, more in STOPPED.items() for size, hidden in (("few", 8), ("many", BIG))),
    *(Use(f"{name}, central", beside(more, product="central"), outcome="refused") for name, more in STOPPED.items()),
    *(Use(f"{name}, CG", beside(more), CG, outcome="refused") for name, more in STOPPED.items()),
    Use("autocast inside a loss, few weights", beside(half_inside), error=0.1, outcome="either"),
    Use("autocast inside a loss, many weights", beside(half_inside, BIG), error=0.1, outcome="either"),
    *(Use(f"weights {scale:g} times as large, {size}", large(scale, hidden)) for scale in (10.0, 1e3, 1e5)
      for size, hidden in (("few", 8), ("many", BIG))),
    *(Use(f"{name} of a copy", changed(of_a_copy(which)), outcome="refused")
      for name, which in (("losses", "all"), ("one loss", "one"), ("primary", "primary"))),
    *(Use(f"randomness of {source}", changed(drawn(source)), outcome="refused") for source in ("numpy", "own")),
    Use("one loss for two", changed(giving(lambda l: l[:1])), outcome="refused"),
    Use("three losses for two", changed(giving(lambda l: torch.cat([l, l[:1]]))), outcome="refused"),
    Use("one loss broadcast to three weights", changed(broadcast), outcome="refused"),
    Use("losses as a dictionary", changed(giving(lambda l: {"a": l[0], "b": l[1]})), outcome="refused"),
    Use("losses as a tuple", changed(giving(lambda l: tuple(l))), outcome="refused"),
    Use("losses in a row", changed(giving(lambda l: l[None])), outcome="refused"),
    Use("losses in float16", changed(giving(lambda l: l.half())), outcome="refused"),
    Use("losses in float64", changed(giving(lambda l: l.double())), outcome="refused"),
    Use("losses as numbers", changed(giving(lambda l: l.tolist())), outcome="refused"),
    Use("a loss that is infinite", changed(giving(lambda l: l * torch.tensor([1.0, float("inf")]))), outcome="refused"),
    Use("a loss whose gradient is NaN", changed(nan_gradient), outcome="refused"),
    Use("primary is NaN", changed(giving(primary=lambda value: value * float("nan"))), outcome="refused"),
    Use("primary is infinite", changed(giving(primary=lambda value: value / 0.0)), outcome="refused"),
    Use("primary's gradient is NaN", changed(nan_outer_gradient), outcome="refused"),
    Use("primary of two numbers", changed(giving(primary=lambda value: value.expand(2))), outcome="refused"),
    Use("primary as a number", changed(giving(primary=lambda value: value.item())), outcome="refused"),
    Use("primary detached", changed(giving(primary=lambda value: value.detach())), outcome="refused"),
    Use("phi registered in the module", changed(phi_inside), CG, outcome="refused"),
    Use("a layer registered twice", changed(registered_twice), CG),
    Use("a weight tied to another layer's", changed(tied), CG),
    Use("phi in the losses themselves", changed(phi_in_losses), outcome="refused"),
    *(Use(f"a gradient penalty, {kind}, {size}", beside(penalty(graph), hidden), solver) for kind, graph in (("in the pass' own mode", False), ("enabled", True))
      for size, hidden, solver in (("few", 8, Identity()), ("many", BIG, Identity()), ("CG", 8, CG))),
    *(Use(f"a forward that clamps a weight, {size}", clamped(True), solver, outcome="refused") for size, solver in (("identity", Identity()), ("CG", CG))),
    Use("a weight that was clamped before", clamped(False), CG),
    *(Use(f"a teacher that a pass moves, a frozen {keep}, {kind}", taught(keep), solver, outcome=outcome) for kind, solver in (("identity", Identity()), ("CG", CG))
      for keep, outcome in (("parameter", "refused"), ("buffer", "right" if kind == "identity" else "refused"))),
    *(Use(f"weight normalisation, {kind}", of_normed_rows(False), solver, plain=of_normed_rows(True)) for kind, solver in (("identity", Identity()), ("CG", CG))),
    *(Use(f"zeros divided by their length, {kind}", beside(lambda p: lambda: p.net(p.x).cosh().mean() + F.normalize(0 * p.net(p.x)).sum()), solver,
          plain=beside(lambda p: lambda: p.net(p.x).cosh().mean())) for kind, solver in (("identity", Identity()), ("CG", CG))),
    Use("losses that call backward", changed(calling_backward), outcome="refused"),
    *(Use(f"a checkpoint that hides the weights, {kind}", beside(recomputed), solver, outcome="refused") for kind, solver in (("identity", Identity()), ("CG", CG))),
    Use("a loss over a buffer that moves", over_a_running_mean(True), plain=over_a_running_mean(False)),
    *(Use(f"{name}, {kind}", primary_in_evaluation(leaves), solver, plain=primary_in_evaluation(False)) for kind, solver in (("identity", Identity()), ("CG", CG))
      for name, leaves in (("primary in evaluation mode", False), ("primary that leaves evaluation mode", True))),
    *(Use(f"primary of {scale:g}", changed(giving(primary=lambda value, scale=scale: value * scale)), CG, outcome=outcome)
      for scale, outcome in ((1e-10, "right"), (1e10, "right"), (1e-25, "refused"), (1e25, "refused"))),
    Use("a weight of complex numbers", changed(with_weight(lambda dtype: torch.ones(3, dtype=torch.complex64), lambda w: w.abs().mean())), outcome="refused"),
    Use("an expanded weight", changed(with_weight(lambda dtype: torch.ones(1, dtype=dtype).expand(3), lambda w: w.mean())), outcome="refused"),
    Use("a weight without entries", changed(with_weight(lambda dtype: torch.ones(0, dtype=dtype), lambda w: 1 + w.sum())), CG),
    Use("sparse gradients", sparse_rows, outcome="refused"),
]  # fmt: skip
