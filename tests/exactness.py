"""Every product and solver on every problem of tests/problems.py against dense float64: `python -m tests.exactness [--write]`.

Prints the tables and ends with 1 if a rule is broken; `--write` puts them in docs/exactness.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Callable, Iterator, Optional

import torch
from torch import Tensor

from meltr_ray.hypergrad import ConjugateGradient, Dense, Identity, LossSpace, Neumann, Nystrom
from meltr_ray.hypergrad.solvers import Solver
from tests.problems import EXACT, FACTORIES, Case, LossesCase, case
from tests.reference import flat, relative_error, textbook_conjugate_gradient, truncated_neumann

DOCUMENT = Path(__file__).parents[1] / "docs" / "exactness.md"
DOUBLE, SINGLE = torch.float64, torch.float32

KIND = {"double_backward": "exact", "forward": "exact", "forward_over_reverse": "exact", "gauss_newton": "exact",
        "rows": "exact", "central": "central", "one_sided": "one-sided"}  # fmt: skip

RULES: dict[tuple[str, torch.dtype], float] = {
    ("exact", DOUBLE): 1e-10,  # rounding, 1e-16, grown by the condition of A and by cancellation among losses
    ("exact", SINGLE): 3e-4,  # the same from 6e-8
    ("central", DOUBLE): 1e-6,  # step cbrt(u) = 6e-6: curvature and rounding err by its square, 4e-11, times losses / derivative
    ("central", SINGLE): 5e-2,  # step 5e-3: 2e-5, the same
    ("one-sided", DOUBLE): 1e-5,  # step sqrt(u) = 1e-8, and so the error
    ("one-sided", SINGLE): 1e-1,  # step 3e-4
}
"""Largest relative error |got - dense| / |dense| allowed; 2 to 300 times the worst that was measured."""

TRUE_OPTIMUM_RULE = 1e-6
"""Against differences of the solved inner problem: their own error is below 1e-8."""

BENIGN_CONDITION = 1e3
"""Up to this condition number of A the rules hold as they are; beyond, a solve may err by as many times more."""

LARGEST_FULL_RANK = 20
"""Nystrom with rank p is asked of problems this small."""

LARGEST_DENSE = 100
"""Dense with differences, and in float32, is asked of problems this small: it takes p products."""


def solve_growth(case: Case) -> float:
    return max(1.0, case.condition / BENIGN_CONDITION)


def sketch_growth(case: Case) -> float:
    """Nystrom's pseudo-inverse is cut where rounding drowns an eigenvalue of the sketch."""
    return max(1.0, case.condition)


def no_growth(case: Case) -> float:
    return 1.0


@dataclass(frozen=True)
class Method:
    """A solver with the dense formula of its v.

    Args:
        make: (case, tolerance) -> solver.
        dense_v: case -> v (p,), float64.
        growth: case -> by how much a solve may exceed the rule of its products.
        products: pairs (product, hessian_product) to try.
        admits: case, precision, pair -> whether this is asked.
    """

    name: str
    make: Callable[[Case, float], Solver]
    dense_v: Callable[[Case], Tensor]
    growth: Callable[[Case], float] = solve_growth
    products: tuple[tuple[str, str], ...] = (
        (EXACT, EXACT), ("forward", "forward_over_reverse"), ("central", "central"), ("one_sided", "one_sided"))  # fmt: skip
    admits: Callable[[Case, torch.dtype, str], bool] = lambda case, dtype, product: True


def damped_solve(case: Case) -> Tensor:
    return torch.linalg.solve(case.A, case.reference.outer_gradient)


def gauss_newton_solve(case: Case) -> Tensor:
    return torch.linalg.solve(case.gauss_newton, case.reference.outer_gradient)


METHODS = [
    Method("Identity", lambda case, tolerance: Identity(), lambda case: case.reference.outer_gradient, no_growth),
    Method("Neumann, 20 terms", lambda case, tolerance: Neumann(20, case.neumann_step, case.damping),
           lambda case: truncated_neumann(case.A, case.reference.outer_gradient, 20, case.neumann_step), no_growth),
    Method("CG, 4 iterations", lambda case, tolerance: ConjugateGradient(4, case.damping),
           lambda case: textbook_conjugate_gradient(case.A, case.reference.outer_gradient, 4)),
    Method("CG to tolerance", lambda case, tolerance: ConjugateGradient(1000, case.damping, tolerance), damped_solve),
    Method("Dense", lambda case, tolerance: Dense(case.damping), damped_solve,
           admits=lambda case, dtype, product: case.p <= LARGEST_DENSE or (dtype, product) == (DOUBLE, EXACT)),
    Method("Nystrom, full rank", lambda case, tolerance: Nystrom(case.rank or case.p, case.damping), damped_solve, sketch_growth,
           admits=lambda case, dtype, product: case.p <= LARGEST_FULL_RANK),
    Method("LossSpace", lambda case, tolerance: LossSpace(case.gauss_newton_damping), gauss_newton_solve, no_growth,
           products=(("rows", "rows"),), admits=lambda case, dtype, product: isinstance(case, LossesCase)),
    Method("CG, Gauss-Newton", lambda case, tolerance: ConjugateGradient(1000, case.gauss_newton_damping, tolerance),
           gauss_newton_solve, no_growth, products=((EXACT, "gauss_newton"), ("forward", "gauss_newton")),
           admits=lambda case, dtype, product: isinstance(case, LossesCase)),
]  # fmt: skip

TOLERANCE = {DOUBLE: 1e-13, SINGLE: 1e-6}
"""Relative residual at which CG may stop."""


@dataclass(frozen=True)
class Cell:
    """One measured error; `rule` None: shown, and nothing is asked, since the rule would allow an error of 1 or more."""

    table: str
    row: str
    rule_name: str
    problem: str
    error: float
    rule: Optional[float]

    @property
    def holds(self) -> bool:
        return self.rule is None or self.error <= self.rule  # false for a nan

    def __str__(self) -> str:
        return f"{self.problem}: {self.row}: relative error {self.error:.2e}, rule {self.rule:.0e}"


def error_of(got: Tensor, expected: Tensor) -> float:
    """Relative error; the absolute one where the answer is zero (J^T G J under a linear combiner)."""
    return relative_error(got, expected) if expected.any() else float(got.norm())


def product_cells(name: str, dtype: torch.dtype) -> Iterator[Cell]:
    """J v, or the mixed product of a `BilevelProblem`, and H u, of random directions."""
    this, precision = case(name, dtype), _precision(dtype)
    for product in ("double_backward", "forward", "central", "one_sided"):
        rule = RULES[KIND[product], dtype]
        yield Cell("products", f"J v | {product} | {precision}", f"{rule:.0e}", name, error_of(*this.mixed_product(product)), rule)
    for product in ("double_backward", "forward_over_reverse", "central", "one_sided", "gauss_newton"):
        if product != "gauss_newton" or isinstance(this, LossesCase):
            rule = RULES[KIND[product], dtype]
            yield Cell("products", f"H u | {product} | {precision}", f"{rule:.0e}", name, error_of(*this.hessian_product(product)), rule)


def solver_cells(name: str, dtype: torch.dtype) -> Iterator[Cell]:
    """The implicit term of the hypergradient, (q,)."""
    this, precision = case(name, dtype), _precision(dtype)
    for method in METHODS:
        dense = None
        for product, hessian_product in method.products:
            if not method.admits(this, dtype, product):
                continue
            if dense is None:
                dense = -this.reference.mixed.T @ method.dense_v(this)
            options = {} if product == "rows" else {"product": product, "hessian_product": hessian_product}
            got = flat(this.hypergradient(method.make(this, TOLERANCE[dtype]), **options).implicit).double()
            base = RULES[KIND[product], dtype]
            rule = base * method.growth(this)
            label = product if hessian_product in (product, "rows") else f"{product}, {hessian_product}"
            yield Cell(f"solvers, {precision}", f"{method.name} | {label}", f"{base:.0e}", name, error_of(got, dense),
                       rule if rule < 1 else None)  # fmt: skip


def optimum_cells(name: str) -> Iterator[Cell]:
    """dF/dphi against differences of F at inner optima solved anew, which no formula of implicit differentiation is part of."""
    this = case(name)
    if this.optimum is None:
        return
    expected = difference_of_the_true_optimum(this)
    for label, solver in (("Dense", Dense()), ("CG to tolerance", ConjugateGradient(1000, tolerance=1e-14))):
        got = flat(this.hypergradient(solver).total())
        yield Cell("true optimum", label, f"{TRUE_OPTIMUM_RULE:.0e}", name, error_of(got, expected), TRUE_OPTIMUM_RULE)


def difference_of_the_true_optimum(case: Case, step: float = 3e-3) -> Tensor:
    """d/dphi F(w*(phi), phi), (q,), by the central difference of four points, whose error is O(step^4)."""

    def outer(phi: Tensor) -> Tensor:
        return case.reference.outer(case.optimum(phi), phi)

    return four_point_difference(outer, case.phi, step)


def four_point_difference(function: Callable[[Tensor], Tensor], x: Tensor, step: float) -> Tensor:
    """Gradient, (n,), of a scalar function of x (n,)."""

    def slope(direction: Tensor) -> Tensor:
        near = function(x + step * direction) - function(x - step * direction)
        far = function(x + 2 * step * direction) - function(x - 2 * step * direction)
        return (8 * near - far) / (12 * step)

    with torch.no_grad():
        return torch.stack([slope(direction) for direction in torch.eye(len(x), dtype=x.dtype)])


@cache
def cells(name: str) -> list[Cell]:
    """All that is measured on one problem."""
    found = list(optimum_cells(name))
    for dtype in (DOUBLE, SINGLE):
        found += [*product_cells(name, dtype), *solver_cells(name, dtype)]
    return found


def _precision(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -- the document ---------------------------------------------------------------------------------------------------------

HEADER = """# Exactness

Made by `python -m tests.exactness --write`; `tests/test_exactness.py` holds the same rules.

**How to read it.** Every number is a relative error |got - dense| / |dense|: a wrong length counts as much as a wrong
direction. `dense` is computed in float64 at the same weights. The Hessian, the Jacobian and the mixed derivative are formed row by
row, and v follows from these matrices by the solver's own formula: v = b for Identity, a sum of matrix powers for Neumann, four
iterations of a textbook CG in numpy for CG, and a dense solve for the others. The column "rule" has the largest error that the
tests allow. **Bold**: an error above its rule.

**Rules.** Double backward and forward mode err by rounding, multiplied by the condition number of A = H + damping I. A central
difference moves w by about cbrt(u), where u is the rounding unit, and errs by about its square. A one-sided difference moves w by
sqrt(u) and errs by about as much. Both errors grow with |losses| / |derivative along v|. On the badly scaled problem (condition
number 5e5), the error of a solve may be 500 times its rule. On every problem, Nystrom's error may be its rule times the condition
number, because its pseudo-inverse is cut off where rounding hides the sketch.
An error in brackets has no rule: these factors make its rule so large that it demands nothing. An empty cell was not measured
(LossSpace needs losses; a full rank above 20; 564 columns by differences).

**Problems** (`tests/problems.py`): `quadratic` has three losses; `curved` has the same under a combiner that is quadratic in the
losses; `badly scaled` has losses of scale 1e-3, 1 and 1e3; `low rank` has rank 4 of 12; `indefinite` has eigenvalues of both signs;
`ridge` regression is written in two ways, with four losses and with log strengths as phi; `logistic` regression has weights of
examples and a log strength as phi; `perceptron` has three losses under MELTR; `micro-batches` has two micro-batches of it, with
dropout; `transformer` has one layer with dropout and five losses under MELTR, one negative and one constant.
"""

ORDER = ["true optimum", "products", "solvers, float64", "solvers, float32"]

TITLES = {
    "true optimum": ("Against the true optimum", """
The whole hypergradient dF/dphi is compared with four-point differences of F, for which the inner optimum is solved again to 1e-12.
Products by double backward, in float64, without damping.
""", "solver"),
    "products": ("Products", """
Products J v and H u along random directions ([hypergradients.md](hypergradients.md) explains them). If phi doesn't belong to a
combiner (ridge by strengths, logistic), `J v` is the mixed product d_phi <d_w L, v>. `gauss_newton` is compared with J^T G J, which
is 0 under a linear combiner.
""", "product | by | precision"),
    "solvers, float64": ("Solvers, float64", """
The error of the implicit term of the hypergradient. The damping is so large that A is positive definite.
""", "solver | products by"),
    "solvers, float32": ("Solvers, float32", """
The same, in float32.
""", "solver | products by"),
}  # fmt: skip


def markdown(measured: list[Cell]) -> str:
    names = list(FACTORIES)
    parts = [HEADER]
    for table in ORDER:
        mine = [cell for cell in measured if cell.table == table]
        title, text, head = TITLES[table]
        columns = [name for name in names if any(cell.problem == name for cell in mine)]
        width = head.count("|") + 2 + len(columns)
        lines = [f"| {head} | rule | " + " | ".join(columns) + " |", "|---" * width + "|"]
        for row in dict.fromkeys(cell.row for cell in mine):
            by_problem = {cell.problem: cell for cell in mine if cell.row == row}
            rule = next(iter(by_problem.values())).rule_name
            shown = [_shown(by_problem[name]) if name in by_problem else "" for name in columns]
            lines.append(f"| {row} | {_short(rule)} | " + " | ".join(shown) + " |")
        parts.append(f"## {title}{text}\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _shown(cell: Cell) -> str:
    text = _short(f"{cell.error:.0e}") if cell.error else "0"
    return f"({text})" if cell.rule is None else text if cell.holds else f"**{text}**"


def _short(number: str) -> str:
    """3e-09 -> 3e-9"""
    return number.replace("e-0", "e-").replace("e+0", "e+")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.exactness", description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.parent.name}/{DOCUMENT.name} as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # matrices this small lose by more
    measured = [cell for name in FACTORIES for cell in cells(name)]
    text = markdown(measured)
    print(text)
    if options.write:
        DOCUMENT.write_text(text)
    broken = [cell for cell in measured if not cell.holds]
    print(*(f"BROKEN {cell}" for cell in broken), f"{len(measured)} errors, {len(broken)} above their rule", sep="\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
