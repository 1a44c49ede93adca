"""A process trains one trial after another: nothing of a trial's model stays in it."""

from __future__ import annotations

import weakref
from pathlib import Path
from unittest import mock

import pytest

from meltr_ray.cluster.garbage import collect
from meltr_ray.config import AidConfig, CombinerConfig, Config, EngineConfig, TrainConfig
from meltr_ray.errors import ConfigError
from meltr_ray.training.statistics import Diverged
from tests.ranks import on_ranks
from workloads.examples.primes import Primes

RANKS = 2


class Fails(Primes):
    """Its losses stop being finite after some steps."""

    def module(self):
        module = super().module()
        module.register_forward_hook(self.spoil)
        return module

    def spoil(self, module, inputs, losses):
        self.calls = getattr(self, "calls", 0) + 1
        return {name: loss * float("nan") for name, loss in losses.items()} if self.calls > 20 else losses


def left_by(stage: int, folder: str) -> list[str]:
    """What of the modules and optimisers of some runs is still there."""
    from meltr_ray.training import engine as engines
    from meltr_ray.training.run import run

    made = []

    class Seen(engines.Engine):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            kept = {"module": self.module, "DeepSpeed's engine": self.deepspeed, "optimiser": self.deepspeed.optimizer}
            made.extend((name, weakref.ref(each)) for name, each in kept.items())

    for number, workload in enumerate((Primes(width=4), Fails(width=4), Primes(width=4))):
        config = Config(
            workload=workload,
            combiner=CombinerConfig(embedding_size=16, loss_encoder_size=8, feed_forward_size=16),
            aid=AidConfig(inner_steps=2),
            engine=EngineConfig(zero_stage=stage),
            train=TrainConfig(steps=6, batch_size=8, evaluate_every=3),
        )
        try:
            with mock.patch.object(engines, "Engine", Seen):
                run(config, Path(folder) / str(number), lambda row: None)
            assert type(workload) is Primes
        except (ConfigError, Diverged):
            assert type(workload) is Fails
    del config, workload
    collect()
    return [name for name, kept in made if kept() is not None]


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
def test_no_model_stays_where_it_was_trained(stage, tmp_path):
    assert on_ranks(left_by, RANKS, stage, str(tmp_path)) == RANKS * [[]]
