"""UniVL's batches: clips, captions, questions, transcripts and audio as its encoders and its decoder read them.

B: clips, L: word pieces, C: caption positions of the decoder, F: frames, D: video feature size, T: rows of audio, A: audio
feature size, U: different texts of options, O: options of a question.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from meltr_ray.video.backbones.batch import Batch, TextInputs
from meltr_ray.video.backbones.univl.features import AudioScale, pad_rows
from meltr_ray.video.backbones.univl.settings import UniVLConfig
from meltr_ray.video.backbones.univl.tasks import TASKS
from meltr_ray.video.clips import masking
from meltr_ray.video.clips.answers import Answers
from meltr_ray.video.clips.captions import is_special
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.tasks.settings import TaskConfig


@dataclass
class UniVLBatch(Batch):
    """One text of each clip. Masks are true at real positions; padding follows them.

    Texts are padded to `data.max_words`, clips and decoder captions to the longest of the batch.
    """

    text_ids: Tensor | None
    """(B, L) int64: [CLS], word pieces, [SEP], padding. What it is the text of depends on the task, see tasks.py."""
    text_mask: Tensor | None
    """(B, L) bool."""
    video: Tensor
    """(B, F, D) float32, padded with 0."""
    video_mask: Tensor
    """(B, F) bool."""
    masked_text_ids: Tensor | None
    """(B, L) int64."""
    masked_word_labels: Tensor | None
    """(B, L) int64: the true id of a masked word, else -1."""
    masked_video: Tensor | None
    """(B, F, D) float32, masked frames 0."""
    masked_frames: Tensor | None
    """(B, F) bool: which frames are masked."""
    decoder_input_ids: Tensor | None
    """(B, C) int64: [CLS] w1 .. wn."""
    decoder_mask: Tensor | None
    """(B, C) bool."""
    decoder_target_ids: Tensor | None
    """(B, C) int64: w1 .. wn [SEP], padding -1."""
    shuffled: Tensor | None
    """(B,) int64: a permutation without fixed points."""
    context_ids: Tensor | None = None
    """(B, L) int64, captioning: the text that a caption is generated from; None: `text_ids`."""
    context_mask: Tensor | None = None
    """(B, L) bool."""
    masked_context_ids: Tensor | None = None
    """(B, L) int64."""
    special_ids: Tensor | None = None
    """(5,) int64, captioning: ids of [PAD], [UNK], [CLS], [SEP], [MASK]."""
    question_ids: Tensor | None = None
    """(B, L) int64, open_ended."""
    question_mask: Tensor | None = None
    """(B, L) bool."""
    option_ids: Tensor | None = None
    """(U, L) int64, multiple_choice: each different pair of question and option once."""
    option_mask: Tensor | None = None
    """(U, L) bool."""
    options: Tensor | None = None
    """(B, O) int64, multiple_choice: the row of `option_ids` of each option; -1: the question has fewer."""
    answer: Tensor | None = None
    """(B,) int64: number of the right option or answer; `tasks.NO_ANSWER` where the answer isn't in the list."""
    audio: Tensor | None = None
    """(B, T, A) float32, sentiment: standardised, padded with 0."""
    audio_mask: Tensor | None = None
    """(B, T) bool."""
    score: Tensor | None = None
    """(B,) float32, sentiment."""


@dataclass(frozen=True)
class UniVLInputs(TextInputs):
    """Clips as UniVL reads them. What of them hangs on the task, such as which text, is in tasks.py."""

    task: TaskConfig = field(default_factory=TaskConfig)
    answers: Answers | None = None
    """For open_ended."""
    backbone: UniVLConfig = field(default_factory=UniVLConfig)
    feature_size: int = 0
    """D, for a batch in which no clip has frames."""
    audio: AudioScale | None = None
    """For sentiment; None: audio isn't read."""

    def batch(self, clips: list[Clip], seed: int | np.random.Generator) -> UniVLBatch:
        """A training batch; captions, masks and the permutation come from `seed` alone, so equal arguments give equal batches."""
        generator, task = np.random.default_rng(seed), TASKS[self.task.name]
        captions = [draw_caption(clip, generator) for clip in clips]
        text_ids, text_mask = self.pad([task.text(self, clip, caption) for clip, caption in zip(clips, captions)])
        arrays = self._clean(clips)
        masked_text_ids, masked_word_labels = self._mask_words(text_ids, text_mask, generator)
        masked_video, masked_frames = masking.mask_frames(arrays["video"], arrays["video_mask"], self.data.mask_probability, generator)
        said = self.pad([self.encode(caption) for caption in captions]) if task.says_captions else (text_ids, text_mask)
        decoder_input_ids, decoder_mask, decoder_target_ids = masking.shift_captions(*said)
        arrays |= dict(
            text_ids=text_ids, text_mask=text_mask, masked_text_ids=masked_text_ids, masked_word_labels=masked_word_labels,
            masked_video=masked_video, masked_frames=masked_frames,
            decoder_input_ids=decoder_input_ids, decoder_mask=decoder_mask, decoder_target_ids=decoder_target_ids,
            shuffled=masking.derange(len(clips), generator),
        )  # fmt: skip
        if self.data.word_dropout:
            kept = generator.random(text_mask.shape) >= self.data.word_dropout
            kept[:, 0] = True  # [CLS]
            arrays["text_mask"] = text_mask & kept
        if "context_ids" in arrays:
            arrays["masked_context_ids"] = self._mask_words(arrays["context_ids"], arrays["context_mask"], generator)[0]
        return to_batch(arrays)

    def evaluation(self, clips: list[Clip]) -> UniVLBatch:
        """What predictions take, without anything random; not for retrieval, which has `texts` and `videos`."""
        arrays = self._clean(clips)
        if TASKS[self.task.name].reads_transcripts(self):
            arrays["text_ids"], arrays["text_mask"] = self.pad([self.encode(clip.transcript or "") for clip in clips])
        return to_batch(arrays)

    def videos(self, clips: list[Clip]) -> tuple[Tensor, Tensor]:
        """Features (V, F, D) and mask (V, F), padded to `data.max_frames`, so that parts of a split can be joined."""
        padded = pad_rows([clip.features for clip in clips], self.data.max_frames, self.feature_size, self.data.max_frames)
        return tuple(map(torch.from_numpy, padded))

    def encode(self, text: str) -> list[int]:
        return self.vocabulary.encode(text, self.data.max_words)

    def pad(self, texts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask (B, L); not cut to the longest: frames have the cross encoder's positions from `max_words` on, as published."""
        mask = np.arange(self.data.max_words) < np.array([len(ids) for ids in texts])[:, None]
        padded = np.full(mask.shape, self.vocabulary.pad_id, dtype=np.int64)
        padded[mask] = np.concatenate(texts)
        return padded, mask

    def _clean(self, clips: list[Clip]) -> dict[str, np.ndarray]:
        """What comes without chance: frames, and what the task adds to them."""
        task = TASKS[self.task.name]
        video, mask = pad_rows([clip.features for clip in clips], self.data.max_frames, self.feature_size, task.num_rows(self))
        return dict(video=video, video_mask=mask) | task.own(self, clips)

    def _mask_words(self, ids: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        words = self.vocabulary
        return masking.mask_words(
            ids, is_special(ids, mask, words), self.data.mask_probability, words.mask_id, words.random_word_range, generator
        )


def draw_caption(clip: Clip, generator: np.random.Generator) -> str:
    """One of its captions; of a clip without any, an empty one."""
    return clip.captions[generator.integers(len(clip.captions))] if clip.captions else ""


def to_batch(arrays: dict[str, np.ndarray]) -> UniVLBatch:
    """A batch of what there is; the rest is None."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return UniVLBatch(**{item.name: tensors.get(item.name) for item in fields(UniVLBatch)})
