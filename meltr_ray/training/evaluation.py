"""A workload's module, scored: during a run, and from saved weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from meltr_ray.config import Config
from meltr_ray.errors import ConfigError, check
from meltr_ray.results.bootstrap import resampled
from meltr_ray.training.checkpoint import check_fingerprint, load_weights_file, weights_facts
from meltr_ray.training.loss_vector import PREFIX, named_weights
from meltr_ray.training.splits import examples
from meltr_ray.training.tuning import prepare_for_tuning
from meltr_ray.workload import Workload

T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """What an evaluation found."""

    metrics: dict[str, float]
    resampled: list[float] | None = None
    """The score on resamples of the examples' sources, alike for all runs scored on one split; None where the workload gives no rows."""


def measured(workload: Workload, module: nn.Module, split: Sequence[Any], device: torch.device) -> Measured:
    """A value for each of the workload's metrics, and what other examples of the kind would have given.

    Raises:
        ConfigError: a metric is missing.
    """
    if workload.defines("evaluate"):
        return Measured(checked(workload, quietly(module, lambda: workload.evaluate(module, split, device))))
    rows = predicted(workload, module, split, device)
    metrics = checked(workload, workload.measure(rows), "measure")
    if not workload.resamples:
        return Measured(metrics)
    scores = resampled(rows, lambda drawn: [workload.score(workload.measure(drawn))], 1, resamples=workload.resamples)
    return Measured(metrics, scores[:, 0].tolist())


def predicted(workload: Workload, module: nn.Module, split: Sequence[Any], device: torch.device) -> list[dict[str, Any]]:
    """Rows of a workload's predictions, one for each example at least.

    Raises:
        ConfigError: they are none, or too few.
    """
    rows = quietly(module, lambda: workload.predict(module, split, device))
    good = isinstance(rows, (list, tuple)) and all(isinstance(row, dict) for row in rows)
    odd = next((row for row in rows if not isinstance(row, dict)), rows) if isinstance(rows, (list, tuple)) else rows
    check(good, "workload", workload.source, f"predict gave {_a(odd)}; return a list of dictionaries, one for each example")
    check(
        len(rows) >= len(split),
        "workload",
        workload.source,
        f"predict gave {len(rows)} rows for {len(split)} examples; return one for each",
    )
    for row in rows:
        correct, quality = row.get("correct"), row.get("quality")
        check(correct is None or isinstance(correct, (bool, np.bool_)) or (isinstance(correct, (int, float, np.number)) and correct in (0, 1)),
              "workload", workload.source, f"predict gave a row with correct = {correct!r}; give True or False")  # fmt: skip
        check(quality is None or isinstance(quality, (int, float, np.number)),
              "workload", workload.source, f"predict gave a row with quality = {quality!r}; give a number")  # fmt: skip
    return list(rows)


def _a(x: Any) -> str:
    return "None" if x is None else f"a {type(x).__name__}"


def checked(workload: Workload, found: Any, member: str = "evaluate") -> dict[str, float]:
    """What `member` of a workload measured, if every declared metric is there as a number."""
    check(
        isinstance(found, dict),
        "workload",
        workload.source,
        f"{member} gave {_a(found)}; return a value for each metric, by name",
    )
    for name in workload.metrics:
        check(
            name in found,
            "workload",
            workload.source,
            f"{member} gave no {name}, but {', '.join(found) or 'nothing'}; return every declared metric",
        )
    for name, value in found.items():
        number = isinstance(value, (int, float, np.number)) or (isinstance(value, torch.Tensor) and value.numel() == 1)
        check(number, "workload", workload.source, f"{member} gave {name} = {value!r}; return a number")
    return {name: float(value) for name, value in found.items()}


def quietly(module: nn.Module, function: Callable[[], T]) -> T:
    """Call it in evaluation mode and without gradients; mode and generators are put back. The same draws each time."""
    with in_evaluation(module), torch.no_grad():
        return function()


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; mode and generators are put back. The same draws each time."""
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # All-in-one shuffles patches in evaluation, too, as published
            yield
    finally:
        for m, mode in training.items():
            m.training = mode


def saved_module(config: Config, weights: Path, device: torch.device = torch.device("cpu")) -> nn.Module:
    """The module of a finished run, in this process alone.

    Raises:
        ConfigError: the weights are those of another configuration, or the data aren't those that they were trained on.
    """
    found = load_weights_file(weights)
    check_fingerprint(config.workload, weights_facts(weights).get("checksums", {}))
    module = config.workload.structure()
    prepare_for_tuning(module, config)
    load_weights(module.to(device), found, weights)
    return module


def measured_saved(config: Config, weights: Path, split: str, device: torch.device) -> Measured:
    """`measured` of saved weights."""
    module, found = saved_module(config, weights, device), examples(config.workload, split)
    return finite(config.workload, measured(config.workload, module, found, device), f"{len(found)} {split} examples")


def finite(workload: Workload, found: Measured, where: str) -> Measured:
    """`found`, whose score is finite: weights that were the best on validation give no other.

    Raises:
        ConfigError: names the metric.
    """
    name = next(iter(workload.metrics))
    check(bool(np.isfinite(found.metrics[name])), "workload", workload.source,
          f"{name} is {found.metrics[name]} on {where}; mend these examples, or what measures them")  # fmt: skip
    return found


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], origin: Path) -> None:
    """Put saved weights into `model`; a tied weight is saved once, under its first name.

    Raises:
        ConfigError: the file's names, shapes or types are those of another configuration, or a number isn't finite.
    """
    wanted = dict(named_weights(model)) | {name.removeprefix(PREFIX): b for name, b in model.named_buffers()}
    wrong = sorted(wanted.keys() ^ weights.keys()) or sorted(n for n in wanted if wanted[n].shape != weights[n].shape)
    if wrong:
        raise ConfigError(f"checkpoint={origin}: {wrong[0]} does not fit this configuration; use the settings it was made with")
    check_numbers({name: (weights[name], there) for name, there in wanted.items()}, f"checkpoint={origin}")
    with torch.no_grad():
        for name, there in wanted.items():
            there.copy_(weights[name])


def check_numbers(pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], origin: str) -> None:
    """Refuse weights of another kind than the module's, such as integers or complex numbers, and those that aren't finite.

    Args:
        pairs: name -> (what a file has, what it is put into).

    Raises:
        ConfigError: names the weight.
    """
    for name, (given, there) in pairs.items():
        if given.is_floating_point() != there.is_floating_point() or given.is_complex() != there.is_complex():
            kinds = (str(x.dtype).removeprefix("torch.") for x in (given, there))
            raise ConfigError(f"{origin}: {name} is {' where the model has '.join(kinds)}; give weights of that kind")
        if given.is_floating_point() and not given.isfinite().all():
            raise ConfigError(f"{origin}: {name} has a number that is not finite; give weights that are")
