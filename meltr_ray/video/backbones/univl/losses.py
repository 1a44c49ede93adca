"""UniVL's losses of all tasks, and its predictions.

B: clips, L: word pieces, F: frames, D: video feature size, T: rows of audio, H: hidden size, Q: queries, V: videos, U: different
texts of options, O: options of a question.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meltr_ray.video import losses as loss_functions
from meltr_ray.video.backbones.univl.inputs import UniVLBatch
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.passes import (
    ALIGN,
    CAPTION,
    CROSS,
    IDS_OF,
    JOINT,
    TEXT_OF,
    VIDEOS,
    Encoded,
    Stack,
    stack,
    text_of,
    texts_for,
    video_of,
)
from meltr_ray.video.backbones.univl.tasks import NO_ANSWER
from meltr_ray.video.tasks.beam_search import beam_search
from meltr_ray.video.tasks.settings import TaskConfig

JOINT_LOSSES = {"contrastive": loss_functions.contrastive, "margin": loss_functions.max_margin}


def widen(x: Tensor) -> Tensor:
    """float32, or float64 where a test has a model of that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy(scores: Tensor, answer: Tensor) -> Tensor:
    """Mean over the questions whose answer (B,) is among those scored (B, K), in float32 at least; of no question 0."""
    known = answer != NO_ANSWER
    return F.cross_entropy(widen(scores[known]), answer[known], reduction="sum") / max(int(known.sum()), 1)


class UniVLLosses(nn.Module):
    """All losses of a task, the controls included; the module that the engine trains."""

    def __init__(self, backbone: UniVL, config: TaskConfig):
        super().__init__()
        self.backbone, self.config = backbone, config

    def forward(self, batch: UniVLBatch, names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """The losses in `names` (default: the loss set), float32 scalars; passes that no name needs are left out.

        Shared as in the published code: the encodings of a text or video, clean or masked, and one masked cross pass. Differs
        from it in that all texts, all videos and all cross passes go through a module together, stacked in the batch dimension:
        half the kernels, and under ZeRO-3 half the gathers of weights.
        """
        names = tuple(self.config.loss_set) if names is None else names
        found = {"constant": torch.ones((), device=batch.video.device)}
        if texts := texts_for(names, batch):
            encoded = self._encode(batch, texts)
            found |= self._joint(batch, encoded, names)
            found |= self._align(encoded, names)
            found |= self._cross(batch, encoded, names)
            found |= self._own(batch, encoded, names)
        return {name: widen(found[name]) for name in names}

    def query(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Captions (Q, L) as the primary loss compares them, embeddings (Q, H) for `joint`, encodings (Q, L, H) for `align`; and a mask."""
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

    def embedding_similarity(self, query: tuple[Tensor, Tensor], candidate: tuple[Tensor, Tensor]) -> Tensor:
        """Joint similarity (Q, V) of encodings, by which candidates for `align` are chosen."""
        return self.backbone.joint_similarity(self.backbone.embed_text(*query), self.backbone.embed_video(*candidate))

    def pair_scores(self, query: tuple[Tensor, Tensor], candidate: tuple[Tensor, Tensor]) -> Tensor:
        """Cross encoder's scores (N,) of encoded captions and videos, row by row."""
        return self.backbone.match(*query, *candidate)

    def scores(self, batch: UniVLBatch) -> Tensor:
        """Of options (B, O), -inf where a question has fewer, or of answers (B, answers)."""
        if batch.options is None:
            return self.backbone.predict_answer(*self._encode(batch, ("question",)).of("question"))
        return self._choose(batch, self._encode(batch, ("options",)))

    def rate(self, batch: UniVLBatch) -> Tensor:
        """Sentiment (B,)."""
        return self.backbone.predict_score(*self._encode(batch, ("clean",)).of("clean"))

    @torch.no_grad()
    def generate(self, batch: UniVLBatch, task: TaskConfig) -> list[tuple[list[int], float]]:
        """A caption of each clip: its ids without [CLS] and [SEP], and its log probability; in evaluation mode deterministic.

        `task`: `beam_size`, `length_penalty` and `max_caption_words`. Unlike the published search, none of [PAD], [UNK], [CLS]
        and [MASK] is ever chosen.
        """
        pad, unknown, start, end, mask = batch.special_ids.tolist()
        parts = self._encode(batch, (text_of("caption", batch),)).of(text_of("caption", batch))
        decoder = self.backbone.decoder
        cache = decoder.start(self.backbone.encode_cross(*parts), torch.cat((parts[1], parts[3]), dim=1), task.beam_size)

        def step(ids: Tensor, rows: Tensor) -> Tensor:
            cache.follow(rows)
            return decoder.step(ids, cache)

        return beam_search(step, len(batch.video), task.beam_size, task.max_caption_words, start, end,
                           [pad, unknown, start, mask], task.length_penalty, batch.video.device)  # fmt: skip

    def _encode(self, batch: UniVLBatch, texts: tuple[str, ...]) -> Encoded:
        ids, mask = (stack({text: getattr(batch, IDS_OF[text][i]) for text in texts}) for i in (0, 1))
        text = Stack(ids.sizes, self.backbone.encode_text(ids.rows, mask.rows))
        names = [video for video in VIDEOS if video in map(video_of, texts)]
        frames, parts, masks = None, [], []
        if self.backbone.has_frames:
            frames = stack({name: batch.video if name == "clean" else batch.masked_video for name in names})
            frames = Stack(frames.sizes, self.backbone.normalize_video(frames.rows))
            parts.append(self.backbone.encode_video(frames.rows, batch.video_mask.repeat(len(names), 1)))
            masks.append(batch.video_mask)
        if self.backbone.has_audio:
            parts.append(self.backbone.embed_audio(batch.audio).repeat(len(names), 1, 1))
            masks.append(batch.audio_mask)
        if not parts:  # text alone
            parts, masks = [text.rows.new_zeros(len(names) * len(batch.video), 0, text.rows.size(-1))], [batch.video_mask]
        video = Stack({name: len(batch.video) for name in names}, torch.cat(parts, dim=1))
        return Encoded(text, mask, video, torch.cat(masks, dim=1), frames)

    def _similarity(self, encoded: Encoded, text: str) -> Tensor:
        """Joint similarities (rows of `text`, B)."""
        words, mask, _, _ = encoded.of(text)
        with torch.autocast(words.device.type, enabled=False):  # differences of the joint losses need float32
            rows = self.backbone.embed_text(widen(words), mask)
            columns = self.backbone.embed_video(widen(encoded.video.of(video_of(text))), encoded.video_mask)
            return self.backbone.joint_similarity(rows, columns)

    def _joint(self, batch: UniVLBatch, encoded: Encoded, names: tuple[str, ...]) -> dict[str, Tensor]:
        found, loss = {}, JOINT_LOSSES[self.backbone.config.joint_loss]
        for text in texts_for(names, batch, JOINT):
            similarity = self._similarity(encoded, text)
            found["joint" if text == "clean" else "masked_joint"] = loss(similarity)
            if "shuffled" in names and text == "clean":  # row i is the caption of another clip, its target still video i
                found["shuffled"] = loss(similarity[batch.shuffled])
        return found

    def _align(self, encoded: Encoded, names: tuple[str, ...]) -> dict[str, Tensor]:
        found = {}
        for name in ALIGN:
            if name in names:
                text = TEXT_OF[name]
                found[name] = loss_functions.text_to_video(self.backbone.pair_similarity(*encoded.of(text)))
        return found

    def _cross(self, batch: UniVLBatch, encoded: Encoded, names: tuple[str, ...]) -> dict[str, Tensor]:
        texts = texts_for(names, batch, CROSS)
        if not texts:
            return {}
        parts = encoded.of(*texts)
        size = len(batch.video)
        crossed = Stack(dict.fromkeys(texts, size), self.backbone.encode_cross(*parts))
        mask = torch.cat((parts[1], parts[3]), dim=1)
        return self._masked(batch, encoded, crossed, names) | self._captions(batch, crossed, Stack(crossed.sizes, mask), names)

    def _masked(self, batch: UniVLBatch, encoded: Encoded, crossed: Stack, names: tuple[str, ...]) -> dict[str, Tensor]:
        found = {}
        if "masked_language" in names:
            masked = batch.masked_word_labels >= 0
            scores = self.backbone.predict_words(crossed.of("masked")[:, : masked.size(1)][masked])
            found["masked_language"] = loss_functions.word_cross_entropy(scores, batch.masked_word_labels[masked])
        if "masked_frame" in names and not self.backbone.has_frames:
            found["masked_frame"] = crossed.rows.new_zeros(())  # a loss over nothing
        elif "masked_frame" in names:
            first = batch.text_mask.size(1)
            frames = crossed.of("masked")[:, first : first + batch.video.size(1)]
            predicted = self.backbone.predict_frames(frames[batch.masked_frames])
            clean = "clean" in encoded.frames.sizes
            targets = encoded.frames.of("clean") if clean else self.backbone.normalize_video(batch.video)
            with torch.autocast(predicted.device.type, enabled=False):
                found["masked_frame"] = loss_functions.masked_frame(widen(predicted), widen(targets), batch.video_mask, batch.masked_frames)
        return found

    def _captions(self, batch: UniVLBatch, crossed: Stack, mask: Stack, names: tuple[str, ...]) -> dict[str, Tensor]:
        """`crossed` (B, L+F+T, H) for each text, and its mask."""
        wanted = [name for name in CAPTION if name in names]
        if not wanted:
            return {}
        texts = [text_of(name, batch) for name in wanted]
        ids, decoder_mask, targets = (
            x.repeat(len(texts), 1) for x in (batch.decoder_input_ids, batch.decoder_mask, batch.decoder_target_ids)
        )
        chosen = targets >= 0
        scores = self.backbone.predict_caption(ids, decoder_mask, crossed.of(*texts), mask.of(*texts), chosen)
        pairs = zip(scores.chunk(len(texts)), targets[chosen].chunk(len(texts)))
        return {name: loss_functions.word_cross_entropy(*pair) for name, pair in zip(wanted, pairs)}

    def _own(self, batch: UniVLBatch, encoded: Encoded, names: tuple[str, ...]) -> dict[str, Tensor]:
        """The tasks' own losses. Sentiment's is the mean absolute error, the metric that the field reports first."""
        found = {}
        if "choice" in names:
            found["choice"] = cross_entropy(self._choose(batch, encoded), batch.answer)
        if "answer" in names:
            found["answer"] = cross_entropy(self.backbone.predict_answer(*encoded.of("question")), batch.answer)
        if "sentiment" in names:
            found["sentiment"] = F.l1_loss(widen(self.backbone.predict_score(*encoded.of("clean"))), batch.score)
        return found

    def _choose(self, batch: UniVLBatch, encoded: Encoded) -> Tensor:
        """Scores of the options (B, O), -inf where a question has fewer."""
        there = batch.options >= 0
        if self.backbone.config.choice_score == "joint":
            scores = self._similarity(encoded, "options").T.gather(1, batch.options.clamp(min=0))
            return scores.masked_fill(~there, -torch.inf)
        texts, clips = batch.options[there], there.nonzero()[:, 0]
        text, mask, video, video_mask = encoded.of("options")
        scores = self.backbone.match(text[texts], mask[texts], video[clips], video_mask[clips])
        return scores.new_full(there.shape, -torch.inf).masked_scatter(there, scores)
