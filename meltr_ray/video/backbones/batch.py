"""What the batches of all backbones share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from meltr_ray.video.clips.captions import pad_captions
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.clips.vocabulary import Vocabulary


@dataclass
class Batch:
    """Tensors by name, None where no loss asks for one."""

    def to(self, device: torch.device | str) -> Self:
        held = {item.name: getattr(self, item.name) for item in fields(self)}
        return type(self)(**{name: x if x is None else x.to(device) for name, x in held.items()})


@dataclass(frozen=True)
class TextInputs:
    """Captions as every backbone reads them; each adds its clips and its batches."""

    vocabulary: Vocabulary
    data: DataConfig

    def texts(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Ids int64 and mask bool, (Q, L) each."""
        ids, mask = pad_captions(captions, self.vocabulary, self.data.max_words)
        return torch.from_numpy(ids), torch.from_numpy(mask)
