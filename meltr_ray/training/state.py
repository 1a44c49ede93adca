"""All that the next step of a run depends on: saved and restored in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from meltr_ray.combining.way import Way
from meltr_ray.hypergrad.generators import get_generators, set_generators
from meltr_ray.results.table import RunningMeans
from meltr_ray.training import checkpoint
from meltr_ray.training.engine import Engine
from meltr_ray.training.evaluation import load_weights
from meltr_ray.training.loop import Progress

OWN_GENERATORS = ("cpu", "cuda")


@dataclass
class RunState:
    """Weights, the moments of their optimiser, the way of combining, progress and generators of a run.

    Data need no state: batches are pure functions of the step.
    """

    engine: Engine
    way: Way
    progress: Progress

    def save(self, root: Path, facts: dict[str, Any], keep: int = 2) -> None:
        """Write a checkpoint; every rank calls it. `facts`: what else to keep beside the progress; `keep`: how many checkpoints stay."""
        engine = self.engine
        parts = {"weights": engine.weights(), "optimizer": engine.optimizer_state(), "meta": self.way.state()}
        shared = {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
        own = get_generators(engine.device) | self.way.own_state()
        known = {"progress": asdict(self.progress), "world_size": engine.world_size} | facts
        checkpoint.save(root, self.progress.step, engine.rank, shared, own, known, engine.barrier, keep)

    def restore(self, folder: Path) -> dict[str, Any]:
        """Put back what `save` wrote, but for the weights, which an engine has to be made with. Returns its facts."""
        engine = self.engine
        shared, own, facts = checkpoint.load(folder, engine.rank)
        self.progress = Progress(**facts["progress"] | {"means": RunningMeans(**facts["progress"]["means"])})
        engine.load_optimizer_state(_part(shared, "optimizer"), self.progress.step)
        self.way.load_state(_part(shared, "meta"))
        self.way.load_own_state({name: t.to(engine.device) for name, t in own.items() if name not in OWN_GENERATORS}, engine.w.hold)
        set_generators(own, engine.device)
        return facts


def restore_weights(folder: Path, model: nn.Module) -> None:
    """Put the weights of the checkpoint in `folder` into a model that no engine holds yet."""
    load_weights(model, _part(load_file(folder / "shared.safetensors"), "weights"), folder)


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}/"): t for name, t in tensors.items() if name.startswith(f"{part}/")}
