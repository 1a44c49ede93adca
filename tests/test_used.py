"""What a configuration makes nothing of: declared on classes, held against what they read, refused on a command line, not searched."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
import torch

from meltr_ray.combining.named import WAYS
from meltr_ray.config import AidConfig, CombinerConfig, to_flat
from meltr_ray.config.used import HANGS_ON, check_given, in_vain
from meltr_ray.errors import ConfigError
from meltr_ray.hypergrad.named import SOLVERS
from meltr_ray.hypergrad.solvers import used
from tests.ranks import on_ranks
from tests.test_combining import Numbered, config_of
from tune_spaces import plan
from workloads import cli

KINDS = [("fixed", {}), ("meltr", {}), ("aligned", {"gramian": "random"}), ("look_ahead", {}), ("tryout", {}), ("meltr_ahead", {}), ("meltr_gated", {"every": 8}),
         ("upgrad", {"gramian": "exact"}), ("pcd", {"gramian": "random"}), ("dwa", {}), ("uw_so", {}), ("famo", {}), ("rlw", {})]  # fmt: skip
"""One of each implementation."""


class Read:
    """Settings that note which of them are looked at."""

    def __init__(self, inner, prefix, seen):
        self.__dict__.update(inner=inner, prefix=prefix, seen=seen)

    def __getattr__(self, name):
        if name in {item.name for item in fields(self.inner)}:
            self.seen.add(f"{self.prefix}.{name}")
        return getattr(self.inner, name)


def read_on_a_rank(name, settings):
    """(settings of `combiner` and `aid` that a short run reads, those that it is said to make nothing of)."""
    from meltr_ray.training.engine import Engine
    from meltr_ray.training.loop import Progress, train

    config, seen = config_of(name, **settings), set()
    config.train.steps = config.train.evaluate_every = 9
    if name in ("meltr", "meltr_gated"):
        config.aid = replace(config.aid, solver="cg", check_every=1)
    vain = in_vain(to_flat(config))
    config.combiner, config.aid = Read(config.combiner, "combiner", seen), Read(config.aid, "aid", seen)
    from tests.engine_toy import toy

    engine, way = Engine(toy()[0], config, torch.device("cpu")), WAYS[name].of(config, config.workload)
    batches = [Numbered(engine.rank).of(way, step) for step in range(9)]
    train(config, engine, way, batches, Progress(), lambda: None, lambda: None)
    return seen, set(vain)


OF_THE_ENGINE = {"combiner.name", "combiner.average_losses", "combiner.gramian", "aid.solver", "aid.decay_in_hessian", *(f"aid.{name}" for name in ("adam", "product", "hessian_product", "accuracy", "radius"))}  # fmt: skip
"""Read to make a problem, whoever asks it for what."""


@pytest.mark.parametrize("name, settings", KINDS, ids=[name for name, _ in KINDS])
def test_a_way_reads_no_setting_that_it_is_said_to_make_nothing_of(name, settings):
    ((seen, vain),) = on_ranks(read_on_a_rank, 1, name, settings)
    assert (seen - OF_THE_ENGINE - HANGS_ON.keys()) & vain == set()  # those that hang on a value are handed on with it
    assert {"aid.gamma", "aid.inner_steps", "combiner.mode"} <= (seen if name.startswith("meltr") else vain)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_is_made_of_the_settings_that_it_declares(name):
    seen: set[str] = set()
    SOLVERS[name].of(Read(AidConfig(solver=name), "aid", seen))
    of_a_run = {"aid.decay_in_hessian", "aid.hessian_product", "aid.warm_start"}
    assert seen - of_a_run == {f"aid.{each}" for each in used(SOLVERS[name])} - of_a_run


@pytest.mark.parametrize("settings, why", [
    ("combiner.name=fixed combiner.slopes=simplex", "combiner.slopes=simplex: combiner.name=fixed makes nothing of it; leave it out"),
    ("combiner.name=fixed combiner.mode=paper", "combiner.mode=paper: combiner.name=fixed"),
    ("combiner.name=look_ahead aid.gamma=0", "aid.gamma=0: combiner.name=look_ahead"),
    ("aid.damping=0.1", "aid.damping=0.1: aid.solver=identity"),
    ("aid.solver=nystrom aid.iterations=3", "aid.iterations=3: aid.solver=nystrom"),
    ("aid.hessian_product=central", "aid.hessian_product=central: aid.solver=identity"),
    ("aid.gamma=0 aid.regulariser=full", "aid.regulariser=full: aid.gamma=0"),
    ("optimizer.power=2", "optimizer.power=2: optimizer.schedule=linear"),
    ("tuning.lora_rank=4", "tuning.lora_rank=4: tuning.lora="),
    ("aid.inner_steps=31 train.steps=30", "aid.inner_steps=31: train.steps=30 makes nothing of it; leave it out"),
])  # fmt: skip
def test_a_run_refuses_what_it_would_make_nothing_of(settings, why):
    request = cli.configure(settings.split())
    with pytest.raises(ConfigError, match=f"^{re.escape(why)}"):
        check_given(request.given, request.config, [request.config])


@pytest.mark.parametrize("settings", ["aid.solver=cg aid.damping=0.1 aid.iterations=3", "combiner.slopes=simplex", "combiner.name=fixed aid.gamma=0.1",
                                      "combiner.name=fixed combiner.weights=primary", "optimizer.schedule=polynomial optimizer.power=2"])  # fmt: skip
def test_what_counts_or_is_the_default_is_taken(settings):
    request = cli.configure(settings.split())
    check_given(request.given, request.config, [request.config])


PRIMES = ["workload=workloads/examples/primes.py:Primes", "losses.set=[prime,digit]", "sweep.seeds=1", "sweep.learning_rates=[]"]
COMPARED = [*PRIMES, "experiment=compare", "sweep.leave_one_out=false", "sweep.space={aid.solver: [cg]}"]


@pytest.mark.parametrize("settings, refused", [
    ([*PRIMES, "experiment=screening", "sweep.confirm=[]", "aid.gamma=0.2"], "aid.gamma=0.2: combiner.name=fixed makes nothing of it; leave it out"),
    ([*PRIMES, "experiment=screening", "sweep.confirm=[]", "combiner.name=dwa"], "combiner.name=dwa: each arm of this sweep gives its own; leave it out"),
    ([*COMPARED, "aid.gamma=0.2"], ""),  # of meltr, not of uniform
    ([*COMPARED, "aid.damping=0.2"], ""),  # of the search
    ([*COMPARED, "aid.inner_steps=9", "train.steps=9"], ""),
    ([*COMPARED, "aid.inner_steps=10", "train.steps=9"], "aid.inner_steps=10: no arm of this sweep makes anything of it; leave it out"),
    ([*COMPARED, "aid.rank=3"], "aid.rank=3: no arm of this sweep makes anything of it; leave it out"),
])  # fmt: skip
def test_a_sweep_refuses_what_none_of_its_arms_makes_anything_of(settings, refused):
    request = cli.configure(settings)
    trials = [trial.config for trial in plan.all_trials(request.settings, request.config)]
    with pytest.raises(ConfigError, match=f"^{re.escape(refused)}") if refused else nullcontext():
        check_given(request.given, request.config, trials)


def test_every_setting_of_the_outer_level_counts_for_some_way_or_solver():
    every = {f"{group}.{item.name}" for group, kind in (("combiner", CombinerConfig), ("aid", AidConfig)) for item in fields(kind)}
    counted = {name for way in WAYS.values() for name in way.used()} | {f"aid.{name}" for kind in SOLVERS.values() for name in used(kind)}
    assert counted == every
