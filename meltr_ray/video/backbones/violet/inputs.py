"""VIOLET's batches: clips with captions or questions as it reads them.

B: clips, T: frames, P: video positions, L: word pieces, O: options of a question, V: videos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from meltr_ray.video.backbones.batch import Batch, TextInputs
from meltr_ray.video.backbones.violet import block_masking
from meltr_ray.video.backbones.violet.settings import VioletConfig
from meltr_ray.video.backbones.violet.visual_tokens import VisualTokens, token_grid
from meltr_ray.video.clips import masking
from meltr_ray.video.clips.answers import Answers
from meltr_ray.video.clips.captions import draw_captions, is_special, pad_captions
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.pixels import unit_range, violet_clip
from meltr_ray.video.clips.questions import pad_options, right_answers
from meltr_ray.video.tasks.settings import TaskConfig

Texts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Ids and mask (B, L), with options (B, O, L), and the numbers of right answers (B,)."""


@dataclass
class VioletBatch(Batch):
    """Clips with a text each; for multiple choice, with O texts each (question and option), (B, O, L) in place of (B, L).

    An option that a question lacks is padding from end to end. Masked texts and patches: None where no loss asks for them.
    """

    frames: Tensor
    """(B, T, 3, rows, columns) in [0, 1]; masked patches are black, for every loss (published), but not in evaluation."""
    text_ids: Tensor
    """(B, L) int64: [CLS], word pieces, [SEP], padding."""
    text_mask: Tensor
    """(B, L) bool."""
    masked_text_ids: Tensor | None = None
    """(B, L) int64."""
    word_labels: Tensor | None = None
    """(B, L) int64: the true id of a masked word, else -1."""
    patch_labels: Tensor | None = None
    """(B, P) int64: the visual token of a masked patch, else -1."""
    answers: Tensor | None = None
    """(B,) int64: number of the right option or answer, -1 if it isn't among the answers (evaluation); all 0 for retrieval."""
    shuffled: Tensor | None = None
    """(B,) int64: a permutation without fixed points."""


@dataclass(frozen=True)
class VioletInputs(TextInputs):
    """Clips with captions or questions as VIOLET reads them."""

    backbone: VioletConfig
    tokens: VisualTokens
    """Visual tokens of clips that come without any."""
    task: TaskConfig = field(default_factory=TaskConfig)
    answers: Answers | None = None
    """For open questions."""

    def batch(self, clips: list[Clip], seed: int | np.random.Generator) -> VioletBatch:
        """A training batch; captions, masks and the permutation come from `seed` alone, so equal arguments give equal batches."""
        generator = np.random.default_rng(seed)
        ids, mask, answers = TEXTS[self.task.name](self, clips, generator)
        frames = self._frames(clips)
        visual = self._visual_tokens(clips, frames)
        starts, sizes = block_masking.draw_blocks(len(clips), visual.shape[1:], generator)
        masked = block_masking.cover(starts, sizes, visual.shape[1:])
        masked_ids, word_labels = self._hide_words(ids, mask, generator)
        arrays = dict(
            frames=unit_range(block_masking.hide_pixels(frames, masked)), text_ids=ids, text_mask=mask, masked_text_ids=masked_ids,
            word_labels=word_labels, patch_labels=block_masking.label_patches(visual, masked),
            answers=answers, shuffled=masking.derange(len(clips), generator),
        )  # fmt: skip
        return VioletBatch(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})

    def evaluation(self, clips: list[Clip]) -> VioletBatch:
        """Clips with their question, nothing masked and nothing random."""
        ids, mask, answers = (torch.from_numpy(x) for x in TEXTS[self.task.name](self, clips, None))
        return VioletBatch(*self.videos(clips), ids, mask, answers=answers)

    def videos(self, clips: list[Clip]) -> tuple[Tensor]:
        """Frames (V, T, 3, rows, columns) in [0, 1]."""
        return (torch.from_numpy(unit_range(self._frames(clips))),)

    def _hide_words(self, ids: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Masked ids and labels, the shape of ids (B, L) or (B, O, L)."""
        special = is_special(ids, mask, self.vocabulary)
        chances = self.data.mask_probability, self.vocabulary.mask_id, generator
        if ids.ndim == 2:
            return block_masking.hide_words(ids, special, *chances)
        if self.backbone.published_options:
            return block_masking.hide_options(ids, special, *chances)
        rows = ids.reshape(-1, ids.shape[2]), special.reshape(-1, ids.shape[2])
        return tuple(x.reshape(ids.shape) for x in block_masking.hide_words(*rows, *chances))

    def _frames(self, clips: list[Clip]) -> np.ndarray:
        """(B, T, 3, rows, columns) uint8."""
        count, size = self.backbone.num_frames, self.backbone.image_size
        return np.stack([violet_clip(clip.video, count, size, clip.segment) for clip in clips])

    def _visual_tokens(self, clips: list[Clip], frames: np.ndarray) -> np.ndarray:
        """(B, T, h, w) int64: those that came with a clip, else the fitted ones."""
        tokens = self.tokens(frames)
        for row, clip in enumerate(clips):
            if clip.vq_tokens is not None:
                tokens[row] = token_grid(clip.vq_tokens, *tokens.shape[1:])
        return tokens


def captions(read: VioletInputs, clips: list[Clip], generator: np.random.Generator) -> Texts:
    """One of each clip, which is the right text number 0."""
    return *pad_captions(draw_captions(clips, generator), read.vocabulary, read.data.max_words), np.zeros(len(clips), np.int64)


def open_questions(read: VioletInputs, clips: list[Clip], generator: np.random.Generator | None) -> Texts:
    questions = [clip.question for clip in clips]
    texts = pad_captions([question.question for question in questions], read.vocabulary, read.data.max_words)
    return *texts, right_answers(questions, read.answers)


def questions_with_options(read: VioletInputs, clips: list[Clip], generator: np.random.Generator | None) -> Texts:
    questions = [clip.question for clip in clips]
    texts = pad_options(questions, read.backbone.option_text, read.vocabulary, read.data.max_words)
    return *texts, right_answers(questions, read.answers)


TEXTS: dict[str, Callable[[VioletInputs, list[Clip], np.random.Generator | None], Texts]] = {
    "retrieval": captions,
    "open_ended": open_questions,
    "multiple_choice": questions_with_options,
}
"""Task -> the texts of its batches."""
