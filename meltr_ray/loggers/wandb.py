"""Weights & Biases: a group a sweep, a run a trial, in project `WANDB_PROJECT` (default: meltr-ray); files in `<sweep>/wandb`."""

from __future__ import annotations

import os
from typing import Any

from meltr_ray.errors import check
from meltr_ray.loggers.logger import STEP, Logger, Tracked

MODE, PROJECT = "WANDB_MODE", "WANDB_PROJECT"
ALONE = ("offline", "disabled", "dryrun")
"""Modes that need no account."""


class WandB(Logger):
    package = "wandb"

    @classmethod
    def check(cls) -> None:
        import wandb

        mode = os.environ.get(MODE, "online")
        check(mode in ALONE or wandb.login(prompt=False), "loggers", "wandb",
              f"nobody is logged in; run `wandb login`, set WANDB_API_KEY, or {MODE}=offline")  # fmt: skip

    def __init__(self, tracked: Tracked):
        import wandb

        self.run: Any = wandb.init(
            project=os.environ.get(PROJECT) or "meltr-ray",
            group=tracked.sweep,
            name=tracked.trial,
            id=tracked.id,
            resume="allow",
            dir=str(tracked.folder),
            tags=[tracked.arm, tracked.phase],
            config=dict(tracked.settings),
            reinit="create_new",  # a process runs one trial after another
            settings=wandb.Settings(console="off", silent=True),
        )
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)  # W&B's own counter refuses steps that a resumed trial repeats

    def add(self, step: int, numbers: dict[str, float]) -> None:
        self.run.log(numbers | {STEP: step})

    def close(self, status: str) -> None:
        self.run.summary["status"] = status
        self.run.finish(exit_code=1 if status == "failed" else 0)
