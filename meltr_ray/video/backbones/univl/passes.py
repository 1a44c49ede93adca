"""Which of UniVL's losses reads which text and video, and the encodings of these, one after another in one stack.

B: clips, L: word pieces, F: frames, D: video feature size, T: rows of audio, H: hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meltr_ray.video.backbones.univl.inputs import UniVLBatch

TEXT_OF = {
    "joint": "clean", "shuffled": "clean", "align": "clean", "caption": "clean", "sentiment": "clean",
    "masked_joint": "masked", "masked_align": "masked", "masked_language": "masked", "masked_frame": "masked",
    "masked_caption": "masked", "answer": "question", "choice": "options",
}  # fmt: skip
"""Loss -> the text that it reads. Those that aren't here, `constant` alone, take no pass."""
CONTEXT_OF = {"caption": "context", "masked_caption": "masked_context"}
"""The same where captions are generated from another text."""
IDS_OF = {
    "clean": ("text_ids", "text_mask"),
    "masked": ("masked_text_ids", "text_mask"),
    "context": ("context_ids", "context_mask"),
    "masked_context": ("masked_context_ids", "context_mask"),
    "question": ("question_ids", "question_mask"),
    "options": ("option_ids", "option_mask"),
}
"""Text -> its ids and its mask in the batch. A text whose name begins with `masked` goes with the masked video."""
VIDEOS = ("clean", "masked")
JOINT = ("joint", "shuffled", "masked_joint")
ALIGN = ("align", "masked_align")
CAPTION = ("caption", "masked_caption")
CROSS = ("masked_language", "masked_frame", *CAPTION)
"""Losses by the pass that they share: JOINT the encodings alone, ALIGN the cross encoder for all pairs, CROSS for its own."""


@dataclass
class Stack:
    """Rows of several texts or videos, one after another: they go through a module together."""

    sizes: dict[str, int]
    rows: Tensor

    def of(self, *names: str) -> Tensor:
        """Rows of `names`, in this order."""
        if names == tuple(self.sizes):
            return self.rows
        parts = dict(zip(self.sizes, self.rows.split(list(self.sizes.values()))))
        return torch.cat([parts[name] for name in names]) if len(names) > 1 else parts[names[0]]


@dataclass
class Encoded:
    """Encodings of the texts and videos that some loss needs."""

    text: Stack
    text_mask: Stack
    video: Stack
    """Frames, and behind them audio: (B, F+T, H) each."""
    video_mask: Tensor
    """(B, F+T)."""
    frames: Stack | None
    """Normalised features that went in, (B, F, D) each."""

    def of(self, *texts: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Text, its mask, the video that goes with it, and its mask, for each of `texts`."""
        videos = [video_of(text) for text in texts]
        return self.text.of(*texts), self.text_mask.of(*texts), self.video.of(*videos), self.video_mask.repeat(len(texts), 1)


def stack(parts: dict[str, Tensor]) -> Stack:
    return Stack({name: len(part) for name, part in parts.items()}, torch.cat(list(parts.values())))


def video_of(text: str) -> str:
    return "masked" if text.startswith("masked") else "clean"


def text_of(loss: str, batch: UniVLBatch) -> str:
    """The text that `loss` reads in this batch."""
    return CONTEXT_OF[loss] if loss in CONTEXT_OF and batch.context_ids is not None else TEXT_OF[loss]


def texts_for(names: tuple[str, ...], batch: UniVLBatch, losses: tuple[str, ...] = tuple(TEXT_OF)) -> tuple[str, ...]:
    """The texts that those of `names` which are in `losses` read, each once, in the order of `IDS_OF`."""
    wanted = {text_of(name, batch) for name in names if name in losses}
    return tuple(text for text in IDS_OF if text in wanted)
