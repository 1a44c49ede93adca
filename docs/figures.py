"""Makes the figures of docs/hypergradients.md, docs/figures/*.png, and prints the numbers it cites: `python docs/figures.py`.

Legend: v = (H + damping I)^-1 b, b = d_w F, H = d2_ww L, J = dl/dw. Half a minute on one thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from meltr_ray import MELTR, FixedWeights, ModuleProblem, hypergradient, unrolled_hypergradient
from meltr_ray.hypergrad import ConjugateGradient, Dense, FixedPoint, Identity, LossSpace, Neumann, Nystrom
from meltr_ray.hypergrad.products import radius_of
from meltr_ray.hypergrad.vectors import Vector

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


def panels(titles: tuple[str, ...], **labels: str) -> tuple[plt.Figure, list[plt.Axes]]:
    figure, axes = plt.subplots(1, len(titles), figsize=(5.6 + 2 * len(titles), 3.7), layout="constrained")
    for axis, title in zip(axes, titles):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set(title=title, **labels)
    return figure, list(axes)


def band(axis: plt.Axes, x: list[float], runs: list[list[float]], name: str, color: str, style: str = "-") -> Tensor:
    """Draws, and returns, the median over runs; all of them as a band."""
    table = torch.tensor(runs).double()
    median = table.median(0).values
    axis.plot(x, median, style, color=color, label=name, lw=1.8)
    axis.fill_between(x, table.min(0).values, table.max(0).values, color=color, alpha=0.13, lw=0)
    return median


def listed(where: str, name: str, x: list[int], values: list[float]) -> None:
    print(f"{where}: {name}: " + ", ".join(f"{k}: {value:.2g}" for k, value in zip(x, values)))


class Transformer(nn.Module):
    """Two layers of width 32 over 8 of 50 words; forward -> hidden states, scores of words."""

    def __init__(self):
        super().__init__()
        self.words, self.positions = nn.Embedding(50, 32), nn.Parameter(0.1 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, activation="gelu")
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 50)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.layers(self.words(tokens) + self.positions)
        return hidden, self.head(hidden)


def transformer_problem(seed: int, dtype: torch.dtype, **options: str) -> ModuleProblem:
    """Five losses of the transformer on random words."""
    torch.manual_seed(seed)
    model, tokens, meta, wanted = Transformer().to(dtype), *torch.randint(50, (2, 8, 8)), torch.randn(8, 32).to(dtype)

    def losses() -> Tensor:
        hidden, scores = model(tokens)
        pooled, words = hidden.mean(1), scores.flatten(0, 1)
        return torch.stack([cross_entropy(words, tokens.flatten()), cross_entropy(words, tokens.flip(1).flatten()),
                            (pooled - wanted).square().mean(), cross_entropy(pooled @ wanted.T / 32**0.5, torch.arange(8)),
                            scores.logsumexp(-1).square().mean()])  # fmt: skip

    return ModuleProblem(model, losses, lambda: cross_entropy(model(meta)[1].flatten(0, 1), meta.flatten()), **options)


def plot_radius() -> None:
    """Error of J v, v the outer gradient, by differences of every length."""
    figure, axes = panels(("float32", "float64"), xlabel="R, length of the move of w", xscale="log", yscale="log")
    for axis, dtype, low in ((axes[0], SINGLE, -5), (axes[1], DOUBLE, -9)):
        radii = torch.logspace(low, 0, 6 * -low + 1).tolist()
        for product, color in (("one_sided", ORANGE), ("central", BLUE)):
            rule, runs = radius_of(product, dtype), []
            for seed in range(5):
                truth, problem = transformer_problem(seed, DOUBLE, **EXACT), transformer_problem(seed, dtype, product=product)
                v, errors = truth.outer_gradient(), []
                for problem.radius in [*radii, rule]:
                    errors.append(error(problem.jvp(Vector(tuple(piece.to(dtype) for piece in v.pieces))), truth.jvp(v)))
                runs.append(errors)
            best = band(axis, radii, [run[:-1] for run in runs], product.replace("_", "-"), color)
            at_rule = sorted(run[-1] for run in runs)
            axis.plot(rule, at_rule[2], "o", color=color, ms=8, mec="black", label=f"its rule, R = {rule:.0e}")
            print(f"J v, {dtype}, {product}: at R = {rule:.1e} {at_rule[2]:.1e}, up to {at_rule[-1]:.1e}; best {best.min():.1e} "
                  f"at R = {radii[best.argmin()]:.0e}; at R = 0.1 {best[-7]:.1e}")  # fmt: skip
        axis.legend(fontsize=8)
    axes[0].set(ylabel="relative error of J v")
    figure.savefig(FOLDER / "difference_radius.png", dpi=140)


class PlainDifferences(ModuleProblem):
    """Differences of the gradient of g_phi(l(w)) as it stands, to show what the linearised slopes are for."""

    def linearised(self, combiner: nn.Module) -> None:
        return None


def small_case(kind: type[ModuleProblem], seed: int, dtype: torch.dtype, **options: str) -> tuple[ModuleProblem, MELTR]:
    """Three losses of a small network under MELTR of the published size."""
    torch.manual_seed(seed)
    model, combiner = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), MELTR(3)
    nn.init.normal_(combiner.fc1.weight, std=0.1)
    x, y, meta_x, meta_y = (torch.randn(8, n).to(dtype) for n in (4, 3, 4, 3))
    model, combiner = model.to(dtype), combiner.to(dtype)
    losses, primary = lambda: (model(x) - y).square().mean(0), lambda: (model(meta_x) - meta_y)[:, 0].square().mean()
    return kind(model, losses, primary, **options), combiner


def positive_damping(problem: ModuleProblem, combiner: nn.Module) -> float:
    """Makes H + damping I positive definite, of condition about 20."""
    H, like = problem.hessian(combiner), problem.random(0).pieces
    sizes = [piece.numel() for piece in like]
    units = [Vector(tuple(u.view_as(p) for u, p in zip(row.split(sizes), like))) for row in torch.eye(sum(sizes)).double()]
    eigenvalues = torch.linalg.eigvalsh(torch.stack([flat(H(unit).pieces) for unit in units]))
    return 1.05 * max(0.0, -float(eigenvalues[0])) + 0.05 * float(eigenvalues.abs().max())


def plot_kinks(cases: int = 60) -> None:
    """H u and the hypergradient by central differences of gradients in float32, with and without linearised slopes."""
    titles = "H u along a random u", "hypergradient, CG to a residual of 1e-3"
    figure, axes = panels(titles, xlabel="case, sorted", yscale="log")
    for kind, name, color in ((PlainDifferences, "slopes as they are", RED), (ModuleProblem, "linearised slopes", BLUE)):
        rows = []
        for seed in range(cases):
            truth, combiner = small_case(ModuleProblem, seed, DOUBLE, **EXACT)
            u, damping = truth.random(2), positive_damping(truth, combiner)
            exact = flat(truth.hessian(combiner)(u).pieces), flat(hypergradient(truth, combiner, Dense(damping)).total())
            problem, combiner = small_case(kind, seed, SINGLE, product="central", hessian_product="central")
            H_u = problem.hessian(combiner)(Vector(tuple(piece.float() for piece in u.pieces)))
            result = hypergradient(problem, combiner, ConjugateGradient(200, damping, 1e-3))
            errors = error(flat(H_u.pieces), exact[0]), error(flat(result.total()), exact[1])
            rows.append((*errors, result.solution.outcome.name))
        for column, axis in enumerate(axes):
            errors = sorted(row[column] for row in rows)
            axis.plot(range(1, cases + 1), errors, "o", ms=3.5, color=color, label=name)
            above = sum(e > 0.01 for e in errors)
            print(f"{name}: {titles[column]}: median {errors[cases // 2]:.1e}, worst {errors[-1]:.1e}, above 1e-2 {above}")
        wrong = [row[1] for row in rows if row[2] == "CONVERGED" and row[1] > 0.1]
        print(f"{name}: CONVERGED, hypergradient off by above 0.1: {len(wrong)} of {cases}, worst {max(wrong, default=0):.1f}")
    axes[0].set(ylabel="relative error, float32")
    axes[0].legend(fontsize=8)
    figure.savefig(FOLDER / "kinks.png", dpi=140)


def print_loss_space() -> None:
    """How far J v of the loss-space solve is from J b / damping, at the start of MELTR (the plain sum) and away from it."""
    for std in (0.0, 0.01, 0.1):
        problem, combiner = transformer_problem(0, DOUBLE, **EXACT), MELTR(5).double()
        nn.init.normal_(combiner.fc1.weight, std=std)
        J_v, J_b = hypergradient(problem, combiner, LossSpace(1.0)).solution.J_v, problem.jvp(problem.outer_gradient())
        print(f"loss space, damping 1, fc1 of MELTR N(0, {std}^2): |J v - J b| / |J b| = {error(J_v, J_b):.1e}")


class Matrix:
    """`Bilevel` of a given H, as far as solvers look at it."""

    def __init__(self, H: Tensor, fixed_point: FixedPoint | None = None):
        self.H, self.fixed_point = H, fixed_point

    def hessian(self) -> Callable[[Vector], Vector]:
        return lambda u: Vector((self.H @ u.pieces[0],))

    def random(self, seed: int) -> Vector:
        return Vector((torch.randn(len(self.H), generator=torch.Generator().manual_seed(seed)).double(),))

    def v(self, solver: Callable, b: Tensor) -> Tensor:
        return solver(self, Vector((b,)), None).v.pieces[0]


def textbook_cg(H: Tensor, b: Tensor, iterations: int) -> Tensor:
    """Without the stop at negative curvature."""
    x, r, d = torch.zeros_like(b), b, b
    for _ in range(iterations):
        alpha = (r @ r) / (d @ H @ d)
        x, after = x + alpha * d, r - alpha * H @ d
        d, r = after + (after @ after) / (r @ r) * d, after
    return x


def curves(H: Tensor, b: Tensor, damping: float, low_rank_damping: float, ks: list[int], score: Callable) -> dict[str, list]:
    """Score of v after k products, for each solver that takes products."""
    level, step = Matrix(H), 1.0 / (float(torch.linalg.matrix_norm(H, 2)) + damping)
    return {"identity": [score(b)] * len(ks), "Neumann": [score(level.v(Neumann(k, step, damping), b)) for k in ks],
            "CG": [score(level.v(ConjugateGradient(k, damping), b)) for k in ks],
            "Nystrom, rank = products": [score(level.v(Nystrom(k, low_rank_damping), b)) for k in ks]}  # fmt: skip


def plot_solvers(size: int = 100, seeds: int = 10) -> None:
    titles = "a spread spectrum, 0.01 to 1", "10 eigenvalues of 100 above damping", "the first with noise: indefinite"
    ks, eye, runs = [1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 56, 80], torch.eye(size).double(), ([], [], [])
    for seed in range(seeds):
        torch.manual_seed(seed)
        Q, b = torch.linalg.qr(torch.randn(size, size).double()).Q, torch.randn(size).double()
        spread = Q @ torch.diag(torch.logspace(-2, 0, size).double()) @ Q.T
        few = Q @ torch.diag(torch.cat([torch.logspace(-3, -2, size - 10), torch.logspace(0, 2, 10)]).double()) @ Q.T
        for H, damping, kept in ((spread, 0.01, runs[0]), (few, 0.1, runs[1])):
            exact = torch.linalg.solve(H + damping * eye, b)
            best = float(b @ exact / (b @ b))  # the identity has no length of its own: it gets the best there is
            kept.append(curves(H, b, damping, damping, ks, lambda v: error(best * v if v is b else v, exact)))
        noise, exact = torch.randn(size, size).double(), torch.linalg.solve(spread, b)
        bent = spread + 0.006 * (noise + noise.T)
        runs[2].append(curves(bent, b, 0.0, 0.2, ks, lambda v: cosine(v, exact)) | {
            "textbook CG": [cosine(textbook_cg(bent, b, k), exact) for k in ks],
            "CG, damping 0.2": [cosine(Matrix(bent).v(ConjugateGradient(k, 0.2), b), exact) for k in ks]})  # fmt: skip
        if seed == 0:
            print(f"indefinite: smallest eigenvalue {torch.linalg.eigvalsh(bent)[0]:.2f}")
    styles = {"identity": (GREY, ":"), "Neumann": (GREEN,), "CG": (BLUE,), "Nystrom, rank = products": (ORANGE,),
              "textbook CG": (RED, "--"), "CG, damping 0.2": (PURPLE,)}  # fmt: skip
    figure, axes = panels(titles, xlabel="products H u", xscale="log")
    for axis, title, found in zip(axes, titles, runs):
        for name in found[0]:
            listed(title, name, ks, band(axis, ks, [run[name] for run in found], name, *styles[name]).tolist())
    for axis, label in zip(axes, ("relative error of v", "", "cosine of v to the answer without noise")):
        axis.set(ylabel=label, **({} if axis is axes[2] else {"yscale": "log", "ylim": (1e-6, 20)}))
    axes[0].legend(fontsize=8, loc="lower left")
    axes[2].legend(*(part[-2:] for part in axes[2].get_legend_handles_labels()), fontsize=8, loc="lower right")
    figure.savefig(FOLDER / "solvers.png", dpi=140)


def print_adam() -> None:
    """Diagonal H of condition 1e4 that Adam's D^-1 knows within a factor of 3; cosine of v to H^-1 b."""
    torch.manual_seed(2)
    curvature, b = torch.logspace(-2, 2, 60).double(), torch.randn(60).double()
    scale = curvature * (0.5 + torch.rand(60).double())
    level = Matrix(torch.diag(curvature), FixedPoint([0.0], Vector((scale,))))
    for adam in ("ignore", "precondition", "fixed_point"):
        step = 1.0 / float((curvature if adam == "ignore" else curvature * scale.mean() / scale).max())
        solvers = {"Neumann(5)": Neumann(5, step, 0.0, adam), "CG(5)": ConjugateGradient(5, 0.0, 0.0, adam),
                   "CG(5, damping 1)": ConjugateGradient(5, 1.0, 0.0, adam)}  # fmt: skip
        solvers |= {} if adam == "precondition" else {"identity": Identity(adam)}
        found = ", ".join(f"{name} {cosine(level.v(solver, b), b / curvature):.3f}" for name, solver in solvers.items())
        to_tolerance = ConjugateGradient(500, 0.0, 1e-6, adam)(level, Vector((b,)))
        print(f"adam={adam}: {found}; CG to 1e-6: {to_tolerance.num_products} products")


def plot_unrolled() -> None:
    """Three least-squares losses and w^2 / 2, phi their weights; errors against the derivative of the true optimum."""
    torch.manual_seed(1)
    A, c = torch.randn(3, 12, 30).double() * torch.logspace(0, -0.7, 30).double(), torch.randn(3, 12).double()
    target, module = torch.randn(30).double(), nn.Linear(30, 1, bias=False).double()
    combiner = FixedWeights([1.0, 0.5, 2.0, 1.0]).double()
    combiner.weights = nn.Parameter(combiner.weights)

    def losses() -> Tensor:
        return torch.cat([0.5 * (A @ module.weight[0] - c).square().sum(1), 0.5 * module.weight.square().sum()[None]])

    def primary() -> Tensor:
        return 0.5 * (module.weight[0] - target).square().sum()

    def implicit(w: Tensor, solver: Callable) -> Tensor:
        module.weight.data = w[None].clone()
        return flat(hypergradient(ModuleProblem(module, losses, primary, **EXACT), combiner, solver).total())

    def unrolled(w: Tensor, steps: int) -> Tensor:
        module.weight.data = w[None].clone()
        return flat(unrolled_hypergradient(module, losses, primary, combiner, steps, rate))

    p = combiner.weights.detach()
    H = sum(q * a.T @ a for q, a in zip(p, A)) + p[3] * torch.eye(30).double()
    rate, pull = 1.0 / float(torch.linalg.eigvalsh(H)[-1]), sum(q * a.T @ b for q, a, b in zip(p, A, c))
    ks, on_the_way = [1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 300], [torch.zeros(30).double()]
    w = torch.linalg.solve(H, pull)
    exact, identity = implicit(w, Dense()), implicit(w, Identity())
    for _ in range(max(ks)):  # inner steps from 0
        on_the_way.append(on_the_way[-1] - rate * (H @ on_the_way[-1] - pull))
    titles = f"from the inner optimum, condition {torch.linalg.cond(H):.0f}", "from w = 0, after K inner steps"
    figure, axes = panels(titles, xlabel="K", xscale="log", yscale="log")
    for axis, name, style, color, take in (
        (0, "unrolled, K steps", "-", ORANGE, lambda k: unrolled(w, k)),
        (0, "Neumann, K - 1 terms", "--", GREEN, lambda k: implicit(w, Neumann(k - 1, rate)) if k > 1 else rate * identity),
        (0, "CG, K products", "-", BLUE, lambda k: implicit(w, ConjugateGradient(k))),
        (1, "unrolled through all K steps", "-", ORANGE, lambda k: unrolled(on_the_way[0], k)),
        (1, "implicit, exact solve, at step K", "-", RED, lambda k: implicit(on_the_way[k], Dense())),
    ):  # fmt: skip
        errors = [error(take(k), exact) for k in ks]
        axes[axis].plot(ks, errors, style, color=color, label=name, lw=4 if axis == 0 and color == ORANGE else 1.8)
        listed(titles[axis], name, ks, errors)
    for axis, low in zip(axes, (1e-6, 1e-3)):
        axis.set(ylim=(low, 3), ylabel="relative error of the hypergradient" if low == 1e-6 else "")
        axis.legend(fontsize=8, loc="lower left")
    figure.savefig(FOLDER / "unrolled.png", dpi=140)


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10})
    for task in (plot_radius, plot_kinks, print_loss_space, plot_solvers, print_adam, plot_unrolled):
        print(f"\n{task.__name__}")
        task()
