"""What the solvers of `aid.solver` cost and how far off they are, on a trained model of a run whose Hessian fits in memory.

The reference is a dense solve of the same damped system in float64; costs are passes, counted by the problem itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from analysis.melting import combined
from analysis.plots import OKABE_ITO, _figure, _title
from meltr_ray.config import Config
from meltr_ray.config import file as config_file
from meltr_ray.errors import check
from meltr_ray.hypergrad import ModuleProblem, hypergradient
from meltr_ray.hypergrad.low_rank import LossSpace, Nystrom
from meltr_ray.hypergrad.solvers import ConjugateGradient, Dense, Identity, Neumann, Solver
from meltr_ray.storage.sealed import whole_of
from meltr_ray.training.batches import Batches
from meltr_ray.training.evaluation import saved_module

BACKWARD = 2.0
"""Forward passes that a backward pass costs."""
SIZES = (1, 2, 3, 5, 10, 20)
"""Iterations, or ranks, that are tried."""


def solvers(damping: float, step: float) -> Iterator[tuple[str, int, Solver]]:
    """(name, iterations or rank, solver); 0 where there is no such number."""
    yield "identity", 0, Identity()
    yield "loss_space", 0, LossSpace(damping)
    for size in SIZES:
        yield "neumann", size, Neumann(size, step, damping)
        yield "cg", size, ConjugateGradient(size, damping)
        yield "nystrom", size, Nystrom(size, damping)


def errors(module: nn.Module, combiner: nn.Module, losses: Any, primary: Any, damping: float, step: float) -> pd.DataFrame:
    """A row a solver: `size`, `passes` of a meta step in forwards, `error`, how far J v is from that of the dense solve, relative, and `angle`.

    `angle`: degrees between the two: a factor of the whole, which Adam doesn't see, is no error of it.

    Args:
        module, combiner: in float64.
        losses, primary: as `ModuleProblem` takes them.
        damping: of every solver and of the reference.
        step: of the Neumann series.
    """

    def alignments(solver: Solver) -> tuple[Tensor, float]:
        problem = ModuleProblem(module, losses, primary, hessian_product="double_backward")  # exact
        result = hypergradient(problem, combiner, solver)
        passes = problem.passes()
        assert result.alignments is not None
        return result.alignments.mean(0).double(), passes["forward"] + BACKWARD * passes["backward"]

    exact, _ = alignments(Dense(damping))
    records = []
    for name, size, solver in solvers(damping, step):
        found, passes = alignments(solver)
        cosine = float(torch.nn.functional.cosine_similarity(found, exact, dim=0))
        records.append({"solver": name, "size": size, "passes": passes, "error": float((found - exact).norm() / exact.norm()),
                        "angle": float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))})  # fmt: skip
    return pd.DataFrame(records)


def errors_of_run(folder: Path | str, damping: float = 0.1) -> pd.DataFrame:
    """`errors` on the weights of a finished run or trial, its g_phi, its first batch and a meta batch; without dropout.

    Raises:
        ConfigError: its model has more weights than a dense solve takes, or it has no learned g_phi.
    """
    folder = Path(folder)
    config = config_file.read(whole_of(folder / "config.yaml"))
    module = saved_module(config, folder / "best.safetensors").double().eval()
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    check(
        count <= Dense.LIMIT,
        "folder",
        folder,
        f"has {count} weights, and a dense solve takes {Dense.LIMIT}; give the run of a smaller model",
    )
    _, course = combined(folder)
    batch, held_out = (_first_batch(config, split) for split in ("train", "meta"))
    names = config.losses.set
    return errors(module, course[-1].combiner.double(), lambda: torch.stack([module(batch, names)[name] for name in names]),
                  lambda: module(held_out, (config.losses.primary,))[config.losses.primary], damping, config.aid.neumann_step)  # fmt: skip


def _first_batch(config: Config, split: str) -> Any:
    return _doubled(Batches(config.workload, split, config.train.batch_size, config.seed)[0])


def _doubled(batch: Any) -> Any:
    """Nested lists, tuples and dictionaries of tensors, those of floats in float64."""
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: _doubled(value) for key, value in batch.items()}
    return type(batch)(_doubled(each) for each in batch) if isinstance(batch, (list, tuple)) else batch


PASSES_SHOWN = (4, 8, 16, 32)
"""On the axis, which is logarithmic."""


def plot(tables: dict[float, pd.DataFrame]) -> Figure:
    """A panel a damping: angle against cost, a line a solver."""
    figure, axes = _figure(4.2 * len(tables), 3.4, len(tables))
    for (damping, table), axis in zip(tables.items(), axes):
        for number, (name, rows) in enumerate(table.groupby("solver", sort=False)):
            axis.plot(rows.passes, rows.angle.clip(lower=1e-4), "o-", color=OKABE_ITO[number], ms=4, lw=1.2, label=name)
        axis.set_yscale("log")
        axis.set_xscale("log")
        axis.set_xticks(PASSES_SHOWN, [str(passes) for passes in PASSES_SHOWN])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("passes of a meta step (in forwards)")
        _title(axis, f"damping {damping:g}")
    axes[0].set_ylabel("degrees off the dense solve")
    axes[-1].legend(fontsize=8)
    return figure
