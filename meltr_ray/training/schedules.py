"""Learning rates as pure functions of the step, so that a resumed run needs no state of them."""

from __future__ import annotations

import math

from meltr_ray.config import OptimizerConfig
from meltr_ray.training.bert_adam import learning_rate_factor


def rate_factor(settings: OptimizerConfig, step: int, total: int) -> float:
    """What the peak learning rate is multiplied by at optimiser step number `step`, counted from 0, of `total`.

    The warm-up of `linear` and `constant` is one step ahead of BERT's own, so that the first step isn't lost. `cosine` and
    `polynomial` are those of `transformers` (get_cosine_schedule_with_warmup, get_polynomial_decay_schedule_with_warmup), which
    All-in-one takes: the warm-up is a whole number of steps, and the first has rate 0. The others: `bert_adam.py`.
    """
    if settings.schedule.startswith("warmup_"):
        return learning_rate_factor(settings.schedule, step, settings.period or total, settings.warmup)
    if settings.schedule in ("linear", "constant"):
        warm, done = settings.warmup * total, step + 1
        if done < warm:
            return done / warm
        return 1.0 if settings.schedule == "constant" else min(1.0, max(0.0, (total - step) / (total - warm)))
    warm = int(settings.warmup * total)
    if step < warm:
        return step / warm
    left = max(0.0, (total - step) / (total - warm))
    fallen = left**settings.power if settings.schedule == "polynomial" else (1 - math.cos(math.pi * left)) / 2
    return settings.end + (1 - settings.end) * fallen
