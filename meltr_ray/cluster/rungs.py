"""Which trials of a search stop early, by the scores that the others have in their tables (tune_spaces/asha.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meltr_ray.results import table as results
from meltr_ray.storage.sealed import Damaged
from tune_spaces import asha
from tune_spaces.arms import Trial, candidate_arm


@dataclass(frozen=True)
class Rungs:
    """Of one trial. Asked by the worker that writes its table."""

    folder: Path
    steps: tuple[int, ...]
    reduction: int
    rivals: str
    """Pattern of the names of those that it competes with, itself among them: of the same search and seed."""

    @classmethod
    def of(cls, specification: dict[str, Any]) -> Rungs | None:
        """From what `specified` put there; None: it is never stopped."""
        known = specification.get("rungs")
        return None if known is None else cls(Path(specification["folder"]), tuple(known["steps"]), known["reduction"], known["rivals"])

    def why_stop(self, row: dict[str, Any]) -> str | None:
        """One line where the row of an evaluation ends the trial; None: it goes on. A rung that it has passed, and comes to again from an older
        checkpoint, is not asked twice: more rivals have come there since."""
        if row["split"] != "validation" or row["step"] not in self.steps or row["step"] in scores_of(self.folder):
            return None
        others = self.scores(row["step"])
        if asha.goes_on(row["score"], others, self.reduction):
            return None
        return f"stopped at the rung of step {row['step']}: place {asha.place(row['score'], others)} of {1 + len(others)}, and one in {self.reduction} goes on"

    def scores(self, step: int) -> list[float]:
        """Of the others, as many as have come to that rung."""
        rivals = [folder for folder in sorted(self.folder.parent.glob(self.rivals)) if folder != self.folder]
        return [found[step] for rival in rivals if step in (found := scores_of(rival))]


def scores_of(trial: Path) -> dict[int, float]:
    """Evaluated step -> score on validation, by a trial's table; none where that is damaged, or another trial's."""
    path = trial / results.FILE
    try:
        rows = results.load_of_trial(path).to_pylist() if path.exists() else []
    except Damaged:
        return {}
    return {row["step"]: row["score"] for row in rows if row["split"] == "validation" and row["score"] is not None}


def specified(trial: Trial) -> dict[str, Any] | None:
    """What a worker has to know of the rungs of a trial; plain data."""
    sweep, train = trial.config.sweep, trial.config.train
    if sweep.asha is None or trial.phase not in asha.PHASES:
        return None
    rivals = f"{candidate_arm(sweep, '*')}-seed{trial.config.seed}"
    return {"steps": asha.rungs(train.steps, train.evaluate_every, sweep.asha), "reduction": sweep.asha, "rivals": rivals}
