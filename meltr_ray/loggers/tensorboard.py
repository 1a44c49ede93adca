"""TensorBoard: event files in `<sweep>/tensorboard/<trial>`; look at them with `tensorboard --logdir <sweep>/tensorboard`."""

from __future__ import annotations

from typing import Any

from meltr_ray.loggers.logger import Logger, Tracked


class TensorBoard(Logger):
    package = "tensorboard"

    def __init__(self, tracked: Tracked):
        self.folder = tracked.folder / "tensorboard" / tracked.trial
        self.settings = tracked.settings
        self.writer: Any = None

    def add(self, step: int, numbers: dict[str, float]) -> None:
        if self.writer is None:
            self.writer = self.open(step)
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def open(self, step: int) -> Any:
        """What an earlier attempt has shown of this step and later ones is void."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self.folder), purge_step=step)
        table = [f"| {name} | {value} |" for name, value in self.settings.items()]
        writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *table]), step)
        return writer

    def close(self, status: str) -> None:
        if self.writer is not None:
            self.writer.add_text("status", status)
            self.writer.close()
