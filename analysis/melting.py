"""What a learned g_phi does to losses: how it transforms each of them, how it melts them together, over training.

Reads the checkpoints of one run (`train.checkpoints_kept` says how many are there) and the losses of its results table. After the
qualitative analyses of MELTR (arXiv 2303.13009, section 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from analysis.plots import OKABE_ITO, _figure, _title
from meltr_ray.combining.named import WAYS
from meltr_ray.config import file as config_file
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from meltr_ray.storage.sealed import whole_of
from meltr_ray.training import checkpoint

SPAN = np.linspace(0.25, 2.0, 36)
"""Multiples of a loss's value that curves and surfaces run over."""


@dataclass(frozen=True)
class Combined:
    """g_phi after `step` steps, and the losses (T,) that it met there."""

    step: int
    combiner: nn.Module
    losses: Tensor


def combined(folder: Path) -> tuple[list[str], list[Combined]]:
    """Names of the losses, and g_phi at each checkpoint of a run or a trial, oldest first.

    Raises:
        ConfigError: the run has no combiner that is learned, or no checkpoint.
    """
    folder = Path(folder)
    config = config_file.read(whole_of(folder / "config.yaml"))
    rows = {row["step"]: row for row in results.read_trial(folder) if row["split"] == "validation"}
    names, found = list(config.losses.set), []
    if not hasattr(WAYS[config.combiner.name], "made"):
        raise ConfigError(f"folder={folder}: combiner.name={config.combiner.name} learns no g_phi; give a run of meltr or own")
    for place in sorted((folder / "checkpoints").glob("step-*")):
        shared, _, facts = checkpoint.load(place, 0)
        step = facts["progress"]["step"]
        combiner = WAYS[config.combiner.name].of(config, config.workload).combiner
        combiner.load_state_dict(
            {name.removeprefix("meta/combiner/"): t for name, t in shared.items() if name.startswith("meta/combiner/")}
        )
        row = rows.get(step) or rows[min(rows, key=lambda other: abs(other - step))]
        found.append(Combined(step, combiner.eval(), torch.tensor([row[f"loss.{name}"] for name in names])))
    if not found:
        raise ConfigError(f"folder={folder}: has no checkpoint; give a run that has")
    return names, found


def slopes(combiner: nn.Module, losses: Tensor) -> np.ndarray:
    """d g_phi / d l, (N, T), of N vectors of losses (N, T)."""
    rows = losses.clone().requires_grad_()
    (found,) = torch.autograd.grad(torch.stack([combiner(row) for row in rows]).sum(), rows)
    return found.detach().numpy()


def curve(one: Combined, t: int, span: Sequence[float] = SPAN) -> np.ndarray:
    """g_phi minus its value where it stands, (len(span),), as loss `t` runs over multiples of its value and the others are held."""
    with torch.no_grad():
        return np.array([float(one.combiner(_scaled(one.losses, {t: factor})) - one.combiner(one.losses)) for factor in span])


def surface(one: Combined, s: int, t: int, span: Sequence[float] = SPAN) -> np.ndarray:
    """g_phi, (len(span), len(span)), over multiples of loss `s` (rows) and loss `t` (columns)."""
    with torch.no_grad():
        return np.array([[float(one.combiner(_scaled(one.losses, {s: a, t: b}))) for b in span] for a in span])


def melting(one: Combined) -> np.ndarray:
    """(T, T): by how much the slope of loss s changes when loss t doubles, to first order: l_t d a_s / d l_t. 0 where losses are added up."""
    return torch.autograd.functional.hessian(one.combiner, one.losses).numpy() * one.losses.numpy()


def plot_transforms(names: list[str], course: list[Combined]) -> Figure:
    """A panel a loss, a line a checkpoint: how g_phi transforms it; dashed: the plain sum."""
    figure, axes = _figure(3 * len(names), 3, len(names))
    for t, (name, axis) in enumerate(zip(names, axes)):
        for number, one in enumerate(course):
            shade = (number + 1) / len(course)
            axis.plot(
                SPAN * float(one.losses[t]),
                curve(one, t),
                color=OKABE_ITO[t % len(OKABE_ITO)],
                alpha=0.25 + 0.75 * shade,
                label=f"step {one.step}",
            )
        last = course[-1].losses[t]
        axis.plot(SPAN * float(last), (SPAN - 1) * float(last), "--", color="#999999", label="plain sum")
        _title(axis, name)
        axis.set_xlabel("loss")
    axes[0].set_ylabel("change of g_phi")
    axes[-1].legend(fontsize=8)
    return figure


def plot_melting(names: list[str], one: Combined) -> Figure:
    """The matrix of `melting`: which loss changes the weight of which."""
    figure, (axis,) = _figure(1.2 + 0.8 * len(names), 1 + 0.6 * len(names))
    matrix = melting(one)
    most = max(np.abs(matrix).max(), 1e-12)
    image = axis.imshow(matrix, cmap="RdBu_r", vmin=-most, vmax=most)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.grid(False)
    for s, t in np.ndindex(matrix.shape):
        pale = abs(matrix[s, t]) > 0.6 * most
        axis.text(t, s, f"{matrix[s, t]:+.1g}", ha="center", va="center", fontsize=8, color="white" if pale else "black")
    axis.set_xlabel("loss that doubles")
    axis.set_ylabel("loss whose slope changes")
    _title(axis, f"step {one.step}")
    figure.colorbar(image, ax=axis, shrink=0.8)
    return figure


def plot_surface(names: list[str], one: Combined, s: int, t: int) -> Figure:
    """g_phi over two losses: straight, parallel lines are a weighted sum."""
    figure, (axis,) = _figure(5, 4)
    x, y = (SPAN * float(one.losses[loss]) for loss in (t, s))
    lines = axis.contour(x, y, surface(one, s, t), 12, colors="#0072B2", linewidths=1)
    axis.clabel(lines, fontsize=7)
    axis.plot(float(one.losses[t]), float(one.losses[s]), "o", color="#D55E00")
    axis.set_xlabel(names[t])
    axis.set_ylabel(names[s])
    _title(axis, f"g_phi, step {one.step}")
    return figure


def _scaled(losses: Tensor, factors: dict[int, float]) -> Tensor:
    found = losses.clone()
    for t, factor in factors.items():
        found[t] = found[t] * factor
    return found
