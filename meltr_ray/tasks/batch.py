"""What the batches of all backbones share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch


@dataclass
class Batch:
    """Tensors by name, None where no loss asks for one."""

    def to(self, device: torch.device | str) -> Self:
        held = {item.name: getattr(self, item.name) for item in fields(self)}
        return type(self)(**{name: x if x is None else x.to(device) for name, x in held.items()})
