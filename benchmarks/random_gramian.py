"""A Gramian by random forward passes beside the exact one: how far its cosines and the steps taken by it are off, and what each costs.

python benchmarks/random_gramian.py                # errors, UniVL tiny: two minutes on a quiet core
python benchmarks/random_gramian.py --cost base    # seconds of a pass and of T backward passes, UniVL base: five minutes, 12 GB
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import Tensor
from univl_case import Case, losses, make_batch, make_model, make_problem

from meltr_ray.combining.aligned import closed_form
from meltr_ray.combining.named import WAYS
from meltr_ray.config import CombinerConfig
from meltr_ray.hypergrad import ModuleProblem
from meltr_ray.video.backbones.univl.settings import UNIVL_LOSSES

COUNTS = (16, 64, 256, 1024, 4096)
PRIMARY = "joint"
STEPS = 60
"""Of training before the look."""
ROUNDS = 1
"""Of the largest count."""


def cosines(G: Tensor) -> Tensor:
    length = G.diagonal().sqrt()
    return G / torch.outer(length, length)


def steps(G: Tensor, c: Tensor, primary: int) -> dict[str, Tensor]:
    """Slopes (T,) of several ways by this Gramian; `aligned` with c as it is, the metric being the plain one."""
    order = [primary, *(t for t in range(len(G)) if t != primary)]
    found = {"aligned": closed_form(c, G, primary, 0.25)}
    for name in ("upgrad", "mgda", "fairgrad"):
        found[name] = torch.zeros(len(G), dtype=G.dtype)
        found[name][order] = WAYS[name].made(CombinerConfig(name=name))(G[order][:, order])
    return found


def between(G: Tensor, a: Tensor, b: Tensor) -> float:
    """Cosine of the steps J' a and J' b."""
    return float(a @ G @ b / ((a @ G @ a) * (b @ G @ b)).sqrt())


def errors(rows: Tensor, G: Tensor, c: Tensor, primary: int) -> dict[int, dict[str, float]]:
    """By number of draws: root mean square error of the cosines, and each way's mean cosine to its own step by the exact Gramian.

    Args:
        rows: draws J z, (n, T); each count takes as many disjoint groups of them as there are, 64 at most.
        G: exact, (T, T).
        c: alignments of the losses, (T,).
    """
    right, found = steps(G, c, primary), {}
    pairs = torch.triu_indices(len(G), len(G), 1)
    for count in (count for count in COUNTS if count <= len(rows)):
        looks = [group.T @ group / count for group in rows.split(count)[: min(64, len(rows) // count)]]
        off = torch.stack([(cosines(look) - cosines(G))[pairs[0], pairs[1]] for look in looks])
        taken = [steps(look, c, primary) for look in looks]
        found[count] = {"rms": float(off.square().mean().sqrt()), "worst": float(off.abs().max())}
        found[count] |= {name: sum(between(G, each[name], right[name]) for each in taken) / len(taken) for name in right}
    return found


def trained_case(case: Case) -> torch.nn.Module:
    model = make_model(case, True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    for step in range(STEPS):
        optimizer.zero_grad()
        losses(model, make_batch(case, 100 + step % 8)).sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def table(found: dict[int, dict[str, float]]) -> str:
    names = list(next(iter(found.values())))
    lines = ["| draws | 1 / sqrt | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 2)]
    return "\n".join(
        lines
        + [f"| {count} | {count**-0.5:.3f} | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |" for count, row in found.items()]
    )


def print_errors() -> None:
    case = Case(size="tiny", batch_size=3, frames=8, words=8)
    model, train, meta = trained_case(case), make_batch(case, 10), make_batch(case, 11)
    problem = ModuleProblem(model, lambda: losses(model, train), lambda: model(meta, (PRIMARY,))[PRIMARY], product="one_sided")
    gradients = problem.loss_gradients()
    G = torch.stack([row.dots(gradients) for row in gradients])
    c = torch.stack([row.dots([problem.outer_gradient()])[0] for row in gradients])
    rows = problem.projections(range(ROUNDS * max(COUNTS)))
    alive = [t for t in range(len(G)) if rows[:, t].count_nonzero() > len(rows) / 2]  # not those that random data leave without gradient
    print("losses", [UNIVL_LOSSES[t] for t in alive], "\ncosines\n", cosines(G[alive][:, alive]).numpy().round(2))
    print(table(errors(rows[:, alive], G[alive][:, alive], c[alive], alive.index(UNIVL_LOSSES.index(PRIMARY)))))


def print_cost(size: str) -> None:
    case = Case(size=size)
    problem = make_problem(case, make_model(case, True), product="one_sided")
    for name, run in (("draw of z", lambda: problem.random(0)), ("a random pass", lambda: problem.projections([1])),
                      ("T backward passes", lambda: problem.loss_gradients())):  # fmt: skip
        problem.losses()  # the inner step's own
        run()
        started = time.perf_counter()
        run()
        print(f"{name}: {time.perf_counter() - started:.2f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cost", metavar="SIZE")
    given = parser.parse_args()
    print_cost(given.cost) if given.cost else print_errors()
    return 0


if __name__ == "__main__":
    sys.exit(main())
