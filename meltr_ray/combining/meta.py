"""The outer level: a meta step on phi, and the slopes that w trains with."""

from __future__ import annotations

import inspect
from typing import Any, Callable, ClassVar, Self, Sequence

import torch
from torch import Tensor, nn

from meltr_ray.combining.inputs import Relative
from meltr_ray.combining.meta_optimizer import OF_PHI, MetaOptimizer, norm_of
from meltr_ray.combining.slopes import innermost, slopes, with_slopes
from meltr_ray.combining.way import EFFECTS, Step, Way
from meltr_ray.errors import check
from meltr_ray.hypergrad.combined import on_batches
from meltr_ray.hypergrad.hypergradient import hypergradient
from meltr_ray.hypergrad.module_problem import LossesProblem
from meltr_ray.hypergrad.named import SOLVERS
from meltr_ray.hypergrad.replayed import Replayed
from meltr_ray.hypergrad.self_check import product_errors
from meltr_ray.hypergrad.vectors import Vector
from meltr_ray.workload import Workload


class Meta(Way):
    """A combiner g_phi that is learned: holds phi and its optimiser, knows w only through `Problem`.

    Dropout of the combiner keeps one mask from a meta step to the next, so that every pass sees the same g_phi.

    Args:
        combiner: forward(losses) -> scalar, or forward(losses, batch).
        aid: settings `aid.*`.
    """

    learns: ClassVar[bool] = True
    searched: ClassVar[Sequence[str]] = ("learning_rate", "gamma")
    spread: ClassVar[float] = 10.0
    uses: ClassVar[Sequence[str]] = (*OF_PHI, "aid.solver", "aid.normalise", "aid.regulariser", "aid.check_every")

    @staticmethod
    def made(config: Any, workload: Workload) -> nn.Module:
        """The combiner of a run's settings."""
        raise NotImplementedError

    @classmethod
    def of(cls, config: Any, workload: Workload) -> Self:
        names, settings = config.losses.set, config.combiner
        return cls(with_slopes(cls.made(config, workload), settings.slopes, names.index(config.losses.primary), settings.floor), config.aid)

    @classmethod
    def check(cls, config: Any) -> None:
        simplex, solver = config.combiner.slopes == "simplex", config.aid.solver
        check(not simplex or not config.workload.per_example, "combiner.slopes", "simplex",
              "needs a primary loss among several, and this workload has a number for each example; use non_negative")  # fmt: skip
        check(not simplex or not SOLVERS[solver].counts_decay, "aid.solver", solver,
              "takes the Hessian of g_phi, and slopes on a simplex are no derivative of one function; use identity")  # fmt: skip

    def __init__(self, combiner: nn.Module, aid: Any):
        self.combiner, self.aid = combiner, aid
        self.asks_batch = takes_batch(combiner)
        inputs = getattr(innermost(combiner), "inputs", None)
        self.relative = inputs if isinstance(inputs, Relative) else None
        self.solver = SOLVERS[aid.solver].of(aid)
        self.optimizer = MetaOptimizer(combiner, aid)
        self.last_v: Vector | None = None
        """v of the last solve, for a warm start; each rank its own shard."""

    def to(self, device: torch.device) -> Meta:
        self.combiner.to(device)
        return self

    def is_due(self, step: int) -> bool:
        """Whether a meta step comes before optimiser step number `step`, counted from 0."""
        return (step + 1) % self.aid.inner_steps == 0

    def before(self, step: Step) -> dict[str, Any]:
        return self.step(step.problem(), step.batches) if self.is_due(step.number) else {}

    def slopes(self, losses: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        return slopes(self.replayed(self.combiner), losses, *self.beside(batch))

    def replayed(self, combiner: nn.Module) -> Replayed:
        """`combiner` with the masks of the last meta step."""
        return Replayed(combiner, max(0, self.num_steps - 1))

    def beside(self, batch: Any) -> list[Any]:
        """What the combiner is called with beside the losses."""
        return [batch] if self.asks_batch else []

    def step(self, problem: LossesProblem, batches: Sequence[Any] = ()) -> dict[str, Any]:
        """Update phi once; returns the numbers that the results table keeps. `batches`: those of the M rows of losses."""
        if self.relative:
            self.relative.observe(*problem.average([problem.losses().detach().mean(0)]))
        combiner = Replayed(self.combiner, self.num_steps)
        before = problem.passes()
        checked = self.aid.check_every > 0 and self.num_steps % self.aid.check_every == 0
        result = hypergradient(problem, combiner, self.solver, self.aid.gamma, self.aid.regulariser, self.last_v,
                               keep_v=checked or self.aid.warm_start, batches=batches if self.asks_batch else None)  # fmt: skip
        passes, v = problem.passes() - before, result.solution.v
        self.last_v = v if self.aid.warm_start else None
        errors = product_errors(problem, on_batches(combiner, batches) if self.asks_batch else combiner, v) if checked and v else {}
        assert result.alignments is not None  # the combiner's problem has several losses
        alignments = result.alignments.mean(0)
        unit = self.optimizer.unit(problem.average([alignments])[0], self.num_steps) if self.aid.normalise else 1.0
        total = [i / unit + d for i, d in zip(result.implicit, result.direct)]
        *gradient, effects = problem.average([*(g for p, g in zip(self.combiner.parameters(), total) if p.requires_grad), alignments])
        norm = self.descend(gradient)
        return {
            EFFECTS: effects,
            "hypergradient_norm": norm,
            "direct_norm": float(norm_of(result.direct)),
            "implicit_norm": float(norm_of(result.implicit)),
            "solver_outcome": result.solution.outcome,
            "solver_residual": result.solution.residual,
            "meta_forward_passes": passes["forward"],
            "meta_backward_passes": passes["backward"],
            "jvp_error": errors.get("jvp"),
            "hvp_error": errors.get("hvp"),
        }

    def descend(self, gradient: Sequence[Tensor]) -> float:
        """A meta step of phi along -`gradient`; returns its norm."""
        self.num_steps += 1
        return self.optimizer.descend(gradient)

    def state(self) -> dict[str, Tensor]:
        """All that the next meta step depends on, as tensors by name."""
        learned = {f"combiner/{name}": value for name, value in self.combiner.state_dict().items()}
        return learned | self.optimizer.state() | {"num_meta_steps": torch.tensor(self.num_steps)}

    def own_state(self) -> dict[str, Tensor]:
        """What this rank alone has to keep: its shard of the v that the next solve starts from."""
        return {f"last_v/{i}": piece for i, piece in enumerate(self.last_v.pieces)} if self.last_v else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.combiner.load_state_dict({k.split("/", 1)[1]: v for k, v in state.items() if k.startswith("combiner/")})
        self.num_steps = int(state["num_meta_steps"])
        self.optimizer.load_state(state)

    def load_own_state(self, state: dict[str, Tensor], hold: Callable[[Sequence[Tensor]], Vector]) -> None:
        pieces = [state[f"last_v/{i}"] for i in range(sum(name.startswith("last_v/") for name in state))]
        self.last_v = hold(pieces) if pieces else None


def takes_batch(combiner: nn.Module) -> bool:
    """Whether its forward is (losses, batch): a second argument of that name, or any that has no default."""
    second = list(inspect.signature(innermost(combiner).forward).parameters.values())[1:2]
    return any(p.name == "batch" or (p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD) for p in second)
