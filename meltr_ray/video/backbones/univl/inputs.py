"""UniVL's batches: clips, captions, questions, transcripts and audio as its encoders and its decoder read them.

B: clips, L: word pieces, C: caption positions of the decoder, F: frames, D: video feature size, T: rows of audio, A: audio
feature size, U: different texts of options, O: options of a question.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Self

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from meltr_ray.video.backbones.batch import Batch, TextInputs
from meltr_ray.video.backbones.univl.settings import UniVLConfig
from meltr_ray.video.clips import masking
from meltr_ray.video.clips.answers import Answers
from meltr_ray.video.clips.captions import is_special
from meltr_ray.video.clips.clip import Clip, Question
from meltr_ray.video.tasks.settings import TaskConfig

NO_ANSWER = -1
"""Number of a right answer that isn't among the answers."""
AUDIO_REACH = 5.0
"""Standardised audio is cut to this many standard deviations."""


@dataclass
class UniVLBatch(Batch):
    """One text of each clip. Masks are true at real positions; padding follows them.

    Texts are padded to `data.max_words`, clips and decoder captions to the longest of the batch.
    """

    text_ids: Tensor | None
    """(B, L) int64: [CLS], word pieces, [SEP], padding. What it is the text of depends on the task, see `UniVLInputs`."""
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
    """(B,) int64: number of the right option or answer; `NO_ANSWER` where the answer isn't in the list."""
    audio: Tensor | None = None
    """(B, T, A) float32, sentiment: standardised, padded with 0."""
    audio_mask: Tensor | None = None
    """(B, T) bool."""
    score: Tensor | None = None
    """(B,) float32, sentiment."""


@dataclass(frozen=True)
class AudioScale:
    """Mean and standard deviation (A,) of each audio feature over train."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, clips: Iterable[Clip]) -> Self | None:
        """Over the rows of all clips, one held at a time, which should be those of train; None where there is no audio."""
        scaler = StandardScaler()
        for clip in clips:
            if clip.audio is not None and len(clip.audio):
                scaler.partial_fit(clip.audio.astype(np.float64))
        return cls(scaler.mean_, scaler.scale_) if hasattr(scaler, "mean_") else None

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """(rows, A) -> the same, standardised and cut to `AUDIO_REACH`, float32."""
        return ((audio - self.mean) / self.deviation).clip(-AUDIO_REACH, AUDIO_REACH).astype(np.float32)


@dataclass(frozen=True)
class UniVLInputs(TextInputs):
    """Clips as UniVL reads them.

    The text of a clip, which all losses but a task's own read:
    retrieval: a caption. captioning: a caption too, or, as published, the transcript (`backbone.auxiliary_text`); captions are
    generated from the transcript in both cases, empty where nothing is said, never from a caption. Questions: a caption,
    or, of a clip without any, the question with its right answer. sentiment: the transcript.
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    answers: Answers | None = None
    """For open_ended."""
    backbone: UniVLConfig = field(default_factory=UniVLConfig)
    feature_size: int = 0
    """D, for a batch in which no clip has frames."""
    audio: AudioScale | None = None
    """For sentiment; None: audio isn't read."""

    def batch(self, clips: list[Clip], seed: int) -> UniVLBatch:
        """A training batch; captions, masks and the permutation come from `seed` alone, so equal arguments give equal batches."""
        generator = np.random.default_rng(seed)
        captions = [draw_caption(clip, generator) for clip in clips]
        text_ids, text_mask = self._pad([self._text(clip, caption) for clip, caption in zip(clips, captions)])
        arrays = self._clean(clips)
        masked_text_ids, masked_word_labels = self._mask_words(text_ids, text_mask, generator)
        masked_video, masked_frames = masking.mask_frames(
            arrays["video"], arrays["video_mask"], self.data.mask_probability, generator
        )
        generated = text_ids, text_mask
        if self._is("captioning"):
            generated = self._pad([self._encode(caption) for caption in captions])
        decoder_input_ids, decoder_mask, decoder_target_ids = masking.shift_captions(*generated)
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
        if "context_ids" not in arrays and not self._is("multiple_choice", "open_ended"):
            arrays["text_ids"], arrays["text_mask"] = self._pad([self._encode(clip.transcript or "") for clip in clips])
        return to_batch(arrays)

    def videos(self, clips: list[Clip]) -> tuple[Tensor, Tensor]:
        """Features (V, F, D) and mask (V, F), padded to `data.max_frames`, so that parts of a split can be joined."""
        padded = pad_rows([clip.features for clip in clips], self.data.max_frames, self.feature_size, self.data.max_frames)
        return tuple(map(torch.from_numpy, padded))

    def _is(self, *tasks: str) -> bool:
        return self.task.name in tasks

    def _text(self, clip: Clip, caption: str) -> list[int]:
        if self._is("sentiment") or self._is("captioning") and self.backbone.auxiliary_text == "transcript":
            return self._encode(clip.transcript or "")
        if self._is("multiple_choice", "open_ended") and not clip.captions:
            return self._join(clip.question, clip.question.answer)
        return self._encode(caption)

    def _clean(self, clips: list[Clip]) -> dict[str, np.ndarray]:
        """What comes without chance: frames, and what the task adds to them."""
        # where audio follows the frames, its place must not depend on the other clips of the batch
        length = self.data.max_frames if self.audio and self._is("sentiment") else 0
        video, video_mask = pad_rows([clip.features for clip in clips], self.data.max_frames, self.feature_size, length)
        arrays = dict(video=video, video_mask=video_mask)
        match self.task.name:
            case "captioning":
                arrays |= self._captioning(clips)
            case "multiple_choice":
                arrays |= self._multiple_choice([clip.question for clip in clips])
            case "open_ended":
                arrays |= self._open_ended([clip.question for clip in clips])
            case "sentiment":
                arrays |= self._sentiment(clips)
        return arrays

    def _captioning(self, clips: list[Clip]) -> dict[str, np.ndarray]:
        words = self.vocabulary
        special = np.array([words.pad_id, words.unk_id, words.cls_id, words.sep_id, words.mask_id])
        if self.backbone.auxiliary_text == "transcript":
            return dict(special_ids=special)
        ids, mask = self._pad([self._encode(clip.transcript or "") for clip in clips])
        return dict(special_ids=special, context_ids=ids, context_mask=mask)

    def _multiple_choice(self, questions: list[Question]) -> dict[str, np.ndarray]:
        rows: dict[tuple[int, ...], int] = {}
        options = np.full((len(questions), max(len(question.options) for question in questions)), -1)
        for row, question in enumerate(questions):
            for column, option in enumerate(question.options):
                options[row, column] = rows.setdefault(tuple(self._join(question, option)), len(rows))
        ids, mask = self._pad([list(pair) for pair in rows])
        right = np.array([NO_ANSWER if question.right is None else question.right for question in questions])
        return dict(option_ids=ids, option_mask=mask, options=options, answer=right)

    def _open_ended(self, questions: list[Question]) -> dict[str, np.ndarray]:
        ids, mask = self._pad([self._encode(question.question) for question in questions])
        numbers = [self.answers.number(question.answer) for question in questions]
        return dict(question_ids=ids, question_mask=mask, answer=np.array([NO_ANSWER if n is None else n for n in numbers]))

    def _sentiment(self, clips: list[Clip]) -> dict[str, np.ndarray]:
        arrays = dict(score=np.array([clip.score for clip in clips], dtype=np.float32))
        if self.audio:
            rows = [None if clip.audio is None else self.audio(clip.audio) for clip in clips]
            arrays["audio"], arrays["audio_mask"] = pad_rows(rows, self.data.max_frames, len(self.audio.mean))
        return arrays

    def _encode(self, text: str) -> list[int]:
        return self.vocabulary.encode(text, self.data.max_words)

    def _join(self, question: Question, answer: str) -> list[int]:
        """[CLS], question, [SEP], answer, [SEP], without a question [CLS], answer, [SEP]; of a long pair, the question is cut."""
        ids = self._encode(answer)
        room = self.data.max_words - len(ids) + 1
        if not question.question or room < 3:
            return ids
        return [*self.vocabulary.encode(question.question, room), *ids[1:]]

    def _pad(self, texts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask (B, L); not cut to the longest: frames have the cross encoder's positions from `max_words` on, as published."""
        mask = np.arange(self.data.max_words) < np.array([len(ids) for ids in texts])[:, None]
        padded = np.full(mask.shape, self.vocabulary.pad_id, dtype=np.int64)
        padded[mask] = np.concatenate(texts)
        return padded, mask

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


def pad_rows(
    clips: list[np.ndarray | None], max_rows: int, size: int = 0, length: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features (B, F, D) and their mask (B, F); of a longer clip, the rows in the middle of `max_rows` equal parts.

    `size`: D where no clip has any; `length`: F at least. Without any features at all F and D are 0.
    Differs from the published data loader, which takes the first `max_rows`.
    """
    size = next((clip.shape[1] for clip in clips if clip is not None), size)
    lengths = np.array([0 if clip is None else min(len(clip), max_rows) for clip in clips])
    mask = np.arange(max(lengths.max(), length if size else 0)) < lengths[:, None]
    padded = np.zeros((*mask.shape, size), dtype=np.float32)
    for row, (clip, length) in enumerate(zip(clips, lengths)):
        if length:
            padded[row, :length] = clip[(2 * np.arange(length) + 1) * len(clip) // (2 * length)]
    return padded, mask
