"""VIOLET's losses, as the code of MELTR has them, and what retrieval and question answering ask of it.

B: clips, T: frames, P: video positions, L: word pieces, O: options of a question, Q: texts, V: videos, H: hidden size.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meltr_ray.video import losses as loss_functions
from meltr_ray.video.backbones.layers import used_length
from meltr_ray.video.backbones.violet.inputs import VioletBatch
from meltr_ray.video.backbones.violet.model import Violet
from meltr_ray.video.backbones.violet.settings import VioletConfig
from meltr_ray.video.tasks.settings import TaskConfig

PAIRS = ("matching", "shuffled", "answer")
MASKED = ("masked_language", "masked_patch")
"""Losses from the pass over pairs of text and video, and from the masked pass."""


class VioletLosses(nn.Module):
    """All losses of a task, the controls included; the module that the engine trains."""

    def __init__(self, backbone: Violet, config: TaskConfig):
        super().__init__()
        self.backbone, self.config = backbone, config

    def forward(self, batch: VioletBatch, names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """The losses in `names` (default: the loss set), float32 scalars; passes that no name needs are left out."""
        return violet_losses(self.backbone, batch, tuple(self.config.loss_set) if names is None else names)

    def scores(self, batch: VioletBatch) -> Tensor:
        """Scores of the answers (B, A), or of the options (B, O), -inf for those that a question lacks."""
        model, batch = self.backbone, cut_padding(batch)
        ids, mask = (x.flatten(0, -2) for x in (batch.text_ids, batch.text_mask))
        clips = torch.arange(len(batch.frames), device=ids.device).repeat_interleave(len(ids) // len(batch.frames))
        video = model.encode_video(batch.frames)
        first = model.encode_pairs(model.embed_text(ids), mask, video, torch.arange(len(ids), device=ids.device), clips)
        return answer_scores(model, first, batch)

    def query(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Captions (Q, L) -> embedded (Q, L, H), and their mask."""
        return self.backbone.embed_text(ids), mask

    def candidate(self, frames: Tensor) -> tuple[Tensor]:
        """Videos -> (V, P, H)."""
        return (self.backbone.encode_video(frames),)

    def similarity(self, query: tuple[Tensor, Tensor], candidate: tuple[Tensor]) -> Tensor:
        """Matching scores (Q, V) of what `query` and `candidate` gave."""
        return self.backbone.pair_similarity(*query, *candidate)


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean over the N rows of scores (N, K) with targets (N,) int64, in float32 at least; of no row 0."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return F.cross_entropy(scores, targets, reduction="sum") / max(len(targets), 1)


def cut_padding(batch: VioletBatch) -> VioletBatch:
    """Texts up to the longest of the batch: no pass attends to padding, so the losses are the same.

    Not beyond a labelled position: the published masking of options labels padding, too.
    """
    used = batch.text_mask if batch.word_labels is None else batch.text_mask | (batch.word_labels >= 0)
    length = used_length(used)
    given = {name: getattr(batch, name) for name in ("text_ids", "text_mask", "masked_text_ids", "word_labels")}
    return replace(batch, **{name: x[..., :length] for name, x in given.items() if x is not None})


def answer_scores(model: Violet, first: Tensor, batch: VioletBatch) -> Tensor:
    """[CLS] (B O, H) of each clip with each of its texts -> scores (B, A), or (B, O) with -inf for options of padding."""
    scores = model.choose_answer(first.unflatten(0, (len(batch.frames), -1)))
    return scores if batch.text_ids.dim() == 2 else scores.masked_fill(~batch.text_mask.any(2), -torch.inf)


def violet_losses(model: Violet, batch: VioletBatch, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Losses float32 as published, out of `answer`, `matching`, `masked_language`, `masked_patch` and the controls.

    matching: softmax over the texts for each video, from [CLS] of every pair. answer: the task's own; retrieval has none.
    Shared: one encoding of the frames; one masked cross pass; and one pass over pairs, in which a pair that two losses need
    comes once. Differs from the published code there, which has a pass for each loss, with dropout of its own.
    """
    found = {"constant": torch.ones((), device=batch.frames.device)}
    if not {*PAIRS, *MASKED}.isdisjoint(names):
        batch = cut_padding(batch)
        video = model.encode_video(batch.frames)
        found |= pair_losses(model, batch, video, names)
        found |= masked_losses(model, batch, video, names)
    return {name: found[name] for name in names}


def pair_numbers(config: VioletConfig, batch: VioletBatch) -> dict[str, Tensor]:
    """Number video Q + text of each pair that a loss scores, Q texts in all: matching (B, B) and answer (B, O).

    Multiple choice as published (`config.published_options`), a fault kept for its numbers: the loss of all pairs takes
    clips and texts number 0 to B - 1 of the lists that repeat every clip for its options. So row i is clip i // O, and
    column j is option j % O of question j // O.
    """
    clips = torch.arange(len(batch.frames), device=batch.frames.device)
    num_options = batch.text_ids.size(1) if batch.text_ids.dim() == 3 else 1
    num_texts = num_options * len(clips)
    own_texts = torch.arange(num_texts, device=clips.device).view(len(clips), num_options)
    rows, columns = clips, own_texts.gather(1, batch.answers[:, None])[:, 0] if num_options > 1 else clips
    if config.published_options:
        rows, columns = clips // num_options, clips
    return {"matching": rows[:, None] * num_texts + columns, "answer": clips[:, None] * num_texts + own_texts}


def matching(scores: Tensor, config: VioletConfig) -> Tensor:
    """Cross entropy of scores (B, B), row i a video, column i its text."""
    if config.matching_loss == "both_ways":
        return loss_functions.contrastive(scores)
    return cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def pair_losses(model: Violet, batch: VioletBatch, video: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """`answer`, `matching` and its control as far as `names` has them; video (B, P, H)."""
    wanted = {"matching" if name == "shuffled" else name for name in names}
    numbers = {name: x for name, x in pair_numbers(model.config, batch).items() if name in wanted}
    if not numbers:
        return {}
    distinct, where = torch.cat([x.flatten() for x in numbers.values()]).unique(return_inverse=True)
    ids, mask = (x.flatten(0, -2) for x in (batch.text_ids, batch.text_mask))  # (Q, L), options one after another
    first = model.encode_pairs(model.embed_text(ids), mask, video, distinct % len(ids), distinct // len(ids))[where]
    parts = dict(zip(numbers, first.split([x.numel() for x in numbers.values()])))
    found = {}
    if "matching" in parts:
        scores = model.match(parts["matching"]).view(len(video), -1) / model.config.matching_temperature
        found["matching"] = matching(scores, model.config)
        if "shuffled" in names:  # the text of each video is another clip's
            found["shuffled"] = matching(scores[:, batch.shuffled], model.config)
    if "answer" in parts:
        found["answer"] = cross_entropy(answer_scores(model, parts["answer"], batch), batch.answers)
    return found


def masked_losses(model: Violet, batch: VioletBatch, video: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """`masked_language` and `masked_patch` as far as `names` has them; video (B, P, H).

    Patches are told with the right option (multiple choice).
    """
    if set(MASKED).isdisjoint(names):
        return {}
    ids, mask, labels = (x.flatten(0, -2) for x in (batch.masked_text_ids, batch.text_mask, batch.word_labels))
    num_options = len(ids) // len(video)
    crossed = model.encode_cross(model.embed_text(ids), mask, video.repeat_interleave(num_options, 0))
    words, patches = crossed.split((ids.size(1), video.size(1)), dim=1)
    found = {}
    if "masked_language" in names:
        chosen = labels >= 0
        found["masked_language"] = cross_entropy(model.predict_words(words[chosen]), labels[chosen])
    if "masked_patch" in names:
        if num_options > 1:
            patches = patches.unflatten(0, (-1, num_options))[torch.arange(len(video), device=video.device), batch.answers]
        masked = batch.patch_labels >= 0
        found["masked_patch"] = cross_entropy(model.predict_patches(patches[masked]), batch.patch_labels[masked])
    return found
