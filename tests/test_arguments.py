"""Arguments of the library that can't be meant: one line each, `name=value: rule; mend`, before anything is computed."""

from __future__ import annotations

import math
from typing import Any, Callable

import pytest
import torch
from torch import Tensor, nn

from meltr_ray import MELTR, AdamRule, BilevelProblem, FixedWeights, ModuleProblem, hypergradient, training_gradient, unrolled_hypergradient
from meltr_ray.hypergrad import ConjugateGradient, Dense, LossSpace, Neumann, Nystrom

NAN, INF = math.nan, math.inf
torch.manual_seed(0)
MODEL, X = nn.Linear(4, 2), torch.randn(9, 4)


def losses(number: int = 0) -> Tensor:
    return MODEL(X).square().mean(0)


def primary() -> Tensor:
    return MODEL(X)[:, 0].square().mean()


def rule(**given: Any) -> AdamRule:
    zeros = [torch.zeros_like(p) for p in MODEL.parameters()]
    return AdamRule(**(dict(m=zeros, v=zeros, counts=[0, 0], rates=[0.1, 0.1], decay=[0.0, 0.0]) | given))


def through(**given: Any) -> object:
    return training_gradient(**(dict(module=MODEL, losses=losses, primary=primary, combine=torch.ones(2), rule=rule(), steps=2) | given))


def unrolled(**given: Any) -> object:
    return unrolled_hypergradient(
        **(dict(module=MODEL, losses=losses, primary=primary, combiner=MELTR(2), steps=2, learning_rate=0.1) | given)
    )


def problem(**given: Any) -> ModuleProblem:
    return ModuleProblem(MODEL, **(dict(losses=losses, primary=primary) | given))


def bilevel(**given: Any) -> BilevelProblem:
    phi = torch.ones(2, requires_grad=True)
    return BilevelProblem(MODEL, phi, **(dict(inner=lambda: losses() @ phi, outer=primary) | given))


SOLVERS: list[tuple[Callable[..., Any], dict[str, list[Any]]]] = [
    (lambda **given: ConjugateGradient(**({"iterations": 3} | given)),
     {"iterations": [0, -1, 1.5, NAN, True, "3"], "damping": [-1.0, NAN, INF, "1"], "tolerance": [-1e-9, NAN, INF]}),
    (lambda **given: Neumann(**({"iterations": 3, "step": 0.1} | given)), {"iterations": [0, 2.5], "step": [0.0, -1.0, NAN, INF], "damping": [-1.0, INF]}),
    (lambda **given: Nystrom(**({"rank": 3, "damping": 1.0} | given)), {"rank": [0, 2.5, None], "damping": [0.0, -1.0, NAN, INF]}),
    (LossSpace, {"damping": [0.0, -1.0, NAN, INF]}), (lambda **given: Dense(**given), {"damping": [-1.0, NAN]}),
]  # fmt: skip
OTHERS: list[tuple[Callable[..., Any], dict[str, list[Any]]]] = [
    (lambda **given: MELTR(**({"num_losses": 2} | given)), {"num_losses": [0, -1, 1.5, True, "2"], "embedding_size": [0, 100], "loss_encoder_size": [-3],
     "feed_forward_size": [0], "dropout": [2.0, NAN, -0.1], "inputs": ["foo"]}),
    (FixedWeights, {"weights": [[], [1, NAN], [INF, 1], "ab", [[1, 2]], torch.tensor([1 + 1j])]}),
    (problem, {"radius": [NAN, -1.0, 0.0, INF, "a"], "accuracy": [0.0, -1, NAN, INF, 5.0], "product": ["foo", None, 3], "hessian_product": ["x"],
     "fixed_point": [3], "losses": [torch.ones(2), [losses, 3]], "primary": [torch.ones(())]}),
    (bilevel, {"radius": [NAN, 0.0], "accuracy": [0.0, 5.0], "fixed_point": [3], "inner": [torch.ones(())], "outer": [3]}),
    (lambda **given: hypergradient(problem(), MELTR(2), **given), {"solver": [ConjugateGradient, "cg", None], "gamma": [NAN, -1.0, INF], "regulariser": ["all"]}),
    (lambda **given: hypergradient(combiner=MELTR(2), **given), {"problem": [None, MODEL]}),
    (through, {"steps": [0, 1.5, "3", True], "segments": [0, 1.5, None, 3], "max_bytes": [NAN, -1], "combine": [[1, 1], torch.tensor([1, NAN]),
     torch.ones(2, dtype=torch.int), torch.ones(2).double()], "rule": [None, torch.optim.AdamW(MODEL.parameters())], "losses": [torch.ones(2)], "primary": [3]}),
    (unrolled, {"steps": [0, 1.5, "a"], "learning_rate": [NAN, -1.0, 0.0, INF], "losses": [3], "primary": [torch.ones(())]}),
    (rule, {"rates": [[NAN, 1.0], [-1.0, 1.0], [1.0]], "betas": [(2, 0.9), (0.9, 1.0), (NAN, 0.9)], "epsilon": [0.0, NAN, INF], "decay": [[NAN, 0], [-1.0, 0]],
     "clip": [-1.0, NAN], "counts": [[-3, 0], [1.5, 0]], "m": [[torch.zeros(3)]], "schedule": [3]}),
]  # fmt: skip
ROWS = [(make, name, value) for make, table in [*SOLVERS, *OTHERS] for name, values in table.items() for value in values]


@pytest.mark.parametrize("make, name, value", ROWS, ids=lambda value: str(value)[:20].replace("\n", " "))
def test_an_argument_that_can_not_be_meant_meets_one_line(make, name, value):
    with pytest.raises(ValueError) as refusal:
        make(**{name: value})
    line = str(refusal.value)
    assert "\n" not in line and ": " in line and "; " in line, line
    assert name.split("_")[-1] in line or name in ("m", "combine"), line


def test_moments_of_other_weights_are_refused():
    zeros = [torch.zeros(2), torch.zeros(2, 4)]
    with pytest.raises(ValueError, match="m=.*: the weights have .*; give moments of the module's own parameters, in their order"):
        through(rule=rule(m=zeros, v=zeros))


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    assert (
        hypergradient(problem(accuracy=np.float32(0.5)), MELTR(2), ConjugateGradient(np.int64(2), np.float64(1.0))).alignments is not None
    )
    assert through(steps=np.int64(2)) is not None
