"""Video captioning: its examples, predictions and metrics, for any backbone that generates captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from meltr_ray.video.backbones.batch import Batch
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.store import ClipStore
from meltr_ray.video.clips.vocabulary import Vocabulary
from meltr_ray.video.metrics import captions
from meltr_ray.video.tasks.examples import Examples, captioned, in_parts
from meltr_ray.video.tasks.settings import TaskConfig
from meltr_ray.workload import Metric

if TYPE_CHECKING:
    from meltr_ray.video.workload import Video

METRICS = {
    "cider": Metric("%", label="CIDEr", meaning="captions: CIDEr"),
    **{f"bleu_{n}": Metric("%", label=f"BLEU-{n}", meaning=f"captions: BLEU-{n}") for n in (4, 3, 2, 1)},
    "rouge_l": Metric("%", label="ROUGE-L", meaning="captions: ROUGE-L"),
    "distinct_captions": Metric("count", digits=0, meaning="different captions among those generated"),
}
REPORTED = {"meteor": Metric("%", label="METEOR", meaning="captions: METEOR")}
"""Of `report` alone: it takes longest."""
AT_ONCE = 64
"""Clips that evaluation reads and captions at once."""
NO_JAVA = dict(java=False, timeout=0.0)


class Inputs(Protocol):
    """Clips as a backbone reads them (backbones/<name>/inputs.py)."""

    vocabulary: Vocabulary

    def evaluation(self, clips: list[Clip]) -> Batch: ...


class Captioner(Protocol):
    """What a backbone's module offers besides its losses."""

    def generate(self, batch: Batch, task: TaskConfig) -> list[tuple[list[int], float]]:
        """Word-piece ids and log probability of a caption for each clip."""
        ...


def examples(store: ClipStore, config: Video) -> Examples:
    """Clips that have a caption, once each."""
    return Examples(store, config.task.name, captioned(store))


def predict(model: Captioner, examples: Examples, inputs: Inputs, device: torch.device | str, task: TaskConfig) -> list[dict[str, Any]]:
    """One row a clip. `quality`: its CIDEr (%), idf over the references of these clips."""
    rows = []
    for clips in in_parts(examples, AT_ONCE):
        generated = model.generate(inputs.evaluation(clips).to(device), task)
        rows += [caption_row(clip, inputs.vocabulary.decode(ids), log_p) for clip, (ids, log_p) in zip(clips, generated)]
    found = quick_scores(rows)
    for row in rows:
        row["quality"] = float(found["cider"].get(row["id"], 0.0))
    return rows


def caption_row(clip: Clip, caption: str, log_probability: float) -> dict[str, Any]:
    return dict(id=clip.id, source=clip.source, correct=None, quality=0.0, caption=caption, references=list(clip.captions),
                log_probability=log_probability)  # fmt: skip


def metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """BLEU-1 to 4, ROUGE-L and CIDEr (%), without Java and METEOR; and the number of different captions.

    One sentence for all clips can have a good BLEU-4, but not a good CIDEr, and shows in the number of different ones.
    """
    found = quick_scores(rows)
    means = {name: float(np.mean(list(found[name].values()))) for name in ("rouge_l", "cider")}
    return found["bleu"] | means | {"distinct_captions": float(len({row["caption"] for row in rows}))}


def report(rows: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, tuple[float, float]], list[str]]:
    """All metrics (%), METEOR among them, their intervals over sources, and notes."""
    found = captions.evaluate({row["id"]: row["caption"] for row in rows}, {row["id"]: row["references"] for row in rows})
    by_id = {row["id"]: row["source"] for row in rows}
    sources = [by_id[video] for video in found.videos]
    values = {name: 100 * value for name, value in found.corpus.items()}
    intervals = {name: tuple(100 * bound for bound in found.interval(name, sources)) for name in captions.METRICS}
    empty = sum(not row["caption"].strip() for row in rows)
    notes = [f"{len(found.videos)} clips, {found.num_distinct} different captions ({100 * found.share_distinct:.0f} %), {empty} empty.",
             f"Tokens: {found.tokenizer}. METEOR: {found.meteor}. CIDEr's idf is that of these clips' references."]  # fmt: skip
    if found.without_reference:
        notes.append(f"{len(found.without_reference)} clips aren't scored, as none of their references has a word.")
    return values | {"distinct_captions": float(found.num_distinct)}, intervals, notes


def quick_scores(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """`bleu` by its names, and `rouge_l` and `cider` by clip, all in %; clips whose references have no word are left out."""
    said, references = {row["id"]: row["caption"] for row in rows}, {row["id"]: row["references"] for row in rows}
    spoken = {video: pair for video, pair in captions.tokens(said, references, **NO_JAVA)[0].items() if pair[1]}
    if not spoken:
        nothing = float("nan")
        return {"bleu": dict.fromkeys(captions.BLEU, nothing), "rouge_l": {"": nothing}, "cider": {"": nothing}}
    texts, refs = map(list, zip(*spoken.values()))
    counts = captions.bleu_counts(texts, refs).sum(0)[None]
    by_clip = {"rouge_l": captions.rouge_l(texts, refs), "cider": captions.cider_scores(texts, refs)}
    bleu = {name: float(100 * captions.bleu_score(counts, n)[0]) for n, name in enumerate(captions.BLEU, 1)}
    return {"bleu": bleu} | {name: dict(zip(spoken, 100 * values)) for name, values in by_clip.items()}
