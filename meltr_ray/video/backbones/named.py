"""Backbones by the names that settings give them; a new one is a line here."""

from __future__ import annotations

from meltr_ray.errors import check
from meltr_ray.video.backbones.allinone.settings import AllInOneConfig
from meltr_ray.video.backbones.settings import BackboneConfig, Losses
from meltr_ray.video.backbones.univl.settings import UniVLConfig
from meltr_ray.video.backbones.violet.settings import VioletConfig

BACKBONES: dict[str, type[BackboneConfig]] = {"univl": UniVLConfig, "violet": VioletConfig, "allinone": AllInOneConfig}


def losses_of(backbone: str, task: str) -> Losses:
    """Raises ConfigError where the backbone doesn't offer the task."""
    able = [name for name, kind in BACKBONES.items() if task in kind.losses]
    check(
        task in BACKBONES[backbone].losses, "task.name", task, f"backbone={backbone} doesn't offer it; choose backbone={' or '.join(able)}"
    )
    return BACKBONES[backbone].losses[task]
