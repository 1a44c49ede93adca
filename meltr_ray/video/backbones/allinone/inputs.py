"""All-in-one's batches: clips with captions or questions as it reads them.

B: clips, T: frames, L: word pieces, C: texts to choose from, V: videos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from meltr_ray.video.backbones.allinone.settings import AllInOneConfig
from meltr_ray.video.backbones.batch import Batch, TextInputs
from meltr_ray.video.clips import masking
from meltr_ray.video.clips.answers import Answers
from meltr_ray.video.clips.captions import draw_captions, is_special, pad_captions
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.pixels import allinone_clip, normalised
from meltr_ray.video.clips.questions import pad_options, right_answers
from meltr_ray.video.tasks.settings import TaskConfig

Arrays = dict[str, np.ndarray]


@dataclass
class AllInOneBatch(Batch):
    """One text of each clip, and what some losses need beside it; None where no loss asks for it."""

    text_ids: Tensor
    """(B, L) int64: [CLS], word pieces, [SEP], padding; a caption, a question, or a question with its right option."""
    text_mask: Tensor
    """(B, L) bool."""
    video: Tensor
    """(B, T, 3, height, width) float32, normalised."""
    masked_text_ids: Tensor | None = None
    """(B, L) int64, for `masked_language`."""
    masked_word_labels: Tensor | None = None
    """(B, L) int64: the true id of a masked word, else negative."""
    false_video: Tensor | None = None
    """As `video`, of other clips, for `matching` and `alignment`."""
    matched: Tensor | None = None
    """(B,) bool: compare the text with `video`, else with `false_video`; published: half of the batch."""
    choice_ids: Tensor | None = None
    """(B, C, L) int64, for `rank` (the clip's text and false ones, or multiple choice) and `choice`; an absent one is padding."""
    choice_mask: Tensor | None = None
    """(B, C, L) bool."""
    answer: Tensor | None = None
    """(B,) int64: which choice is right, or which answer; -1: none of the answers (evaluation)."""
    shuffled: Tensor | None = None
    """(B,) int64: a permutation without fixed points, for the control."""


@dataclass(frozen=True)
class AllInOneInputs(TextInputs):
    """Clips with captions or questions as All-in-one reads them."""

    backbone: AllInOneConfig
    task: TaskConfig = field(default_factory=TaskConfig)
    answers: Answers | None = None
    """For open questions."""

    def batch(self, clips: list[Clip], seed: int | np.random.Generator) -> AllInOneBatch:
        """A training batch; all that is random comes from `seed` alone, so equal arguments give equal batches.

        Differs from the published code in that false texts and false clips are others of the batch, not of the data set:
        no clip is decoded for nothing.
        """
        generator = np.random.default_rng(seed)
        arrays = TEXTS[self.task.name](self, clips, generator)
        ids, mask = arrays["text_ids"], arrays["text_mask"]
        video = self._video(clips, generator)
        masked_ids, labels = masking.mask_words(
            ids, is_special(ids, mask, self.vocabulary), self.data.mask_probability, self.vocabulary.mask_id,
            self.vocabulary.random_word_range, generator,
        )  # fmt: skip
        matched = generator.permutation(np.arange(len(clips)) < (len(clips) + 1) // 2)
        if "answer" not in arrays:  # captions: a clip's own among those of others
            choices = draw_choices(len(clips), min(self.backbone.num_false_texts, len(clips) - 1), generator)
            arrays |= dict(choice_ids=ids[choices], choice_mask=mask[choices], answer=np.zeros(len(clips), np.int64))
        arrays |= dict(
            video=video, masked_text_ids=masked_ids, masked_word_labels=labels, matched=matched,
            false_video=video[masking.derange(len(clips), generator)], shuffled=masking.derange(len(clips), generator),
        )  # fmt: skip
        return AllInOneBatch(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})

    def evaluation(self, clips: list[Clip]) -> AllInOneBatch:
        """Clips with their question, nothing masked, the middle frames and crops."""
        texts = {name: torch.from_numpy(array) for name, array in TEXTS[self.task.name](self, clips, None).items()}
        (video,) = self.videos(clips)
        return AllInOneBatch(video=video, **texts)

    def videos(self, clips: list[Clip]) -> tuple[Tensor]:
        """Normalised frames (V, T, 3, height, width)."""
        return (torch.from_numpy(self._video(clips, None)),)

    def _video(self, clips: list[Clip], generator: np.random.Generator | None) -> np.ndarray:
        """(B, T, 3, height, width) float32; random frames and crops where there is a generator, else the middle of each."""
        count, size = self.backbone.num_frames, self.backbone.image_size
        pixels = [allinone_clip(clip.video, count, size, generator, generator, clip.segment) for clip in clips]
        return normalised(np.stack(pixels))


def captions(read: AllInOneInputs, clips: list[Clip], generator: np.random.Generator) -> Arrays:
    """One of each clip."""
    ids, mask = pad_captions(draw_captions(clips, generator), read.vocabulary, read.data.max_words)
    return dict(text_ids=ids, text_mask=mask)


def open_questions(read: AllInOneInputs, clips: list[Clip], generator: np.random.Generator | None) -> Arrays:
    questions = [clip.question for clip in clips]
    ids, mask = pad_captions([question.question for question in questions], read.vocabulary, read.data.max_words)
    return dict(text_ids=ids, text_mask=mask, answer=right_answers(questions, read.answers))


def questions_with_options(read: AllInOneInputs, clips: list[Clip], generator: np.random.Generator | None) -> Arrays:
    """Each with each of its options, and as the clip's text with the right one."""
    questions = [clip.question for clip in clips]
    ids, mask = pad_options(questions, read.backbone.option_text, read.vocabulary, read.data.max_words)
    answer = right_answers(questions, read.answers)
    own = np.arange(len(clips)), answer
    return dict(text_ids=ids[own], text_mask=mask[own], choice_ids=ids, choice_mask=mask, answer=answer)


TEXTS: dict[str, Callable[[AllInOneInputs, list[Clip], np.random.Generator | None], Arrays]] = {
    "retrieval": captions,
    "open_ended": open_questions,
    "multiple_choice": questions_with_options,
}
"""Task -> what a batch holds of texts and right answers."""


def draw_choices(num_clips: int, num_false: int, generator: np.random.Generator) -> np.ndarray:
    """Numbers of texts (B, 1 + num_false): each clip's own, then others, each at most once."""
    others = generator.random((num_clips, num_clips)) + np.where(np.eye(num_clips, dtype=bool), -1, 0)  # own sorts first
    return others.argsort(1)[:, : 1 + num_false]
