"""Captions: the best constant sentence, and the sentence of the nearest train clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from meltr_ray.video.baselines import retrieval
from meltr_ray.video.baselines.ridge import held_out
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.metrics import captions as metrics

TRIED, JUDGED = 40, 200
"""Train captions tried as the constant one, the most frequent; held-out train clips that it is chosen on, at most."""


def baselines(splits: dict[str, Sequence[Clip]]) -> dict[str, dict[str, dict[str, float]]]:
    """Split (other than train) -> CIDEr and others of the constant caption, and of the nearest clip's where clips have features.

    The constant is that of the highest CIDEr on every fifth train video; the nearest clip that whose words are likest to those
    that ridge expects, and of its captions the one likest to its others.
    """
    splits = {split: [clip for clip in clips if clip.captions] for split, clips in splits.items()}
    train = splits.pop("train")
    constant = best_constant(train)
    found = {split: {"constant": score([constant] * len(clips), clips)} for split, clips in splits.items()}
    if all(clip.features is not None for clips in [train, *splits.values()] for clip in clips):
        ridge = retrieval.Ridge.fit(train, retrieval.choose_strength(train))
        texts = retrieval.of_length_one(ridge.text(retrieval.whole_texts(train)))
        for split, clips in splits.items():
            nearest = (ridge.videos(clips) @ texts.T).argmax(1)
            found[split]["nearest"] = score([most_central(train[at].captions) for at in nearest], clips)
    return found


def score(said: Sequence[str], clips: Sequence[Clip]) -> dict[str, float]:
    """BLEU, ROUGE-L and CIDEr in %, tokens made without Java, and the number of distinct captions. METEOR would take longest."""
    tokens, references = tokenize(said, clips)
    bleu = metrics.bleu_counts(tokens, references).sum(0)[None]
    found = {name: metrics.bleu_score(bleu, n)[0] for n, name in enumerate(metrics.BLEU, 1)}
    found |= {"rouge_l": metrics.rouge_l(tokens, references).mean(), "cider": metrics.cider_scores(tokens, references).mean()}
    return {name: 100 * float(value) for name, value in found.items()} | {"distinct_captions": float(len(set(tokens)))}


def tokenize(said: Sequence[str], clips: Sequence[Clip]) -> tuple[list[str], list[list[str]]]:
    """Tokens of what is said and of references; clips without a word of reference go. Raises ValueError if none is left."""
    names = [str(number) for number in range(len(clips))]
    references = dict(zip(names, [clip.captions for clip in clips], strict=True))
    found = [pair for pair in metrics.tokens(dict(zip(names, said, strict=True)), references, False, 0)[0].values() if pair[1]]
    if not found:
        raise ValueError("no caption has a word")
    return [text for text, _ in found], [others for _, others in found]


def best_constant(train: Sequence[Clip]) -> str:
    """The train caption of the highest CIDEr on every fifth train video, of those that are said most often."""
    counts = Counter(caption for clip in train for caption in clip.captions)
    tried = sorted(counts, key=lambda caption: (-counts[caption], caption))[:TRIED]
    judged = [clip for clip, out in zip(train, held_out([clip.source for clip in train])) if out][:JUDGED]
    return max(tried, key=lambda caption: metrics.cider_scores(*tokenize([caption] * len(judged), judged)).mean())


def most_central(captions: Sequence[str]) -> str:
    """The caption that shares most of its words with the others, by the mean Jaccard index."""
    words = [set(retrieval.split_words(caption)) for caption in captions]
    shared = [np.mean([len(mine & other) / max(len(mine | other), 1) for other in words]) for mine in words]
    return captions[int(np.argmax(shared))]
