"""All-in-one's losses, as the published code and that of MELTR have them, and what retrieval and question answering ask of it.

B: clips, T: frames, L: word pieces, K: tokens in front of a frame's patches, P: patches of a frame, C: texts to choose
from, Q: texts, V: videos, H: hidden size.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meltr_ray.video import losses as loss_functions
from meltr_ray.video.backbones.allinone.inputs import AllInOneBatch
from meltr_ray.video.backbones.allinone.model import AllInOne
from meltr_ray.video.backbones.layers import used_length
from meltr_ray.video.tasks.reranking import PAIRS_AT_ONCE
from meltr_ray.video.tasks.settings import TaskConfig

RETRIEVAL_TEMPERATURE = 0.05


class AllInOneLosses(nn.Module):
    """All losses of a task, the controls included; the module that the engine trains."""

    def __init__(self, backbone: AllInOne, config: TaskConfig):
        super().__init__()
        self.backbone, self.config = backbone, config

    def forward(self, batch: AllInOneBatch, names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """The losses in `names` (default: the loss set), float32 scalars; passes that no name needs are left out."""
        names = tuple(self.config.loss_set) if names is None else names
        found = compute_losses(self.backbone, batch, names)
        return {name: found[name].to(torch.promote_types(found[name].dtype, torch.float32)) for name in names}

    def scores(self, batch: AllInOneBatch) -> Tensor:
        """Scores of the answers (B, A), or by the primary loss of the options (B, C), -inf for those that a question lacks."""
        batch = cut_padding(batch)
        tokens = self.backbone.embed_video(batch.video)
        if batch.choice_ids is None:
            return self.backbone.predict_answer(self.backbone.encode_joint(batch.text_ids, batch.text_mask, tokens))
        joint = self.backbone.encode_joint(*repeat_for_choices(batch, tokens))
        predict = self.backbone.predict_rank if self.config.primary == "rank" else self.backbone.predict_choice
        return choice_scores(predict(joint), batch)

    def query(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Captions (Q, L) as the primary loss compares them: ids and mask for `rank`, embeddings (Q, R) for `contrastive`."""
        if self.config.primary == "rank":
            return ids, mask
        return (self.backbone.project_text(self.backbone.encode_text(ids, mask)),)

    def candidate(self, video: Tensor) -> tuple[Tensor]:
        """Videos as the primary loss compares them: tokens (V, T, K+P, H) or embeddings (V, R)."""
        tokens = self.backbone.embed_video(video)
        return (tokens if self.config.primary == "rank" else self.backbone.project_video(self.backbone.encode_video(tokens)),)

    def similarity(self, query: tuple[Tensor, ...], candidate: tuple[Tensor]) -> Tensor:
        """Similarity (Q, V) of what `query` and `candidate` gave."""
        if self.config.primary == "contrastive":
            return query[0] @ candidate[0].T
        (ids, mask), (tokens,) = query, candidate
        pairs = torch.arange(len(ids) * len(tokens), device=ids.device)
        scores = []
        for block in pairs.split(PAIRS_AT_ONCE):
            texts, videos = block // len(tokens), block % len(tokens)
            scores.append(self.pair_scores((ids[texts], mask[texts]), (tokens[videos],)))
        return torch.cat(scores).view(len(ids), len(tokens))

    def embedding_similarity(self, query: tuple[Tensor, Tensor], candidate: tuple[Tensor]) -> Tensor:
        """Contrastive similarity (Q, V) of ids, mask and tokens, by which candidates for `rank` are chosen."""
        videos = [self.backbone.project_video(self.backbone.encode_video(part)) for part in candidate[0].split(PAIRS_AT_ONCE)]
        return self.backbone.project_text(self.backbone.encode_text(*query)) @ torch.cat(videos).T

    def pair_scores(self, query: tuple[Tensor, Tensor], candidate: tuple[Tensor]) -> Tensor:
        """Ranking scores (N,) of ids and mask with tokens, row by row."""
        return self.backbone.predict_rank(self.backbone.encode_joint(*query, *candidate))


def cut_padding(batch: AllInOneBatch) -> AllInOneBatch:
    """Texts up to the longest of the batch: no pass attends to padding, so the losses are the same."""
    length = max(used_length(mask) for mask in (batch.text_mask, batch.choice_mask) if mask is not None)
    names = ("text_ids", "text_mask", "masked_text_ids", "masked_word_labels", "choice_ids", "choice_mask")
    given = {name: getattr(batch, name) for name in names}
    return replace(batch, **{name: x[..., :length] for name, x in given.items() if x is not None})


def repeat_for_choices(batch: AllInOneBatch, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask (B C, L) of all choices and the tokens (B C, T, K+P, H) of the clip of each."""
    return batch.choice_ids.flatten(0, 1), batch.choice_mask.flatten(0, 1), tokens.repeat_interleave(batch.choice_ids.size(1), 0)


def choice_scores(scores: Tensor, batch: AllInOneBatch) -> Tensor:
    """(B C,) -> (B, C), -inf for choices that are padding."""
    return scores.view(batch.choice_mask.shape[:2]).masked_fill(~batch.choice_mask.any(2), -torch.inf)


def compute_losses(model: AllInOne, batch: AllInOneBatch, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The losses in `names`, at most three passes: all joint ones stacked, text alone, video alone; frames embedded once.

    Differs from the published code in that: it runs one joint pass a loss and embeds the frames for each anew.
    """
    found, batch = {"constant": torch.ones((), device=batch.video.device)}, cut_padding(batch)
    chosen = set(names) - {"constant"}
    matching, choices = chosen & {"matching", "alignment"}, chosen & {"rank", "choice"}
    tokens = model.embed_video(batch.video) if chosen - matching else None
    if chosen & {"contrastive", "shuffled"}:
        text = model.project_text(model.encode_text(batch.text_ids, batch.text_mask))
        similarity = text @ model.project_video(model.encode_video(tokens)).T / RETRIEVAL_TEMPERATURE
        found["contrastive"] = 2 * loss_functions.contrastive(similarity)
        if "shuffled" in chosen:  # row i is the text of another clip, its target still clip i
            found["shuffled"] = 2 * loss_functions.contrastive(similarity[batch.shuffled])
    rows = {}
    if matching:
        mixed = torch.where(batch.matched[:, None, None, None, None], batch.video, batch.false_video)
        rows["matching"] = (batch.text_ids, batch.text_mask, model.embed_video(mixed))
    if "masked_language" in chosen:
        rows["masked_language"] = (batch.masked_text_ids, batch.text_mask, tokens)
    if "answer" in chosen:
        rows["answer"] = (batch.text_ids, batch.text_mask, tokens)
    if choices:
        rows["choices"] = repeat_for_choices(batch, tokens)
    if not rows:
        return found
    num_kept = None if "alignment" in chosen else batch.text_ids.size(1) if "masked_language" in chosen else 1
    joint = model.encode_joint(*(torch.cat(parts) for parts in zip(*rows.values())), num_kept)
    joint = dict(zip(rows, joint.split([len(part[0]) for part in rows.values()])))
    if "matching" in chosen:
        found["matching"] = F.cross_entropy(model.predict_match(joint["matching"]), batch.matched.long())
    if "alignment" in chosen:
        found["alignment"] = alignment(joint["matching"], batch.text_mask, batch.matched, model.config.unaligned_tokens)
    if "masked_language" in chosen:
        masked = batch.masked_word_labels >= 0
        scores = model.predict_words(joint["masked_language"][:, : masked.size(1)][masked])
        found["masked_language"] = loss_functions.word_cross_entropy(scores, batch.masked_word_labels[masked])
    if "answer" in chosen:
        found["answer"] = F.cross_entropy(model.predict_answer(joint["answer"]), batch.answer)
    if "rank" in chosen:
        found["rank"] = F.cross_entropy(choice_scores(model.predict_rank(joint["choices"]), batch), batch.answer)
    if "choice" in chosen:
        found["choice"] = F.cross_entropy(choice_scores(model.predict_choice(joint["choices"]), batch), batch.answer)
    return found


def alignment(joint: Tensor, text_mask: Tensor, matched: Tensor, unaligned_tokens: int) -> Tensor:
    """A tenth of the transport distance between words and patches, mean over clips; unmatched pairs count negative.

    joint (B, L+K+P, H), text_mask (B, L), matched (B,) bool. Source: the published `compute_itm_wpa`, after UNITER (arXiv
    1909.11740, section 3.2): cost 1 - cosine, 50 steps of IPOT (arXiv 1802.04307, algorithm 1) with beta 0.5, without
    gradients. [CLS], [SEP] and the first `unaligned_tokens` of the frames take no part.
    """
    joint = joint.to(torch.promote_types(joint.dtype, torch.float32))
    text, patches = F.normalize(joint, dim=-1, eps=1e-5).tensor_split((text_mask.size(1),), dim=1)
    patches = patches[:, unaligned_tokens:]
    words = text_mask & text_mask.roll(-1, 1)  # without the last one, [SEP]
    words[:, 0] = words[:, -1] = False
    cost = (1 - text @ patches.transpose(1, 2)).masked_fill(~words[..., None], 0)
    with torch.no_grad():
        plan = transport_plan(cost, words)
    distance = (cost * plan).sum((1, 2))
    return 0.1 * torch.where(matched, distance, -distance).mean()


def transport_plan(cost: Tensor, words: Tensor, num_steps: int = 50, beta: float = 0.5) -> Tensor:
    """IPOT's plan (B, L, P) that moves equal shares of the `words` (B, L) to equal shares of the P patches at `cost`."""
    num_words, num_patches = words.sum(1)[:, None, None], cost.size(2)
    real = words[..., None].to(cost.dtype)  # (B, L, 1)
    kernel = (-cost / beta).exp() * real
    plan, word_scale = real.expand_as(cost), real / num_words.clamp(min=1)
    for _ in range(num_steps):
        step = kernel * plan
        patch_scale = 1 / (num_patches * (step * word_scale).sum(1, keepdim=True))  # (B, 1, P)
        word_scale = real / (num_words * (step * patch_scale).sum(2, keepdim=True) + 1 - real)
        plan = step * patch_scale * word_scale
    return plan.masked_fill(~words[..., None], 0)
