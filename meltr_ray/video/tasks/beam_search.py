"""Beam search over a model that scores the next word: greedy with one beam. B: clips, N: beams of each, V: vocabulary size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def beam_search(
    step: Callable[[Tensor, Tensor], Tensor],
    num_clips: int,
    num_beams: int,
    max_words: int,
    start_id: int,
    end_id: int,
    forbidden: list[int] | None = None,
    length_penalty: float = 0.0,
    device: torch.device | str = "cpu",
) -> list[tuple[list[int], float]]:
    """The best caption of each clip: its ids without `start_id` and `end_id`, and its log probability, that of `end_id` included.

    `step(ids, rows)`: the newest word (B, N) of each beam, which goes on from beam `rows` (B N,) of the step before -> scores
    (B, N, V) of the next. Beams are compared by log probability over words to the power `length_penalty`, `end_id` counted. At
    `max_words`, a caption without `end_id` counts as it is. `forbidden` words are never chosen.

    Differs from the published search (UniVL's, after OpenNMT's), which goes on behind `end_id` unless the caption is the best
    beam at that step, and so lets the probability of finished ones fall: here they keep it, and their place.
    """
    total = torch.full((num_clips, num_beams), -torch.inf, device=device)
    total[:, 0] = 0  # all beams begin alike, so only one of them may branch
    length = torch.zeros(num_clips, num_beams, device=device)
    finished = torch.zeros(num_clips, num_beams, dtype=torch.bool, device=device)
    ids = torch.full((num_clips, num_beams), start_id, device=device)
    words = ids[..., None][..., :0]
    first_rows = num_beams * torch.arange(num_clips, device=device)[:, None]
    rows = torch.arange(num_clips * num_beams, device=device)
    for _ in range(max_words):
        log_p = next_word(step(ids, rows), finished, end_id, forbidden or [])
        longer = length + ~finished
        candidates = total[..., None] + log_p
        rank = candidates / longer[..., None] ** length_penalty
        best = rank.flatten(1).topk(num_beams).indices
        beam, ids = best // log_p.size(-1), best % log_p.size(-1)
        total, length = candidates.flatten(1).gather(1, best), longer.gather(1, beam)
        finished = finished.gather(1, beam) | (ids == end_id)
        words = torch.cat((words.gather(1, beam[..., None].expand_as(words)), ids[..., None]), dim=-1)
        rows = (first_rows + beam).flatten()
        if is_settled(total, length, finished, max_words, length_penalty):
            break
    counts = (length - finished.to(length.dtype))[:, 0].long().tolist()  # beams are in order, the best first
    return [(row[:count], value) for row, count, value in zip(words[:, 0].tolist(), counts, total[:, 0].tolist())]


def next_word(scores: Tensor, finished: Tensor, end_id: int, forbidden: list[int]) -> Tensor:
    """Log probabilities (B, N, V) in float32 at least; a finished beam goes on with `end_id` alone, at no cost."""
    log_p = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(-1)
    log_p[..., forbidden] = -torch.inf
    stay = torch.full_like(log_p[0, 0], -torch.inf)
    stay[end_id] = 0
    return torch.where(finished[..., None], stay, log_p)


def is_settled(total: Tensor, length: Tensor, finished: Tensor, max_words: int, length_penalty: float) -> bool:
    """Whether each clip's best beam is finished, and no open one can pass it: log probabilities only fall."""
    best = torch.where(finished[:, 0], total[:, 0] / length[:, 0] ** length_penalty, -torch.inf)
    hope = torch.where(finished, -torch.inf, total / float(max_words) ** length_penalty).amax(1)
    return bool((finished[:, 0] & (best >= hope)).all())
