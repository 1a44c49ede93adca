"""Spaces of a search: over any setting, checked before anything starts, and no configuration twice."""

from __future__ import annotations

import copy
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from meltr_ray.config import to_flat
from meltr_ray.config.file import load
from meltr_ray.errors import ConfigError
from tune_spaces import plan
from tune_spaces.arms import all_arms, searched
from tune_spaces.domains import Choice, Integer, LogUniform, Uniform, points
from tune_spaces.search import draw
from tune_spaces.spaces import space_of
from workloads import cli

PRIMES = ["workload=workloads/examples/primes.py:Primes", "experiment=compare", "losses.set=[prime,digit]", "sweep.leave_one_out=false",
          "sweep.learning_rates=[]"]  # fmt: skip


def configured(*settings):
    request = cli.configure([*PRIMES, *settings])
    return request.settings, request.config


def test_a_grid_has_each_different_configuration_once():
    """What a solver makes nothing of isn't varied: 320 combinations, of which 53 differ, and one of these is `ours`."""
    settings, config = configured("sweep.space=[solver,iterations,rank,damping]", "sweep.search=grid")
    drawn, space = searched(settings, config), space_of(config)
    assert drawn.looked_at == 320 and len(drawn.found) == 52 and len({repr(sorted(one.items())) for one in drawn.found.values()}) == 52
    of = {
        "identity": (),
        "neumann": ("iterations", "damping"),
        "cg": ("iterations", "damping"),
        "nystrom": ("rank", "damping"),
        "loss_space": ("damping",),
    }
    by_solver = Counter(one["aid.solver"] for one in drawn.found.values())
    sizes = {solver: np.prod([len(space[f"aid.{name}"].grid) for name in names], dtype=int) for solver, names in of.items()}
    assert by_solver == {solver: size for solver, size in sizes.items() if solver != "identity"} and sizes["identity"] == 1
    assert all(set(one) == {"aid.solver", *(f"aid.{name}" for name in of[one["aid.solver"]])} for one in drawn.found.values())


def test_a_random_search_has_as_many_different_ones_as_it_was_asked_for():
    settings, config = configured("sweep.space=[solver,damping,inner_steps]", "sweep.samples=12")
    drawn = searched(settings, config)
    distinct = {repr(sorted(one.items())) for one in drawn.found.values()}
    assert len(drawn.found) == len(distinct) and 11 <= len(distinct) <= 12 < drawn.looked_at  # one may be `ours`
    longer = searched(*configured("sweep.space=[solver,damping,inner_steps]", "sweep.samples=20")).found
    assert {number: longer[number] for number in drawn.found} == drawn.found  # a search that grows begins with what it had
    few = searched(*configured("sweep.space={aid.inner_steps: [1,2,3]}", "sweep.samples=50"))
    assert sorted(one["aid.inner_steps"] for one in few.found.values()) == [1, 2]  # 3 is `ours`


def test_a_search_as_older_sweeps_have_it_goes_on_with_its_trials(tmp_path):
    """A list of names without `aid.`: the same numbers have the same values, those that were equal are left out."""
    settings, _ = configured()
    old = OmegaConf.to_container(settings)
    old["sweep"] |= {"space": ["damping", "inner_steps"], "samples": 6}
    OmegaConf.save(old, tmp_path / "settings.yaml")
    old = load(tmp_path / "settings.yaml")
    config = cli.config_file.make(old)
    arms = {name: changes for name, (changes, phase) in all_arms(old, config).items() if phase == "search"}
    generator = np.random.RandomState(0)
    before = [{name: domain.draw(generator) for name, domain in space_of(config).items()} for _ in range(6)]
    kept = {int(name.rpartition("_")[2]): changes["aid.inner_steps"] for name, changes in arms.items()}
    assert len(set(kept.values())) == len(kept) and {1, 5, 10} == set(kept.values())  # 3 is `ours`
    assert all(before[number]["aid.inner_steps"] == steps for number, steps in kept.items() if number < 6) and min(kept) < 6
    old.sweep.space = []
    assert not space_of(cli.config_file.make(old))


def test_any_setting_has_a_space_the_workloads_own_too():
    text = "{workload.width: [8,16], workload.noise: {low: 0, high: 4}, train.batch_size: {low: 8, high: 32, log: true}, aid.gamma: null, "
    settings, config = configured("sweep.space=" + text + "combiner.average_losses: null, optimizer.learning_rate: {low: 1e-4, high: 1e-2, log: true, grid: [1e-3]}}",
                                  "sweep.samples=6")  # fmt: skip
    space = space_of(config)
    assert space["workload.width"] == Choice((8, 16)) and space["workload.noise"] == Uniform(0.0, 4.0, (0.0, 1.33333, 2.66667, 4.0))
    assert space["train.batch_size"] == Integer(8, 32, (8, 13, 20, 32), log=True)
    assert space["optimizer.learning_rate"] == LogUniform(1e-4, 1e-2, (1e-3,)) and space["combiner.average_losses"].grid == (False, True)
    trials = [trial for trial in plan.all_trials(settings, config) if trial.phase == "search"]
    found = {
        (t.config.workload.width, t.config.workload.noise, t.config.train.batch_size, t.config.optimizer.learning_rate) for t in trials
    }
    assert len({trial.arm for trial in trials}) == len(found) == 6 and {width for width, *_ in found} == {8, 16}
    assert all("combiner.average_losses" not in one for one in searched(settings, config).found.values())  # train.num_workers=0


def test_a_whole_number_on_a_logarithmic_range_has_both_of_its_ends():
    generator, domain = np.random.RandomState(0), Integer(1, 8, log=True)
    drawn = Counter(domain.draw(generator) for _ in range(4000))
    assert set(drawn) == set(range(1, 9)) and drawn[1] > 3 * drawn[8] and points(1, 4, False, True) == (1, 2, 3, 4)


def test_what_does_not_go_together_is_left_out_and_counted():
    settings, config = configured("sweep.space={aid.solver: [identity,cg], combiner.slopes: [any,simplex]}", "sweep.search=grid")
    assert list(searched(settings, config).found.values()) == [
        {"aid.solver": "identity", "combiner.slopes": "simplex"}, {"aid.solver": "cg", "combiner.slopes": "any"}]  # fmt: skip
    assert plan.search_in_words(settings, config)[0].endswith(
        "1 are impossible, such as aid.solver=cg: takes the Hessian of g_phi, and slopes on a simplex are no derivative of one function"
    )


@pytest.mark.parametrize("space, words", [
    ("[foo]", "sweep.space=foo: no setting of that name"),
    ("{workload.widht: [8]}", "sweep.space=workload.widht: no setting of that name; did you mean workload.width"),
    ("[workload.width]", "sweep.space.workload.width=null: has no range of its own"),
    ("{seed: [1,2]}", "sweep.space=seed: is the same for all trials of a sweep"),
    ("{sweep.seeds: [1,2]}", "sweep.space=sweep.seeds: is the same for all trials"),
    ("{workload.width: [8,5000]}", "sweep.space.workload.width=5000: must lie between 1 and 4096; lower it"),
    ("{aid.damping: {low: -1, high: 1}}", "sweep.space.aid.damping=-1: must lie between 0 and 1e+06; raise it"),
    ("{aid.damping: {low: 2, high: 1}}", "sweep.space.aid.damping={'low': 2, 'high': 1}: has a low that isn't below its high"),
    ("{aid.damping: {low: 0, high: 1, log: true}}", "has a logarithm of what isn't positive"),
    ("{aid.damping: {low: 1}}", "has an open end; give low and high"),
    ("{aid.damping: {low: 1, top: 2}}", "sweep.space.aid.damping=top: is no part of a range; use low, high, log, grid"),
    ("{aid.solver: {low: 1, high: 2}}", "is a range, and the setting is no number"),
    ("{aid.iterations: [1.5]}", "sweep.space.aid.iterations=1.5: doesn't fit the setting; give a value of type int"),
    ("{aid.normalise: [1]}", "doesn't fit the setting; give a value of type bool"),
    ("{aid.iterations: []}", "has no value"), ("{aid.iterations: [1,1]}", "has 1 twice"), ("{aid.iterations: 3}", "is no range"),
    ("3", "sweep.space=3: is no space"),
    ("[aid.damping,damping]", "stands there twice"),
    ("[aid.damping]", "sweep.space=aid.damping: aid.solver=identity makes nothing of it; leave it out, or search what decides that, too"),
    ("{aid.solver: [identity,newton]}", "sweep.space.aid.solver=newton: no configuration of the space can have it (aid.solver=newton: unknown"),
    ("{combiner.embedding_size: [8,12]}", "sweep.space.combiner.embedding_size=12: no configuration of the space can have it"),
])  # fmt: skip
def test_a_space_that_can_not_be_is_refused_in_one_line(space, words, plain):
    settings, config = plain
    with pytest.raises(ConfigError, match=re.escape(words)) as refused:
        sweep = replace(config.sweep, space=yaml.safe_load(space))
        plan.check_space(settings, replace_sweep(config, sweep))
    assert "\n" not in str(refused.value)


def replace_sweep(config, sweep):
    config = copy.copy(config)
    config.sweep = sweep
    return config


@pytest.fixture(scope="module")
def plain():
    return configured()


def test_equal_values_of_another_order_are_one(plain):
    space = {"aid.damping": Choice((0.1, 1.0)), "aid.solver": Choice(("identity", "cg"))}
    drawn = draw(space, "grid", 0, 0, to_flat(plain[1]))
    assert list(drawn.found.values()) == [
        {"aid.solver": "identity"},
        {"aid.damping": 0.1, "aid.solver": "cg"},
        {"aid.damping": 1.0, "aid.solver": "cg"},
    ]
