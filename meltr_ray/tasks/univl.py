"""UniVL at retrieval: its batch and its losses.

B: clips, L: word pieces, C: caption positions of the decoder, F: frames, D: video feature size, H: hidden size,
Q: queries, V: videos.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from meltr_ray import losses as loss_functions
from meltr_ray.backbones.univl import UniVL
from meltr_ray.config import TaskConfig
from meltr_ray.data import masking
from meltr_ray.data.captions import draw_captions, is_special, pad_captions
from meltr_ray.data.store import Clip
from meltr_ray.tasks.batch import Batch, TextInputs

JOINT = {"clean": ("joint", "shuffled"), "masked": ("masked_joint",)}
ALIGN = {"clean": ("align",), "masked": ("masked_align",)}
CAPTION = {"clean": ("caption",), "masked": ("masked_caption",)}
CROSS = {"clean": CAPTION["clean"], "masked": ("masked_language", "masked_frame", *CAPTION["masked"])}
ENCODED = {view: (*JOINT[view], *ALIGN[view], *CROSS[view]) for view in ("clean", "masked")}
"""Which losses need which pass over which view of the batch; `joint` losses need no more than the encodings."""

JOINT_LOSSES = {"contrastive": loss_functions.contrastive, "margin": loss_functions.max_margin}


@dataclass
class UniVLBatch(Batch):
    """One caption of each clip. Masks are true at real positions; padding follows them.

    Captions are padded to `data.max_words`, clips and decoder captions to the longest of the batch.
    """

    text_ids: Tensor
    """(B, L) int64: [CLS], word pieces, [SEP], padding."""
    text_mask: Tensor
    """(B, L) bool."""
    video: Tensor
    """(B, F, D) float32, padded with 0."""
    video_mask: Tensor
    """(B, F) bool."""
    masked_text_ids: Tensor
    """(B, L) int64."""
    masked_word_labels: Tensor
    """(B, L) int64: the true id of a masked word, else -1."""
    masked_video: Tensor
    """(B, F, D) float32, masked frames 0."""
    masked_frames: Tensor
    """(B, F) bool: which frames are masked."""
    decoder_input_ids: Tensor
    """(B, C) int64: [CLS] w1 .. wn."""
    decoder_mask: Tensor
    """(B, C) bool."""
    decoder_target_ids: Tensor
    """(B, C) int64: w1 .. wn [SEP], padding -1."""
    shuffled: Tensor
    """(B,) int64: a permutation without fixed points."""


@dataclass(frozen=True)
class UniVLInputs(TextInputs):
    """Clips and captions as UniVL reads them."""

    def batch(self, clips: list[Clip], seed: int) -> UniVLBatch:
        """A training batch; captions, masks and the permutation come from `seed` alone, so equal arguments give equal batches."""
        generator = np.random.default_rng(seed)
        text_ids, text_mask = pad_captions(draw_captions(clips, generator), self.vocabulary, self.data.max_words)
        video, video_mask = pad_videos([clip.features for clip in clips], self.data.max_frames)
        masked_text_ids, masked_word_labels = masking.mask_words(
            text_ids, is_special(text_ids, text_mask, self.vocabulary), self.data.mask_probability, self.vocabulary.mask_id,
            self.vocabulary.random_word_range, generator,
        )  # fmt: skip
        masked_video, masked_frames = masking.mask_frames(video, video_mask, self.data.mask_probability, generator)
        decoder_input_ids, decoder_mask, decoder_target_ids = masking.shift_captions(text_ids, text_mask)
        arrays = dict(
            text_ids=text_ids, text_mask=text_mask, video=video, video_mask=video_mask,
            masked_text_ids=masked_text_ids, masked_word_labels=masked_word_labels,
            masked_video=masked_video, masked_frames=masked_frames,
            decoder_input_ids=decoder_input_ids, decoder_mask=decoder_mask, decoder_target_ids=decoder_target_ids,
            shuffled=masking.derange(len(clips), generator),
        )  # fmt: skip
        return UniVLBatch(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})

    def videos(self, clips: list[Clip]) -> tuple[Tensor, Tensor]:
        """Features (V, F, D) and mask (V, F), padded to `data.max_frames`, so that parts of a split can be joined."""
        video, mask = pad_videos([clip.features for clip in clips], self.data.max_frames)
        short = self.data.max_frames - mask.shape[1]
        return torch.from_numpy(np.pad(video, ((0, 0), (0, short), (0, 0)))), torch.from_numpy(np.pad(mask, ((0, 0), (0, short))))


def pad_videos(videos: list[np.ndarray], max_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (B, F, D) and their mask (B, F); of a longer clip, the frames in the middle of `max_frames` equal parts.

    Differs from the published data loader, which takes the first `max_frames`.
    """
    lengths = np.array([min(len(video), max_frames) for video in videos])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.zeros((*mask.shape, videos[0].shape[1]), dtype=np.float32)
    for row, (video, length) in enumerate(zip(videos, lengths)):
        padded[row, :length] = video[(2 * np.arange(length) + 1) * len(video) // (2 * length)]
    return padded, mask


@dataclass
class Encoded:
    """Text and video encodings of n views of a batch, stacked view after view: (n B, ...)."""

    views: tuple[str, ...]
    text: Tensor
    text_mask: Tensor
    video: Tensor
    video_mask: Tensor
    frames: Tensor
    """(n B, F, D): normalised features that went in."""

    def of(self, views: tuple[str, ...]) -> Encoded:
        tensors = (getattr(self, item.name) for item in fields(self)[1:])
        return Encoded(views, *(take(x, self.views, views) for x in tensors))


def take(stacked: Tensor, views: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    """The rows of the `wanted` views, all or one, out of a stack of `views`."""
    return stacked if wanted == views else stacked.chunk(len(views))[views.index(wanted[0])]


def views_for(names: tuple[str, ...], table: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Views, of those in `table`, that some loss of `names` needs."""
    return tuple(view for view, losses in table.items() if not set(losses).isdisjoint(names))


def widen(x: Tensor) -> Tensor:
    """float32, or float64 where a test has a model of that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class UniVLLosses(nn.Module):
    """All losses of retrieval, the controls included; the module that the engine trains."""

    def __init__(self, backbone: UniVL, config: TaskConfig):
        super().__init__()
        self.backbone, self.config = backbone, config

    def forward(self, batch: UniVLBatch, names: tuple[str, ...] | None = None) -> Tensor:
        """Losses (T,) float32 in the order of `names` (default: the loss set); passes that no name needs are left out.

        Shared as in the published code: the encodings of a view, clean or masked, and one masked cross pass. Differs from
        it in that both views go through a module together, stacked in the batch dimension: half the kernels, and under
        ZeRO-3 half the gathers of weights.
        """
        names = tuple(self.config.loss_set) if names is None else names
        found = {"constant": torch.ones((), device=batch.video.device)}
        if views := views_for(names, ENCODED):
            encoded = self._encode(batch, views)
            found |= self._joint(batch, encoded, names)
            found |= self._align(encoded, names)
            found |= self._cross(batch, encoded, names)
        return torch.stack([widen(found[name]) for name in names])

    def query(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Captions (Q, L) as the primary loss compares them: embeddings (Q, H) for `joint`, encodings (Q, L, H) for `align`; and their mask."""
        text = self.backbone.encode_text(ids, mask)
        return self.backbone.embed_text(text, mask) if self.config.primary == "joint" else text, mask

    def candidate(self, video: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Videos (V, F, D) as the primary loss compares them: embeddings (V, H) or encodings (V, F, H); and their mask."""
        encoded = self.backbone.encode_video(self.backbone.normalize_video(video), mask)
        return self.backbone.embed_video(encoded, mask) if self.config.primary == "joint" else encoded, mask

    def similarity(self, query: tuple[Tensor, Tensor], candidate: tuple[Tensor, Tensor]) -> Tensor:
        """Similarity (Q, V) of what `query` and `candidate` gave."""
        if self.config.primary == "joint":
            return self.backbone.joint_similarity(query[0], candidate[0])
        return self.backbone.pair_similarity(*query, *candidate)

    def _encode(self, batch: UniVLBatch, views: tuple[str, ...]) -> Encoded:
        ids = {"clean": batch.text_ids, "masked": batch.masked_text_ids}
        videos = {"clean": batch.video, "masked": batch.masked_video}
        text_mask, video_mask = batch.text_mask.repeat(len(views), 1), batch.video_mask.repeat(len(views), 1)
        text = self.backbone.encode_text(torch.cat([ids[view] for view in views]), text_mask)
        frames = self.backbone.normalize_video(torch.cat([videos[view] for view in views]))
        return Encoded(views, text, text_mask, self.backbone.encode_video(frames, video_mask), video_mask, frames)

    def _joint(self, batch: UniVLBatch, encoded: Encoded, names: tuple[str, ...]) -> dict[str, Tensor]:
        found, views = {}, views_for(names, JOINT)
        if not views:
            return found
        encoded = encoded.of(views)
        loss = JOINT_LOSSES[self.backbone.config.joint_loss]
        with torch.autocast(encoded.text.device.type, enabled=False):  # differences of this loss need float32
            text = self.backbone.embed_text(widen(encoded.text), encoded.text_mask)
            video = self.backbone.embed_video(widen(encoded.video), encoded.video_mask)
            for view, rows, columns in zip(views, text.chunk(len(views)), video.chunk(len(views))):
                similarity = self.backbone.joint_similarity(rows, columns)
                if view == "masked":
                    found["masked_joint"] = loss(similarity)
                    continue
                if "joint" in names:
                    found["joint"] = loss(similarity)
                if "shuffled" in names:  # row i is the caption of another clip, its target still video i
                    found["shuffled"] = loss(similarity[batch.shuffled])
        return found

    def _align(self, encoded: Encoded, names: tuple[str, ...]) -> dict[str, Tensor]:
        found = {}
        for view in views_for(names, ALIGN):
            part = encoded.of((view,))
            similarity = self.backbone.pair_similarity(part.text, part.text_mask, part.video, part.video_mask)
            found[ALIGN[view][0]] = loss_functions.text_to_video(similarity)
        return found

    def _cross(self, batch: UniVLBatch, encoded: Encoded, names: tuple[str, ...]) -> dict[str, Tensor]:
        found, views = {}, views_for(names, CROSS)
        if not views:
            return found
        part = encoded.of(views)
        crossed = self.backbone.encode_cross(part.text, part.text_mask, part.video, part.video_mask)
        if "masked" in views:
            words, frames = take(crossed, views, ("masked",)).split((part.text.size(1), part.video.size(1)), dim=1)
        if "masked_language" in names:
            masked = batch.masked_word_labels >= 0
            scores = self.backbone.predict_words(words[masked])
            found["masked_language"] = loss_functions.word_cross_entropy(scores, batch.masked_word_labels[masked])
        if "masked_frame" in names:
            predicted = self.backbone.predict_frames(frames[batch.masked_frames])
            if "clean" in encoded.views:
                targets = take(encoded.frames, encoded.views, ("clean",))
            else:
                targets = self.backbone.normalize_video(batch.video)
            with torch.autocast(predicted.device.type, enabled=False):
                found["masked_frame"] = loss_functions.masked_frame(
                    widen(predicted), widen(targets), batch.video_mask, batch.masked_frames
                )
        return found | self._captions(batch, crossed, views, names)

    def _captions(
        self, batch: UniVLBatch, crossed: Tensor, views: tuple[str, ...], names: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """`crossed` (n B, L+F, H): the cross encoder's output for `views`."""
        captions = views_for(names, CAPTION)
        if not captions:
            return {}
        mask = torch.cat((batch.text_mask, batch.video_mask), dim=1)
        ids, decoder_mask, targets, mask = (
            x.repeat(len(captions), 1) for x in (batch.decoder_input_ids, batch.decoder_mask, batch.decoder_target_ids, mask)
        )
        chosen = targets >= 0
        scores = self.backbone.predict_caption(ids, decoder_mask, take(crossed, views, captions), mask, chosen)
        targets = targets[chosen]
        return {
            CAPTION[view][0]: loss_functions.word_cross_entropy(*(take(x, captions, (view,)) for x in (scores, targets)))
            for view in captions
        }
