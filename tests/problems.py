"""Bi-level problems whose answers are known otherwise: by dense float64 matrices, by a closed form, or by Newton's method.

Legend: w weights (p), phi outer parameters (q), l losses (T), L inner loss, F outer loss, A = d2_ww L + damping I.
Every number (data, phi, weights that are not an optimum) is representable in float32, so that `to(torch.float32)` is the same
problem in less precise arithmetic and not another one.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Callable, Optional

import torch
from torch import Tensor, nn
from torch.func import hessian, jacrev
from torch.nn.functional import cross_entropy, softplus

from meltr_ray import MELTR, BilevelProblem, ModuleProblem, hypergradient
from meltr_ray.hypergrad import HyperGradient
from meltr_ray.hypergrad.solvers import Solver
from meltr_ray.hypergrad.vectors import Vector
from tests.reference import DenseBilevel, as_function, flat, trained

EXACT = "double_backward"

Function = Callable[[nn.Module], Tensor]

Optimum = Callable[[Tensor], Tensor]
"""phi (q,) -> w (p,), float64, the inner optimum to about 1e-12."""


@dataclass(frozen=True)
class Case:
    """A problem, at one w and one phi, in one precision.

    Args:
        module: its trained parameters are w.
        damping: makes A positive definite, and is positive, as low-rank solvers need it.
        optimum: the inner optimum as a function of phi, where it can be computed; `module` is then at it.
        rank: rank of H, where it is less than p.
        mask_seed: the state of the generator at which passes draw their dropout masks.
    """

    name: str
    module: nn.Module
    damping: float = 0.0
    optimum: Optional[Optimum] = None
    rank: Optional[int] = None
    mask_seed: int = 0

    @property
    def outer_parameters(self) -> nn.Module:
        """phi, the parameters of a module."""
        raise NotImplementedError

    @cached_property
    def reference(self) -> DenseBilevel:
        """Dense derivatives in float64 at this case's own weights."""
        raise NotImplementedError

    def problem(self, product: str = EXACT, hessian_product: str = EXACT) -> ModuleProblem | BilevelProblem:
        raise NotImplementedError

    def to(self, dtype: torch.dtype) -> Case:
        """The same numbers in another precision."""
        raise NotImplementedError

    def hypergradient(self, solver: Solver, product: str = EXACT, hessian_product: str = EXACT) -> HyperGradient:
        raise NotImplementedError

    def mixed_product(self, product: str) -> tuple[Tensor, Tensor]:
        """The library's product with a random v that phi's part of the answer is made of, and the dense one."""
        raise NotImplementedError

    def hessian_product(self, product: str) -> tuple[Tensor, Tensor]:
        """The library's H u, or J^T G J u, (p,), for a random u, and the dense one."""
        raise NotImplementedError

    @property
    def phi(self) -> Tensor:
        """(q,)"""
        return trained(self.outer_parameters)

    @property
    def p(self) -> int:
        return len(trained(self.module))

    @cached_property
    def A(self) -> Tensor:
        """H + damping I, (p, p)."""
        return self.reference.hessian + self.damping * torch.eye(self.p, dtype=torch.float64)

    @cached_property
    def gauss_newton_damping(self) -> float:
        """Makes J^T G J + damping I positive definite without drowning J^T G J; `damping` where that is zero."""
        return positive_damping(self.reference.gauss_newton) or self.damping

    @cached_property
    def gauss_newton(self) -> Tensor:
        """J^T G J + damping I, (p, p)."""
        return self.reference.gauss_newton + self.gauss_newton_damping * torch.eye(self.p, dtype=torch.float64)

    @cached_property
    def condition(self) -> float:
        """Condition number of A: what a relative error of its products may grow to in a solve."""
        return float(torch.linalg.cond(self.A))

    @cached_property
    def neumann_step(self) -> float:
        return 1 / float(torch.linalg.matrix_norm(self.A, 2))

    def masked(self, function: Callable[[], Tensor]) -> Tensor:
        """`function` with the masks that every pass of the problem must replay."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.mask_seed)
            return function()


@dataclass(frozen=True)
class LossesCase(Case):
    """phi enters through T numbers: L = combiner(losses(module)).

    Args:
        losses, primary: module -> (T,) and module -> scalar, one of each micro-batch; they cast their data to the module's type.
    """

    combiner: nn.Module = field(default_factory=nn.Identity)
    losses: tuple[Function, ...] = ()
    primary: tuple[Function, ...] = ()

    @property
    def outer_parameters(self) -> nn.Module:
        return self.combiner

    def to(self, dtype: torch.dtype) -> LossesCase:
        return with_reference_of(self, replace(self, module=deepcopy(self.module).to(dtype), combiner=deepcopy(self.combiner).to(dtype)))

    def problem(self, product: str = EXACT, hessian_product: str = EXACT) -> ModuleProblem:
        torch.manual_seed(self.mask_seed)
        losses, primary = ([lambda f=f: f(self.module) for f in functions] for functions in (self.losses, self.primary))
        bare = len(losses) == len(primary) == 1
        return ModuleProblem(self.module, losses[0] if bare else losses, primary[0] if bare else primary, product=product,
                             hessian_product=hessian_product)  # fmt: skip

    def hypergradient(self, solver: Solver, product: str = EXACT, hessian_product: str = EXACT) -> HyperGradient:
        return hypergradient(self.problem(product, hessian_product), self.combiner, solver=solver)

    def mixed_product(self, product: str) -> tuple[Tensor, Tensor]:
        """J v, (M T,)"""
        problem = self.problem(product)
        v = problem.random(1)
        return problem.jvp(v).flatten().double(), self.reference.jacobian @ flat_vector(v)

    def hessian_product(self, product: str) -> tuple[Tensor, Tensor]:
        problem = self.problem(hessian_product=product)
        u = problem.random(2)
        matrix = self.reference.gauss_newton if product == "gauss_newton" else self.reference.hessian
        return flat_vector(problem.hessian(self.combiner)(u)), matrix @ flat_vector(u)

    @cached_property
    def reference(self) -> DenseBilevel:
        module, combiner = deepcopy(self.module).double(), deepcopy(self.combiner).double()
        losses = as_function(module, lambda m: self.masked(lambda: torch.cat([f(m) for f in self.losses])))
        primary = as_function(module, lambda m: self.masked(lambda: torch.stack([f(m) for f in self.primary]).mean()))

        def combine(l: Tensor, phi: Tensor) -> Tensor:
            """(M T,), (q,) -> the mean over micro-batches of g_phi"""
            return as_function(combiner, lambda g: torch.stack([g(row) for row in l.view(len(self.losses), -1)]).mean())(phi)

        return DenseBilevel(lambda w, phi: combine(losses(w), phi), lambda w, phi: primary(w), trained(module),
                            trained(combiner), losses, combine)  # fmt: skip


@dataclass(frozen=True)
class HyperparametersCase(Case):
    """phi enters the inner loss in any way.

    Args:
        hyperparameters: module that holds phi.
        inner, outer: (module, hyperparameters) -> scalar.
        as_module: hand the hyperparameters over as a module, else as a list of tensors.
    """

    hyperparameters: nn.Module = field(default_factory=nn.Identity)
    inner: Callable[[nn.Module, nn.Module], Tensor] = lambda module, hyperparameters: torch.zeros(())
    outer: Callable[[nn.Module, nn.Module], Tensor] = lambda module, hyperparameters: torch.zeros(())
    as_module: bool = False

    @property
    def outer_parameters(self) -> nn.Module:
        return self.hyperparameters

    def to(self, dtype: torch.dtype) -> HyperparametersCase:
        return with_reference_of(self, replace(self, module=deepcopy(self.module).to(dtype),
                                               hyperparameters=deepcopy(self.hyperparameters).to(dtype)))  # fmt: skip

    def problem(self, product: str = EXACT, hessian_product: str = EXACT) -> BilevelProblem:
        torch.manual_seed(self.mask_seed)
        phi = self.hyperparameters if self.as_module else list(self.hyperparameters.parameters())
        return BilevelProblem(self.module, phi, inner=lambda: self.inner(self.module, self.hyperparameters),
                              outer=lambda: self.outer(self.module, self.hyperparameters), product=product,
                              hessian_product=hessian_product)  # fmt: skip

    def hypergradient(self, solver: Solver, product: str = EXACT, hessian_product: str = EXACT) -> HyperGradient:
        return hypergradient(self.problem(product, hessian_product), solver=solver)

    def mixed_product(self, product: str) -> tuple[Tensor, Tensor]:
        """d_phi <d_w L, v>, (q,)"""
        problem = self.problem(product)
        v = problem.random(1)
        return flat(problem.mixed(v)).double(), self.reference.mixed.T @ flat_vector(v)

    def hessian_product(self, product: str) -> tuple[Tensor, Tensor]:
        problem = self.problem(hessian_product=product)
        u = problem.random(2)
        return flat_vector(problem.hessian()(u)), self.reference.hessian @ flat_vector(u)

    @cached_property
    def reference(self) -> DenseBilevel:
        module, hyperparameters = deepcopy(self.module).double(), deepcopy(self.hyperparameters).double()

        def of_flat(function: Callable[[nn.Module, nn.Module], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
            def value(w: Tensor, phi: Tensor) -> Tensor:
                return as_function(hyperparameters, lambda h: as_function(module, lambda m: function(m, h))(w))(phi)

            return value

        return DenseBilevel(of_flat(self.inner), of_flat(self.outer), trained(module), trained(hyperparameters))


# -- parts ----------------------------------------------------------------------------------------------------------------


class Point(nn.Module):
    """w itself, in two pieces of different shape so that nothing can rely on one tensor; `forward` -> (p,)."""

    def __init__(self, size: int):
        super().__init__()
        self.head = nn.Parameter(torch.randn(1, 2))
        self.tail = nn.Parameter(torch.randn(size - 2))

    def forward(self) -> Tensor:
        return torch.cat([self.head.flatten(), self.tail])


class ExponentialWeights(nn.Module):
    """g_phi(l) = exp(phi) l: linear in l, so d2_ll g = 0."""

    def __init__(self, phi: list[float]):
        super().__init__()
        self.phi = nn.Parameter(torch.tensor(phi))

    def forward(self, l: Tensor) -> Tensor:
        return self.phi.exp() @ l


class CurvedWeights(ExponentialWeights):
    """g_phi(l) = exp(phi) l + (tau l)^2 / 2: the curvature of g joins in H, and d2_ll g = tau tau^T."""

    def __init__(self, phi: list[float], tau: list[float]):
        super().__init__(phi)
        self.tau = nn.Parameter(torch.tensor(tau))

    def forward(self, l: Tensor) -> Tensor:
        return super().forward(l) + 0.5 * (self.tau @ l).square()


class Transformer(nn.Module):
    """One layer, causal-free, attention by plain matrix products (two derivatives, both modes), tied output; dropout is on."""

    WIDTH, WORDS, LENGTH = 8, 10, 5

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(self.WORDS, self.WIDTH)
        self.positions = nn.Parameter(0.5 * torch.randn(self.LENGTH, self.WIDTH))
        self.query_key_value = nn.Linear(self.WIDTH, 3 * self.WIDTH)
        self.norm = nn.LayerNorm(self.WIDTH)
        self.up, self.down = nn.Linear(self.WIDTH, 12), nn.Linear(12, self.WIDTH)
        self.dropout = nn.Dropout(0.2)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, LENGTH) -> (B, LENGTH, WIDTH)"""
        x = self.words(tokens) + self.positions
        q, k, v = self.query_key_value(x).chunk(3, -1)
        attention = torch.softmax(q @ k.transpose(-1, -2) / self.WIDTH**0.5, -1)
        x = self.norm(x + self.dropout(attention) @ v)
        return x + self.dropout(self.down(torch.tanh(self.up(x))))

    def scores(self, hidden: Tensor) -> Tensor:
        """(B, LENGTH, WIDTH) -> (B * LENGTH, WORDS)"""
        return (hidden @ self.words.weight.T).flatten(0, 1)


def newton(inner: Callable[[Tensor, Tensor], Tensor], w: Tensor, phi: Tensor) -> Tensor:
    """argmin_w inner(w, phi), (p,), of a convex function: Newton's method until the step is at the rounding."""
    for _ in range(60):
        step = torch.linalg.solve(hessian(inner)(w, phi), jacrev(inner)(w, phi))
        w = w - step
        if step.norm() <= 1e-13 * (1 + w.norm()):
            return w
    raise AssertionError(f"Newton's method has not converged: step {float(step.norm()):.1e}")


def place(module: nn.Module, w: Tensor) -> None:
    """Write w (p,) into the trained parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, piece in zip(parameters, w.split([p.numel() for p in parameters])):
            p.copy_(piece.view_as(p))


def at_optimum(case: Case) -> Case:
    """The same case with its module at the inner optimum."""
    place(case.module, case.optimum(case.phi))
    return case


def positive_damping(matrix: Tensor) -> float:
    """Under this damping a symmetric matrix has a condition number of about 20, whatever the signs of its eigenvalues."""
    eigenvalues = torch.linalg.eigvalsh(matrix)
    return 1.05 * max(0.0, -float(eigenvalues[0])) + 0.05 * float(eigenvalues.abs().max())


def damped(case: Case) -> Case:
    """The same case with a damping that makes A positive definite."""
    return with_reference_of(case, replace(case, damping=positive_damping(case.reference.hessian)))


def with_reference_of(case: Case, other: Case) -> Case:
    """`other`, which takes the dense matrices of `case` if w and phi are the same numbers: they are slow to make."""
    if torch.equal(trained(case.module).double(), trained(other.module).double()) and torch.equal(case.phi.double(), other.phi.double()):
        other.__dict__["reference"] = case.reference  # where a cached property keeps its value
    return other


def flat_vector(v: Vector) -> Tensor:
    """The library's vector of weight space as one tensor, (p,), float64."""
    return flat(list(v.pieces)).double()


def numbers(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers representable in float32, held in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


# -- quadratics -----------------------------------------------------------------------------------------------------------


def least_squares(roots: list[Tensor], targets: list[Tensor]) -> Callable[[nn.Module], Tensor]:
    """T losses |A_t w - c_t|^2 / 2."""

    def losses(module: nn.Module) -> Tensor:
        w = module()
        return torch.stack([0.5 * (A.to(w) @ w - c.to(w)).square().sum() for A, c in zip(roots, targets)])

    return losses


def distance(target: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda module: 0.5 * (module() - target.to(module.tail)).square().sum()


def weighted_optimum(roots: list[Tensor], targets: list[Tensor]) -> Optimum:
    """argmin_w of sum_t exp(phi_t) |A_t w - c_t|^2 / 2 by its normal equations."""

    def optimum(phi: Tensor) -> Tensor:
        H = sum(a * A.T @ A for a, A in zip(phi.exp(), roots))
        return torch.linalg.solve(H, sum(a * A.T @ c for a, A, c in zip(phi.exp(), roots, targets)))

    return optimum


def quadratic(p: int = 7) -> LossesCase:
    """Three losses of different scale; optimum away from the origin; closed form in phi."""
    roots = [scale * numbers(5, p, seed=t) for t, scale in enumerate([1.0, 4.0, 0.25])]
    targets = [numbers(5, seed=10 + t) + 2 for t in range(3)]
    torch.manual_seed(0)
    return at_optimum(LossesCase("quadratic", Point(p).double(), 0.1, weighted_optimum(roots, targets),
                                 combiner=ExponentialWeights([0.5, -0.25, 1.0]).double(), losses=(least_squares(roots, targets),),
                                 primary=(distance(numbers(p, seed=20)),)))  # fmt: skip


def curved() -> LossesCase:
    """The quadratic under a combiner with curvature of its own; optimum by Newton's method."""
    plain = quadratic()
    case = replace(plain, name="curved", combiner=CurvedWeights([0.5, -0.25, 1.0], [0.25, 0.125, 0.5]).double())
    start = trained(plain.module)
    return at_optimum(replace(case, optimum=lambda phi: newton(case.reference.inner, start, phi)))


def badly_scaled(p: int = 12) -> LossesCase:
    """Condition number 1e6; losses of scale 1e-3, 1 and 1e3, each the main one on four directions and a little on all."""
    basis, _ = torch.linalg.qr(numbers(p, p, seed=30))
    eigenvalues = torch.logspace(-3, 3, p).double()
    shares = torch.full((3, p), 0.05).double()
    for t in range(3):
        shares[t, 4 * t : 4 * t + 4] = 0.9
    roots = [((share * eigenvalues).sqrt().unsqueeze(1) * basis.T).float().double() for share in shares]
    targets = [A @ numbers(p, seed=40 + t) for t, A in enumerate(roots)]
    targets = [c.float().double() for c in targets]
    torch.manual_seed(0)
    return at_optimum(LossesCase("badly scaled", Point(p).double(), 1e-3, weighted_optimum(roots, targets),
                                 combiner=ExponentialWeights([0.125, -0.25, 0.0]).double(),
                                 losses=(least_squares(roots, targets),), primary=(distance(numbers(p, seed=50)),)))  # fmt: skip


def low_rank(p: int = 12) -> LossesCase:
    """H of rank 4; w is no optimum."""
    roots = [numbers(rows, p, seed=60 + t) for t, rows in enumerate([2, 1, 1])]
    targets = [numbers(len(A), seed=70 + t) for t, A in enumerate(roots)]
    torch.manual_seed(1)
    return LossesCase("low rank", Point(p).double(), 0.5, rank=4, combiner=ExponentialWeights([0.5, -0.25, 1.0]).double(),
                      losses=(least_squares(roots, targets),), primary=(distance(numbers(p, seed=80)),))  # fmt: skip


def indefinite(p: int = 9) -> LossesCase:
    """Quadratic forms w^T S_t w / 2 + c_t w with eigenvalues of both signs: no optimum, and A positive only with damping."""
    forms = [0.5 * (S + S.T) for S in (numbers(p, p, seed=90 + t) for t in range(3))]
    slopes = [numbers(p, seed=95 + t) for t in range(3)]

    def losses(module: nn.Module) -> Tensor:
        w = module()
        return torch.stack([0.5 * w @ S.to(w) @ w + c.to(w) @ w for S, c in zip(forms, slopes)])

    torch.manual_seed(2)
    return damped(LossesCase("indefinite", Point(p).double(), combiner=ExponentialWeights([0.5, -0.25, 1.0]).double(),
                             losses=(losses,), primary=(distance(numbers(p, seed=99)),)))  # fmt: skip


# -- regression -----------------------------------------------------------------------------------------------------------

RIDGE_STRENGTHS = [-1.0, 0.5, -2.0]
"""log regularisation strengths, one a group of two features."""


def _ridge_parts() -> tuple[Callable, Callable, Callable, Callable]:
    X, y, held_X, held_y = numbers(20, 6, seed=100), numbers(20, seed=101), numbers(15, 6, seed=102), numbers(15, seed=103) + 0.5

    def data_loss(module: nn.Module) -> Tensor:
        w = module()
        return 0.5 * (X.to(w) @ w - y.to(w)).square().mean()

    def penalties(module: nn.Module) -> Tensor:
        """(3,)"""
        return 0.5 * module().view(3, 2).square().sum(1)

    def held_out(module: nn.Module) -> Tensor:
        w = module()
        return (held_X.to(w) @ w - held_y.to(w)).square().mean()

    def optimum(log_data: Tensor, log_strengths: Tensor) -> Tensor:
        penalty = torch.diag(log_strengths.exp().repeat_interleave(2))
        return torch.linalg.solve(log_data.exp() * X.T @ X / 20 + penalty, log_data.exp() * X.T @ y / 20)

    return data_loss, penalties, held_out, optimum


def ridge_losses() -> LossesCase:
    """Ridge as four losses, that of the data and one penalty a group."""
    data_loss, penalties, held_out, optimum = _ridge_parts()
    torch.manual_seed(3)
    return at_optimum(LossesCase("ridge, losses", Point(6).double(), 0.05, lambda phi: optimum(phi[0], phi[1:]),
                                 combiner=ExponentialWeights([0.0, *RIDGE_STRENGTHS]).double(), primary=(held_out,),
                                 losses=(lambda m: torch.cat([data_loss(m).unsqueeze(0), penalties(m)]),)))  # fmt: skip


def ridge_strengths() -> HyperparametersCase:
    """The same ridge with phi = log strengths in the inner loss; F has no direct term, so it must agree with `ridge_losses`."""
    data_loss, penalties, held_out, optimum = _ridge_parts()
    torch.manual_seed(3)
    return at_optimum(HyperparametersCase("ridge, strengths", Point(6).double(), 0.05,
                                          lambda phi: optimum(torch.zeros_like(phi[0]), phi),
                                          hyperparameters=ExponentialWeights(RIDGE_STRENGTHS).double(), as_module=True,
                                          inner=lambda module, strengths: data_loss(module) + strengths(penalties(module)),
                                          outer=lambda module, strengths: held_out(module)))  # fmt: skip


class ExampleWeights(nn.Module):
    """Logits of the weights of n examples, and the log strength of a penalty."""

    def __init__(self, n: int):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(n))
        self.log_strength = nn.Parameter(torch.tensor(-2.0))


def logistic(n: int = 24, p: int = 5) -> HyperparametersCase:
    """Logistic regression; phi = weights of the examples and the strength of the penalty, in F as well: a direct term."""
    X, held_X, truth = numbers(n, p, seed=110), numbers(20, p, seed=111), numbers(p, seed=112)
    signs, held_signs = (X @ truth + numbers(n, seed=113)).sign(), (held_X @ truth + numbers(20, seed=114)).sign()

    def inner(module: nn.Module, phi: ExampleWeights) -> Tensor:
        w = module()
        each = softplus(-signs.to(w) * (X.to(w) @ w))
        return (phi.logits.sigmoid() * each).mean() + 0.5 * phi.log_strength.exp() * w.square().sum()

    def outer(module: nn.Module, phi: ExampleWeights) -> Tensor:
        w = module()
        return softplus(-held_signs.to(w) * (held_X.to(w) @ w)).mean() + 0.01 * (phi.logits.square().mean() + phi.log_strength.square())

    torch.manual_seed(4)
    case = HyperparametersCase("logistic", Point(p).double(), 0.01, hyperparameters=ExampleWeights(n).double(), inner=inner, outer=outer)
    return at_optimum(replace(case, optimum=lambda phi: newton(case.reference.inner, torch.zeros(p).double(), phi)))


# -- networks -------------------------------------------------------------------------------------------------------------


class Perceptron(nn.Module):
    """Two layers, one of them with a frozen bias, dropout between them, and a parameter that no loss uses."""

    def __init__(self, inputs: int, hidden: int, outputs: int, dropout: float):
        super().__init__()
        self.first, self.second = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.dropout, self.unused = nn.Dropout(dropout), nn.Parameter(torch.randn(2))
        self.first.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)"""
        return self.second(self.dropout(torch.tanh(self.first(x.to(self.unused)))))


def combiner_away_from_the_sum(num_losses: int, embedding_size: int = 16) -> MELTR:
    combiner = MELTR(num_losses, embedding_size=embedding_size, loss_encoder_size=8, feed_forward_size=16)
    nn.init.normal_(combiner.fc1.weight, std=0.5)
    return combiner


def perceptron(name: str = "perceptron", seed: int = 0, inputs: int = 4, hidden: int = 5, num_losses: int = 3,
               embedding_size: int = 16, micro_batches: int = 1, dropout: float = 0.0) -> LossesCase:  # fmt: skip
    """Random network, one loss for each output, their scales a factor of 10 apart, under MELTR; also the random cases."""
    torch.manual_seed(seed)
    module = Perceptron(inputs, hidden, num_losses, dropout)
    combiner = combiner_away_from_the_sum(num_losses, embedding_size)
    shapes = [torch.square, softplus, torch.cosh, torch.sin, lambda e: -torch.exp(-e.square())]
    scales = [10.0 ** (t % 3 - 1) for t in range(num_losses)]

    def losses_of(x: Tensor, y: Tensor) -> Function:
        def losses(m: nn.Module) -> Tensor:
            error = m(x) - y.to(m.unused)
            return torch.stack([scale * shapes[t % 5](error[:, t]).mean() for t, scale in enumerate(scales)])

        return losses

    def primary_of(x: Tensor, y: Tensor) -> Function:
        return lambda m: (m(x) - y.to(m.unused)).square().mean()

    def batch() -> tuple[Tensor, Tensor]:
        return torch.randn(6, inputs), torch.randn(6, num_losses)

    return damped(LossesCase(name, module.double(), combiner=combiner.double(), mask_seed=seed,
                             losses=tuple(losses_of(*batch()) for _ in range(micro_batches)),
                             primary=tuple(primary_of(*batch()) for _ in range(micro_batches))))  # fmt: skip


def transformer() -> LossesCase:
    """A small transformer with dropout on: losses of scales 3e-3 to 3e2, one negative, one the constant 0; MELTR combines."""
    torch.manual_seed(5)
    module, combiner = Transformer(), combiner_away_from_the_sum(5)
    tokens, meta_tokens = (torch.randint(Transformer.WORDS, (4, Transformer.LENGTH)) for _ in range(2))
    wanted = torch.randn(4, Transformer.WIDTH)

    def losses(m: Transformer) -> Tensor:
        hidden = m(tokens)
        words = cross_entropy(m.scores(hidden), tokens.flatten())
        log_likelihood = -cross_entropy(m.scores(hidden), tokens.flip(1).flatten())
        pooled = hidden.mean(1)
        return torch.stack([words, 0.1 * log_likelihood, torch.zeros_like(words).detach(),
                            100 * (pooled - wanted.to(pooled)).square().mean(),
                            1e-3 * torch.logsumexp(pooled, 0).sum()])  # fmt: skip

    def primary(m: Transformer) -> Tensor:
        return cross_entropy(m.scores(m(meta_tokens)), meta_tokens.roll(1, 1).flatten())

    return damped(LossesCase("transformer", module.double(), combiner=combiner.double(), losses=(losses,), primary=(primary,), mask_seed=6))


FACTORIES: dict[str, Callable[[], Case]] = {
    "quadratic": quadratic, "curved": curved, "badly scaled": badly_scaled, "low rank": low_rank, "indefinite": indefinite,
    "ridge, losses": ridge_losses, "ridge, strengths": ridge_strengths, "logistic": logistic, "perceptron": perceptron,
    "micro-batches": lambda: perceptron("micro-batches", 7, inputs=3, hidden=4, micro_batches=2, dropout=0.2),
    "transformer": transformer,
}  # fmt: skip


@cache
def case(name: str, dtype: torch.dtype = torch.float64) -> Case:
    """The case of this name, made once, in this precision."""
    return FACTORIES[name]() if dtype == torch.float64 else case(name).to(dtype)
