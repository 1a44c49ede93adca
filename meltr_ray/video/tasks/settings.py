"""The tasks, and the losses that each backbone offers for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from meltr_ray.errors import check, check_at_least, check_choice
from meltr_ray.video.backbones.settings import BackboneConfig

TASKS = ("retrieval", "multiple_choice", "open_ended", "captioning", "sentiment")
UNIVL_LOSSES = (
    "joint",
    "align",
    "masked_language",
    "masked_frame",
    "masked_joint",
    "masked_align",
    "caption",
    "masked_caption",
)
VIOLET_LOSSES = ("matching", "masked_language", "masked_patch")
VIOLET_QUESTION_LOSSES = ("answer", *VIOLET_LOSSES)
ALLINONE_LOSSES = ("contrastive", "rank", "matching", "alignment", "masked_language")
CONTROL_LOSSES = ("constant", "shuffled")
"""Planted losses that should be demoted: one that depends on nothing, one that pulls captions to wrong videos."""
PAIR_LOSSES = ("align", "matching", "rank")
"""Primary losses that score each text with each video in a pass of its own."""


@dataclass(frozen=True)
class Losses:
    """What a backbone offers for a task."""

    primaries: tuple[str, ...]
    """Losses whose scores the metric is taken of; the first is the default, that of the published code."""
    default: tuple[str, ...]
    """The default loss set, the primary first: that of the paper or of its code, as far as there is one."""
    offered: tuple[str, ...]
    """All losses, the controls included."""


LOSSES: dict[str, dict[str, Losses]] = {
    "univl": {
        "retrieval": Losses(  # the paper's without those over all pairs
            ("joint", "align"), ("joint", "masked_joint", "masked_language", "masked_frame", "caption"), UNIVL_LOSSES + CONTROL_LOSSES),
        "multiple_choice": Losses(
            ("choice",), ("choice", "joint", "masked_joint", "masked_language", "masked_frame"), ("choice", *UNIVL_LOSSES, *CONTROL_LOSSES)),
        "open_ended": Losses(
            ("answer",), ("answer", "joint", "masked_joint", "masked_language", "masked_frame"), ("answer", *UNIVL_LOSSES, *CONTROL_LOSSES)),
        "captioning": Losses(  # the paper's without those over all pairs
            ("caption",), ("caption", "masked_caption", "joint", "masked_joint", "masked_language", "masked_frame"),
            UNIVL_LOSSES + CONTROL_LOSSES),
        "sentiment": Losses(
            ("sentiment",), ("sentiment", "joint", "masked_joint", "masked_language"),
            ("sentiment", *(loss for loss in UNIVL_LOSSES if "caption" not in loss), *CONTROL_LOSSES)),
    },
    "violet": {
        "retrieval": Losses(("matching",), VIOLET_LOSSES, VIOLET_LOSSES + CONTROL_LOSSES),
        "multiple_choice": Losses(("answer",), VIOLET_QUESTION_LOSSES, VIOLET_QUESTION_LOSSES + CONTROL_LOSSES),
        "open_ended": Losses(("answer",), VIOLET_QUESTION_LOSSES, VIOLET_QUESTION_LOSSES + CONTROL_LOSSES),
    },
    "allinone": {  # the released code leaves matching out, too
        "retrieval": Losses(("contrastive", "rank"), ("contrastive", "matching", "masked_language"), ALLINONE_LOSSES + CONTROL_LOSSES),
        # released for questions without auxiliary losses; these are those of retrieval
        "multiple_choice": Losses(
            ("choice", "rank"), ("choice", "contrastive", "matching", "masked_language"), ("choice", *ALLINONE_LOSSES) + CONTROL_LOSSES),
        "open_ended": Losses(
            ("answer",), ("answer", "contrastive", "matching", "masked_language"),
            ("answer", "contrastive", "matching", "alignment", "masked_language") + CONTROL_LOSSES),
    },
}  # fmt: skip
"""Backbone -> task -> losses; a task that isn't there isn't offered by the backbone."""
EVERY_LOSS = tuple(dict.fromkeys(loss for tasks in LOSSES.values() for losses in tasks.values() for loss in losses.offered))


def losses_of(backbone: str, task: str) -> Losses:
    """Raises ConfigError where the backbone doesn't offer the task."""
    check_choice("task.name", task, TASKS)
    able = [name for name in LOSSES if task in LOSSES[name]]
    check(task in LOSSES[backbone], "task.name", task, f"backbone={backbone} doesn't offer it; choose backbone={' or '.join(able)}")
    return LOSSES[backbone][task]


@dataclass(kw_only=True)
class TaskConfig:
    """The task and the losses that train for it."""

    name: str = "retrieval"
    """Task: `retrieval` (text-to-video), `multiple_choice` or `open_ended` (questions), `captioning` or `sentiment`; chosen by `task=<name>`."""
    primary: Optional[str] = None
    """Primary loss, the one that the outer level lowers, and whose scores make the predictions; default: that of the backbone's published code (for retrieval joint, matching, contrastive)."""
    loss_set: Any = None
    """Losses that are computed, the primary included, as a list or the name of one in tune_spaces/loss_sets.py; the order is that of the combiner's inputs; default: `default`."""
    evaluate_captions: Optional[int] = None
    """Retrieval: captions of each clip that evaluation asks with; default: all, or 1 where each pair of caption and clip takes a pass of its own (align, matching, rank)."""
    dual_softmax: Optional[float] = None
    """Retrieval by embeddings (joint, contrastive): temperature at which each similarity, as the primary loss takes it, is weighed by its softmax over all queries (arXiv 2109.04290), such as 0.01 for plain cosines. It knows the whole set of queries, so figures with and without don't compare; default: not at all."""
    rerank: Optional[int] = None
    """Retrieval by align or rank: only so many pairs of highest embedding similarity (joint, contrastive) of each query and each video take a pass of their own; default: all pairs."""
    beam_size: int = 5
    """Captioning: captions kept while one is generated; 1: greedy."""
    length_penalty: float = 0.0
    """Captioning: beams are compared by log probability over length to this power; 0: by log probability (published), 1: by its mean over words."""
    max_caption_words: int = 20
    """Captioning: word pieces of a generated caption, [SEP] included."""

    def resolve(self, backbone: BackboneConfig) -> None:
        """Fill what depends on the backbone, and check it."""
        losses = losses_of(backbone.name, self.name)
        self.primary = self.primary or losses.primaries[0]
        check_choice("task.primary", self.primary, losses.primaries)
        self.loss_set = list(losses.default) if self.loss_set is None else self.loss_set
        check(isinstance(self.loss_set, list), "task.loss_set", self.loss_set, f"unknown name; use a list such as [{self.primary},constant]")
        for loss in self.loss_set:
            check_choice("task.loss_set", loss, losses.offered)
        check(len(set(self.loss_set)) == len(self.loss_set), "task.loss_set", self.loss_set, "names a loss twice; remove one")
        check(self.primary in self.loss_set, "task.loss_set", self.loss_set,
              f"lacks the primary loss; add {self.primary} or change task.primary")
        if self.evaluate_captions is None and self.primary in PAIR_LOSSES:
            self.evaluate_captions = 1
        check(self.evaluate_captions is None or self.evaluate_captions > 0, "task.evaluate_captions", self.evaluate_captions,
              "must be positive; leave it out for the default")
        check(self.rerank is None or self.rerank > 0, "task.rerank", self.rerank, "must be positive; leave it out for all pairs")
        for name, low in dict(beam_size=1, max_caption_words=2).items():
            check_at_least(f"task.{name}", getattr(self, name), low)
        check(self.dual_softmax is None or self.dual_softmax > 0, "task.dual_softmax", self.dual_softmax,
              "must be positive; leave it out to switch it off")
        check(self.dual_softmax is None or self.primary not in PAIR_LOSSES, "task.dual_softmax", self.dual_softmax,
              f"reverses the order of scores below 0, which task.primary={self.primary} has; leave it out")
        check(self.length_penalty >= 0, "task.length_penalty", self.length_penalty, "must not be negative; published: 0")
