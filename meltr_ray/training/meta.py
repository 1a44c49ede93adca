"""One meta step: hypergradient, mean over ranks, clip, step of phi, and what there is to know about it afterwards."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor, nn

from meltr_ray.combining.combiners import MELTR
from meltr_ray.config import AidConfig
from meltr_ray.hypergrad.hypergradient import hypergradient
from meltr_ray.hypergrad.low_rank import LossSpace, Nystrom
from meltr_ray.hypergrad.problem import Problem
from meltr_ray.hypergrad.self_check import product_errors
from meltr_ray.hypergrad.solvers import ConjugateGradient, Identity, Neumann, Solver
from meltr_ray.hypergrad.vectors import Vector

SOLVERS: dict[str, Callable[[AidConfig], Solver]] = {
    "identity": lambda aid: Identity(aid.adam),
    "neumann": lambda aid: Neumann(aid.iterations, aid.neumann_step, aid.damping, aid.adam),
    "cg": lambda aid: ConjugateGradient(aid.iterations, aid.damping, aid.cg_tolerance, aid.adam),
    "nystrom": lambda aid: Nystrom(aid.rank, aid.damping),
    "loss_space": lambda aid: LossSpace(aid.damping),
}
"""Name in `aid.solver` -> solver made from the settings `aid`."""


class Meta:
    """The outer level: holds phi's optimiser (Adam with L2 decay, as published) and knows w only through `Problem`.

    A combiner without parameters (fixed weights) has no outer level: `is_due` is then never true.
    """

    def __init__(self, combiner: nn.Module, aid: AidConfig):
        self.combiner, self.aid = combiner, aid
        self.solver = SOLVERS[aid.solver](aid)
        self.phi = list(combiner.parameters())
        self.optimizer = torch.optim.Adam(self.phi, aid.learning_rate, weight_decay=aid.weight_decay) if self.phi else None
        self.num_steps = 0
        self.last_v: Vector | None = None
        """v of the last solve, for a warm start; each rank its own shard."""

    def is_due(self, step: int) -> bool:
        """Whether a meta step comes before optimiser step number `step`, counted from 0."""
        return self.optimizer is not None and (step + 1) % self.aid.inner_steps == 0

    def step(self, problem: Problem) -> dict[str, Any]:
        """Update phi once; returns the numbers that the results table keeps."""
        for module in self.combiner.modules():
            if isinstance(module, MELTR):
                module.mask_seed = self.num_steps
        before = problem.passes()
        checked = self.aid.check_every > 0 and self.num_steps % self.aid.check_every == 0
        result = hypergradient(problem, self.combiner, self.solver, self.aid.gamma, self.aid.regulariser, self.last_v,
                               keep_v=checked or self.aid.warm_start)  # fmt: skip
        passes, v = problem.passes() - before, result.solution.v
        self.last_v = v if self.aid.warm_start else None
        errors = product_errors(problem, self.combiner, v) if checked and v else {}
        gradient = problem.average(result.total())
        norm = _norm(gradient)
        if norm.isfinite():
            scale = min(1.0, self.aid.clip / (float(norm) + 1e-6)) if self.aid.clip else 1.0  # as torch clips
            for p, g in zip(self.phi, gradient):
                p.grad = scale * g
            self.optimizer.step()
        self.num_steps += 1
        return {
            "hypergradient_norm": float(norm),
            "direct_norm": float(_norm(result.direct)),
            "implicit_norm": float(_norm(result.implicit)),
            "solver_outcome": result.solution.outcome,
            "solver_residual": result.solution.residual,
            "meta_forward_passes": passes["forward"],
            "meta_backward_passes": passes["backward"],
            "jvp_error": errors.get("jvp"),
            "hvp_error": errors.get("hvp"),
        }

    def state(self) -> dict[str, Tensor]:
        """All that the next meta step depends on, as tensors by name."""
        state = {f"combiner/{name}": value for name, value in self.combiner.state_dict().items()}
        for index, entry in (self.optimizer.state_dict()["state"] if self.optimizer else {}).items():
            state |= {f"meta_optimizer/{index}/{key}": value for key, value in entry.items()}
        return state | {"num_meta_steps": torch.tensor(self.num_steps)}

    def own_state(self) -> dict[str, Tensor]:
        """What this rank alone has to keep: its shard of the v that the next solve starts from."""
        return {f"last_v/{i}": piece for i, piece in enumerate(self.last_v.pieces)} if self.last_v else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.combiner.load_state_dict({k.split("/", 1)[1]: v for k, v in state.items() if k.startswith("combiner/")})
        self.num_steps = int(state["num_meta_steps"])
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("meta_optimizer/"):
                _, index, key = name.split("/")
                entries.setdefault(int(index), {})[key] = value
        if self.optimizer:
            self.optimizer.load_state_dict({"state": entries, "param_groups": self.optimizer.state_dict()["param_groups"]})


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))
