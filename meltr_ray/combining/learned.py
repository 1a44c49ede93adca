"""Combiners that are learned by bi-level optimisation, as ways to combine losses."""

from __future__ import annotations

from typing import Any

from torch import nn

from meltr_ray.combining.meltr import MELTR
from meltr_ray.combining.meta import Meta
from meltr_ray.combining.slopes import NonNegativeSlopes
from meltr_ray.errors import check
from meltr_ray.workload import Workload


class Meltr(Meta):
    """MELTR (arXiv 2303.13009)."""

    @classmethod
    def of(cls, config: Any, workload: Workload) -> Meltr:
        settings = config.combiner
        combiner = MELTR(len(config.losses.set), settings.embedding_size, settings.loss_encoder_size, settings.feed_forward_size,
                         settings.dropout, near_sum=settings.mode == "near_sum")  # fmt: skip
        return cls(NonNegativeSlopes(combiner) if settings.slopes == "non_negative" else combiner, config.aid)


class Own(Meta):
    """The combiner that a workload defines: weights of examples, or any other g_phi with parameters."""

    @classmethod
    def of(cls, config: Any, workload: Workload) -> Own:
        combiner = workload.combiner()
        check(isinstance(combiner, nn.Module), "combiner.name", "own", f"combiner() gave a {type(combiner).__name__}; return a torch.nn.Module")
        check(any(p.requires_grad for p in combiner.parameters()), "combiner.name", "own",
              f"the combiner of {type(workload).__name__} has no parameter to learn; use combiner.name=fixed")
        return cls(NonNegativeSlopes(combiner) if config.combiner.slopes == "non_negative" else combiner, config.aid)
