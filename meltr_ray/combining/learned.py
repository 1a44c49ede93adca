"""Combiners that are learned by bi-level optimisation, as ways to combine losses."""

from __future__ import annotations

from typing import Any, ClassVar, Sequence

from torch import nn

from meltr_ray.combining.meltr import MELTR
from meltr_ray.combining.meta import Meta
from meltr_ray.errors import check
from meltr_ray.workload import Workload

OF_TRANSFORMER = tuple(
    f"combiner.{name}" for name in ("mode", "inputs", "embedding_size", "loss_encoder_size", "feed_forward_size", "dropout")
)
"""Settings of MELTR's g_phi."""


class Meltr(Meta):
    """MELTR (arXiv 2303.13009)."""

    uses: ClassVar[Sequence[str]] = (*Meta.uses, *OF_TRANSFORMER)

    @staticmethod
    def made(config: Any, workload: Workload) -> nn.Module:
        settings = config.combiner
        return MELTR(len(config.losses.set), settings.embedding_size, settings.loss_encoder_size, settings.feed_forward_size,
                     settings.dropout, near_sum=settings.mode == "near_sum", inputs=settings.inputs)  # fmt: skip


class Own(Meta):
    """The combiner that a workload defines: weights of examples, or any other g_phi with parameters."""

    per_example = True

    @staticmethod
    def made(config: Any, workload: Workload) -> nn.Module:
        combiner = workload.combiner()
        check(
            isinstance(combiner, nn.Module),
            "combiner.name",
            "own",
            f"combiner() gave a {type(combiner).__name__}; return a torch.nn.Module",
        )
        check(
            any(p.requires_grad for p in combiner.parameters()),
            "combiner.name",
            "own",
            f"the combiner of {type(workload).__name__} has no parameter to learn; use combiner.name=fixed",
        )
        return combiner
