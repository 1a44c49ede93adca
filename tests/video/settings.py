"""Configurations of video, and losses as the tests compare them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from meltr_ray.config import Config, LossesConfig
from meltr_ray.video.workload import Video


def video_config(losses: str | Sequence[str] | None = None, primary: str | None = None, *, data: Any = None, backbone: Any = None,
                 task: Any = None, **groups: Any) -> Config:  # fmt: skip
    """A run of video: `losses` and `primary` are settings of its loss set, `groups` those of the machine."""
    own = {name: group for name, group in dict(data=data, backbone=backbone, task=task).items() if group is not None}
    return Config(workload=Video(source="video", **own), losses=LossesConfig(set=losses, primary=primary), **groups)


def vector(losses: dict[str, Tensor]) -> Tensor:
    """What a module gave as one vector (T,), in the order that it was asked in."""
    return torch.stack(list(losses.values()))
