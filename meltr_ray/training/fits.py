"""Whether this machine can hold a model at all, before one is made: the kernel ends a process that takes too much, and says nothing."""

from __future__ import annotations

import os

from meltr_ray.config import Config
from meltr_ray.config.run import LOCAL
from meltr_ray.errors import check

BYTES_EACH = 16
"""Of a weight that trains: itself, its gradient and Adam's two moments, in float32."""
NYSTROM_BYTES = 8
"""Besides, for each rank of `nystrom`."""


def check_fits(config: Config, weights: int) -> None:
    """Refuse a model that the memory of a machine of this size can't hold; on a GPU and in a cluster, memory is another's.

    Activations aren't counted, so what passes may still be too much.

    Raises:
        ConfigError: how much it takes, and how much there is.
    """
    if config.train.use_gpu or config.cluster != LOCAL:
        return
    copies = max(1, config.train.num_workers)
    shared = copies if config.engine.zero_stage == 3 else 1
    each = BYTES_EACH + (NYSTROM_BYTES * config.aid.rank if config.aid.solver == "nystrom" else 0)
    needed, there = weights * each * copies // shared, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    check(needed <= there, "train.num_workers", config.train.num_workers,
          f"{weights / 1e6:.0f} million weights take {needed / 2**30:.0f} GiB to train, and this machine has {there / 2**30:.0f}; "
          "take a smaller model, a lower aid.rank or fewer workers")  # fmt: skip
