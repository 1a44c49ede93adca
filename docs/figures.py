"""Figures and numbers of docs/hypergradients.md: `python docs/figures.py` writes docs/figures/*.png and prints what the text cites.

Legend: v = (H + damping I)^-1 b, b = d_w F, H = d2_ww L, J = dl/dw. One thread, about a minute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import matplotlib
import torch
from torch import Tensor, nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from meltr_ray import MELTR, FixedWeights, ModuleProblem, hypergradient, unrolled_hypergradient  # noqa: E402
from meltr_ray.hypergrad import ConjugateGradient, Dense, FixedPoint, Identity, LossSpace, Neumann, Nystrom  # noqa: E402
from meltr_ray.hypergrad.products import radius_of  # noqa: E402
from meltr_ray.vectors import Vector  # noqa: E402

FOLDER = Path(__file__).parent / "figures"
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"  # Okabe and Ito
EXACT = dict(product="forward", hessian_product="double_backward")
DOUBLE, SINGLE = torch.float64, torch.float32


def flat(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.detach().double().reshape(-1) for t in tensors])


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def cosine(got: Tensor, expected: Tensor) -> float:
    return float(got @ expected / (got.norm() * expected.norm()))


def panels(count: int) -> tuple[plt.Figure, list[plt.Axes]]:
    figure, axes = plt.subplots(1, count, figsize=(9.6 if count == 2 else 11.5, 3.7), layout="constrained")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(FOLDER / f"{name}.png", dpi=140)
    plt.close(figure)


def band(axis: plt.Axes, x: list[float], runs: list[list[float]], color: str, label: str, style: str = "-") -> None:
    """Median over runs, and all of them as a band."""
    table = torch.tensor(runs).double()
    axis.plot(x, table.median(0).values, style, color=color, label=label, lw=1.8)
    axis.fill_between(x, table.min(0).values, table.max(0).values, color=color, alpha=0.13, lw=0)


# -- differences: error against radius -------------------------------------------------------------------------------------


class Transformer(nn.Module):
    """Two layers of width 32 over 8 of 50 words."""

    def __init__(self):
        super().__init__()
        self.words, self.positions = nn.Embedding(50, 32), nn.Parameter(0.1 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, activation="gelu")
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 50)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.layers(self.words(tokens) + self.positions)
        return hidden, self.head(hidden)


def transformer_problem(seed: int, dtype: torch.dtype, **options) -> tuple[ModuleProblem, MELTR]:
    torch.manual_seed(seed)
    model, combiner = Transformer(), MELTR(5)
    nn.init.normal_(combiner.fc1.weight, std=0.1)
    tokens, meta = torch.randint(50, (8, 8)), torch.randint(50, (8, 8))
    wanted = torch.randn(8, 32).to(dtype)
    model, combiner = model.to(dtype), combiner.to(dtype)

    def words(scores: Tensor, of: Tensor) -> Tensor:
        return nn.functional.cross_entropy(scores.flatten(0, 1), of.flatten())

    def losses() -> Tensor:
        hidden, scores = model(tokens)
        pooled = hidden.mean(1)
        contrast = nn.functional.cross_entropy(pooled @ wanted.T / 32**0.5, torch.arange(8))
        return torch.stack([words(scores, tokens), words(scores, tokens.flip(1)), (pooled - wanted).square().mean(), contrast,
                            scores.logsumexp(-1).square().mean()])  # fmt: skip

    return ModuleProblem(model, losses, lambda: words(model(meta)[1], meta), **options), combiner


def plot_radius() -> None:
    figure, axes = panels(2)
    for axis, dtype, low in ((axes[0], SINGLE, -5), (axes[1], DOUBLE, -9)):
        radii = torch.logspace(low, 0, 6 * -low + 1).tolist()
        found = {"one_sided": [], "central": []}
        for seed in range(5):
            truth, _ = transformer_problem(seed, DOUBLE, **EXACT)
            v = truth.outer_gradient()
            expected = truth.jvp(v)
            moved = Vector(tuple(piece.to(dtype) for piece in v.pieces))
            for product, runs in found.items():
                problem, _ = transformer_problem(seed, dtype, product=product)
                errors = []
                for radius in [*radii, radius_of(product, dtype)]:
                    problem.radius = radius
                    errors.append(error(problem.jvp(moved), expected))
                runs.append(errors)
        for (product, runs), color in zip(found.items(), (ORANGE, BLUE)):
            band(axis, radii, [run[:-1] for run in runs], color, product.replace("_", "-"))
            radius, at_rule = radius_of(product, dtype), sorted(run[-1] for run in runs)
            best = torch.tensor(runs)[:, :-1].median(0).values
            axis.plot(radius, at_rule[2], "o", color=color, ms=8, mec="black", label=f"its rule, R = {radius:.0e}")
            print(f"J v, {dtype}, {product}: at its rule R = {radius:.1e} error {at_rule[2]:.1e} (up to {at_rule[-1]:.1e}); "
                  f"best {best.min():.1e} at R = {radii[best.argmin()]:.0e}")  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="R, length of the move of w", title=str(dtype).removeprefix("torch."))
        axis.legend(fontsize=8)
    axes[0].set(ylabel="relative error of J v")
    save(figure, "difference_radius")


# -- kinks -----------------------------------------------------------------------------------------------------------------


class PlainDifferences(ModuleProblem):
    """Differences of the gradient of g_phi(l(w)) as it stands, to show what the linearised slopes are for."""

    def _linearised(self, combiner: nn.Module) -> None:
        return None


def small_case(kind: type[ModuleProblem], seed: int, dtype: torch.dtype, **options) -> tuple[ModuleProblem, MELTR]:
    """Three losses of a small network under MELTR of the published size."""
    torch.manual_seed(seed)
    model, combiner = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), MELTR(3)
    nn.init.normal_(combiner.fc1.weight, std=0.1)
    x, y, meta_x, meta_y = (torch.randn(8, n).to(dtype) for n in (4, 3, 4, 3))
    model, combiner = model.to(dtype), combiner.to(dtype)
    return kind(model, lambda: (model(x) - y).square().mean(0), lambda: (model(meta_x) - meta_y)[:, 0].square().mean(), **options), combiner


def dense_hessian(problem: ModuleProblem, combiner: nn.Module) -> Tensor:
    H, like = problem.hessian(combiner), problem.random(0)
    units = torch.eye(len(flat(like.pieces))).double().split([piece.numel() for piece in like.pieces], dim=1)
    return torch.stack([flat(H(Vector(tuple(u.view_as(p) for u, p in zip(row, like.pieces)))).pieces) for row in zip(*units)])


def plot_kinks(cases: int = 60) -> None:
    rows: dict[type, list[tuple]] = {PlainDifferences: [], ModuleProblem: []}
    for seed in range(cases):
        truth, combiner = small_case(ModuleProblem, seed, DOUBLE, **EXACT)
        u = truth.random(2)
        eigenvalues = torch.linalg.eigvalsh(dense_hessian(truth, combiner))
        damping = 1.05 * max(0.0, -float(eigenvalues[0])) + 0.05 * float(eigenvalues.abs().max())
        H_u, exact = flat(truth.hessian(combiner)(u).pieces), flat(hypergradient(truth, combiner, Dense(damping)).total())
        for kind, found in rows.items():
            problem, single = small_case(kind, seed, SINGLE, product="central", hessian_product="central")
            got = flat(problem.hessian(single)(Vector(tuple(piece.float() for piece in u.pieces))).pieces)
            result = hypergradient(problem, single, ConjugateGradient(200, damping, 1e-3))
            found.append((error(got, H_u), error(flat(result.total()), exact), result.solution.outcome.name))
    figure, axes = panels(2)
    for kind, name, color in ((PlainDifferences, "slopes as they are", RED), (ModuleProblem, "linearised slopes", BLUE)):
        for axis, column in zip(axes, (0, 1)):
            axis.plot(range(1, cases + 1), sorted(row[column] for row in rows[kind]), "o", ms=3.5, color=color, label=name)
        worst = max(rows[kind], key=lambda row: row[1])
        wrong = [row[1] for row in rows[kind] if row[2] == "CONVERGED" and row[1] > 0.1]
        print(f"H u, central, float32, {name}: median {sorted(r[0] for r in rows[kind])[cases // 2]:.1e}, worst "
              f"{max(r[0] for r in rows[kind]):.1e}, {sum(r[0] > 0.01 for r in rows[kind])} of {cases} above 1e-2; hypergradient by CG: median "
              f"{sorted(r[1] for r in rows[kind])[cases // 2]:.1e}, worst {worst[1]:.1e} ({worst[2]}), {len(wrong)} CONVERGED with an error above 0.1, up to {max(wrong, default=0):.1e}")  # fmt: skip
    for axis, title in zip(axes, ("H u along a random u", "hypergradient, CG to a residual of 1e-3")):
        axis.set(yscale="log", xlabel="case, sorted", title=title)
    axes[0].set(ylabel="relative error, float32")
    axes[0].legend(fontsize=8)
    save(figure, "kinks")


# -- solvers ---------------------------------------------------------------------------------------------------------------


class Matrix:
    """`Bilevel` of a given H, as far as solvers look at it."""

    fixed_point = None

    def __init__(self, H: Tensor):
        self.H = H

    def hessian(self) -> Callable[[Vector], Vector]:
        return lambda u: Vector((self.H @ u.pieces[0],))

    def random(self, seed: int) -> Vector:
        return Vector((torch.randn(len(self.H), generator=torch.Generator().manual_seed(seed)).double(),))


def textbook_cg(H: Tensor, b: Tensor, iterations: int) -> Tensor:
    """Without the stop at negative curvature."""
    x, r = torch.zeros_like(b), b
    d = r
    for _ in range(iterations):
        alpha = (r @ r) / (d @ H @ d)
        x, after = x + alpha * d, r - alpha * H @ d
        d, r = after + (after @ after) / (r @ r) * d, after
    return x


def curves(H: Tensor, b: Tensor, damping: float, ks: list[int], score: Callable[[Tensor], float]) -> dict[str, list[float]]:
    """Score of v after k products, of each solver that takes products."""
    def v(solver) -> Tensor:
        return solver(Matrix(H), Vector((b,)), None).v.pieces[0]

    step = 1.0 / (float(torch.linalg.matrix_norm(H, 2)) + damping)
    return {"identity": [score(v(Identity()))] * len(ks), "Neumann": [score(v(Neumann(k, step, damping))) for k in ks],
            "CG": [score(v(ConjugateGradient(k, damping))) for k in ks],
            "Nystrom, rank = products": [score(v(Nystrom(k, damping or 0.05))) for k in ks]}  # fmt: skip


def plot_solvers(size: int = 100, runs: int = 10) -> None:
    ks, eye = [1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 56, 80], torch.eye(size).double()
    found: list[list[dict[str, list[float]]]] = [[], [], []]
    lowest = []
    for seed in range(runs):
        torch.manual_seed(seed)
        Q, b = torch.linalg.qr(torch.randn(size, size).double()).Q, torch.randn(size).double()
        spread = Q @ torch.diag(torch.logspace(-2, 0, size).double()) @ Q.T
        few = Q @ torch.diag(torch.cat([torch.logspace(-3, -2, size - 10), torch.logspace(0, 2, 10)]).double()) @ Q.T
        for H, damping, kept in ((spread, 0.01, found[0]), (few, 0.1, found[1])):
            exact = torch.linalg.solve(H + damping * eye, b)
            best = float(b @ exact / (b @ b))  # the identity has no length of its own: the best there is
            kept.append(curves(H, b, damping, ks, lambda v: error(best * v if torch.equal(v, b) else v, exact)))
        noise, exact = torch.randn(size, size).double(), torch.linalg.solve(spread, b)
        bent = spread + 0.006 * (noise + noise.T)
        lowest.append(float(torch.linalg.eigvalsh(bent)[0]))
        found[2].append(curves(bent, b, 0.0, ks, lambda v: cosine(v, exact)) | {
            "textbook CG": [cosine(textbook_cg(bent, b, k), exact) for k in ks],
            "CG, damping 0.2": curves(bent, b, 0.2, ks, lambda v: cosine(v, exact))["CG"]})  # fmt: skip
    print(f"indefinite: smallest eigenvalue {min(lowest):.2f} to {max(lowest):.2f}")
    draw_solvers(ks, found, ("a spread spectrum, 0.01 to 1", "10 eigenvalues of 100 above damping", "the first with noise: indefinite"))


def draw_solvers(ks: list[int], found: list[list[dict[str, list[float]]]], titles: tuple[str, ...]) -> None:
    styles = {"identity": (GREY, ":"), "Neumann": (GREEN, "-"), "CG": (BLUE, "-"), "Nystrom, rank = products": (ORANGE, "-"),
              "textbook CG": (RED, "--"), "CG, damping 0.2": (PURPLE, "-")}  # fmt: skip
    figure, axes = panels(3)
    for axis, runs, title in zip(axes, found, titles):
        for name in runs[0]:
            band(axis, ks, [run[name] for run in runs], styles[name][0], name, styles[name][1])
            medians = torch.tensor([run[name] for run in runs]).median(0).values
            print(f"{title}: {name}: " + ", ".join(f"{k}: {medians[ks.index(k)]:.1e}" for k in (1, 3, 5, 10, 20, 80)))
        axis.set(xscale="log", xlabel="products H u", title=title)
    for axis in axes[:2]:
        axis.set(yscale="log", ylim=(1e-6, 20))
    axes[0].set(ylabel="relative error of v")
    axes[2].set(ylabel="cosine of v to the answer without noise")
    axes[0].legend(fontsize=8, loc="lower left")
    axes[2].legend(*([part[-2:] for part in axes[2].get_legend_handles_labels()]), fontsize=8, loc="lower right")
    save(figure, "solvers")


def print_adam() -> None:
    """Diagonal H of condition 1e4 whose diagonal Adam knows within a factor of 3; cosine of v to H^-1 b."""
    torch.manual_seed(2)
    curvature = torch.logspace(-2, 2, 60).double()
    level, b = Matrix(torch.diag(curvature)), torch.randn(60).double()
    scale = curvature * (0.5 + torch.rand(60).double())
    level.fixed_point = FixedPoint([0.0], Vector((scale,)))
    exact = b / curvature
    for adam in ("ignore", "precondition", "fixed_point"):
        D = torch.ones(60).double() if adam == "ignore" else scale.mean() / scale
        step = 1.0 / float((D * curvature).max())
        solvers = {"Neumann(5)": Neumann(5, step, 0.0, adam), "CG(5)": ConjugateGradient(5, 0.0, 0.0, adam),
                   "CG(5, damping 1)": ConjugateGradient(5, 1.0, 0.0, adam)}  # fmt: skip
        if adam != "precondition":
            solvers = {"Identity": Identity(adam)} | solvers
        found = {name: cosine(solver(level, Vector((b,)), None).v.pieces[0], exact) for name, solver in solvers.items()}
        products = ConjugateGradient(500, 0.0, 1e-6, adam)(level, Vector((b,)), None).num_products
        print(f"adam={adam}: cosine " + ", ".join(f"{k} {c:.2f}" for k, c in found.items()) + f"; CG to 1e-6: {products} products")


# -- unrolled against implicit ---------------------------------------------------------------------------------------------


def ridge() -> tuple[nn.Linear, ModuleProblem, nn.Module, Callable, Callable, Tensor, float]:
    """Three least-squares losses and a ridge as the fourth, weights learned; phi's optimum in closed form."""
    torch.manual_seed(1)
    A, c, target = torch.randn(3, 12, 30).double() * torch.logspace(0, -0.7, 30).double(), torch.randn(3, 12).double(), torch.randn(30).double()
    module, combiner = nn.Linear(30, 1, bias=False).double(), FixedWeights([1.0, 0.5, 2.0, 1.0]).double()
    combiner.weights = nn.Parameter(combiner.weights)

    def losses() -> Tensor:
        w = module.weight[0]
        return torch.cat([0.5 * (A @ w - c).square().sum(1), 0.5 * w.square().sum()[None]])

    def primary() -> Tensor:
        return 0.5 * (module.weight[0] - target).square().sum()

    p = combiner.weights.detach()
    H = sum(q * a.T @ a for q, a in zip(p, A)) + p[3] * torch.eye(30).double()
    optimum = torch.linalg.solve(H, sum(q * a.T @ b for q, a, b in zip(p, A, c)))
    print(f"ridge: condition {torch.linalg.cond(H):.0f}")
    return module, ModuleProblem(module, losses, primary, **EXACT), combiner, losses, primary, optimum, 1.0 / float(torch.linalg.eigvalsh(H)[-1])


def plot_unrolled() -> None:
    module, problem, combiner, losses, primary, optimum, rate = ridge()
    ks = [1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 300]

    def at(w: Tensor, take: Callable[[], list[Tensor]]) -> Tensor:
        with torch.no_grad():
            module.weight.copy_(w[None])
        return flat(take())

    def implicit(solver) -> Callable[[], list[Tensor]]:
        return lambda: hypergradient(problem, combiner, solver).total()

    def trained(steps: int) -> Tensor:
        w = torch.zeros(30).double()
        for _ in range(steps):
            w = w - rate * at(w, lambda: torch.autograd.grad(combiner(losses()), module.weight))
        return w

    exact = at(optimum, implicit(Dense()))
    warm = {"unrolled, K steps": [error(at(optimum, lambda: unrolled_hypergradient(module, losses, primary, combiner, k, rate)), exact) for k in ks],
            "Neumann, K - 1 terms": [float("nan")] + [error(at(optimum, implicit(Neumann(k - 1, rate))), exact) for k in ks[1:]],
            "CG, K products": [error(at(optimum, implicit(ConjugateGradient(k))), exact) for k in ks]}  # fmt: skip
    zeros = torch.zeros(30).double()
    cold = {"unrolled through all K steps": [error(at(zeros, lambda: unrolled_hypergradient(module, losses, primary, combiner, k, rate)), exact) for k in ks],
            "implicit, exact solve, at step K": [error(at(trained(k), implicit(Dense())), exact) for k in ks]}  # fmt: skip
    figure, axes = panels(2)
    for axis, found, title in ((axes[0], warm, "from the inner optimum"), (axes[1], cold, "from w = 0, after K inner steps")):
        for (name, errors), color, style in zip(found.items(), (ORANGE, GREEN, BLUE) if axis is axes[0] else (ORANGE, RED), ("-", "--", "-")):
            axis.plot(ks, [max(e, 1e-12) for e in errors], style, color=color, label=name, lw=3 if color == ORANGE else 1.8)
            print(f"{title}: {name}: " + ", ".join(f"{k}: {e:.1e}" for k, e in zip(ks, errors)))
        axis.set(xscale="log", yscale="log", ylim=(1e-11, 5), xlabel="K", title=title)
        axis.legend(fontsize=8)
    axes[0].set(ylabel="relative error of the hypergradient")
    save(figure, "unrolled")


# -- loss space ------------------------------------------------------------------------------------------------------------


def print_loss_space(damping: float = 1.0) -> None:
    """How far J v is from J b / damping, at the start of MELTR and away from it."""
    for std in (0.0, 0.01, 0.1):
        problem, combiner = transformer_problem(0, DOUBLE, **EXACT)
        nn.init.normal_(combiner.fc1.weight, std=std)
        J_b = problem.jvp(problem.outer_gradient())
        print(f"loss space, fc1 of MELTR N(0, {std}^2): |J v - J b / damping| / |J b / damping| = "
              f"{error(hypergradient(problem, combiner, LossSpace(damping)).solution.J_v, J_b / damping):.1e}")  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10})
    for task in (plot_radius, plot_kinks, plot_solvers, print_adam, plot_unrolled, print_loss_space):
        print(f"\n{task.__name__}")
        task()
