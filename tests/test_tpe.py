"""A search that learns, and rungs at which trials stop: from what the table says alone, so that a killed one goes on. No trial is run."""

from __future__ import annotations

import math
import re
import shutil

import numpy as np
import pytest

from meltr_ray.cluster.asking import Asking, begun
from meltr_ray.cluster.rungs import Rungs, specified
from meltr_ray.cluster.trial import columns_of
from meltr_ray.config import file as config_file
from meltr_ray.config import to_flat
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from tune_spaces import asha, plan, tpe
from tune_spaces.domains import Choice, Integer, LogUniform, Uniform
from tune_spaces.space_search import SpaceSearch, best
from workloads import cli

PRIMES = ["workload=workloads/examples/primes.py:Primes", "experiment=compare", "losses.set=[prime,digit]", "sweep.leave_one_out=false",
          "sweep.learning_rates=[]", "sweep.search=tpe", "train.evaluate_every=20", "sweep.seeds=2", "sweep.other_seeds=1"]  # fmt: skip
SPACE = {"aid.solver": Choice(("identity", "cg", "nystrom")), "aid.damping": LogUniform(1e-3, 1.0), "aid.iterations": Integer(1, 10),
         "workload.noise": Uniform(0.0, 6.0)}  # fmt: skip
VALUES = {"combiner.name": "meltr", "aid.solver": "identity", "aid.gamma": 0.1, "combiner.slopes": "any", "combiner.gramian": "exact", "train.num_workers": 0,
          "optimizer.schedule": "linear", "tuning.lora": []}  # fmt: skip


def score(changes):
    """Best with cg at a damping of 0.03 and little noise."""
    solver = {"identity": 0.0, "nystrom": 1.0, "cg": 2.0}[changes["aid.solver"]]
    damping = abs(math.log10(changes["aid.damping"] / 0.03)) if "aid.damping" in changes else 1.5
    return solver - damping - 0.3 * changes["workload.noise"]


def searched(count, seed, make=lambda changes: None):
    tried = {}
    for number in range(count):
        changes = tpe.suggest(SPACE, VALUES, tried, number, count, seed, make)
        tried[number] = tpe.Tried(changes, "finished", score(changes))
    return tried


def test_it_goes_where_the_best_are_and_varies_what_counts_alone():
    found, at_random = [], []
    for seed in range(3):
        tried = searched(30, seed)
        assert all(("aid.iterations" in one.changes) == (one.changes["aid.solver"] == "cg") for one in tried.values())
        assert all(("aid.damping" in one.changes) == (one.changes["aid.solver"] != "identity") for one in tried.values())
        found.append(np.mean(sorted(one.score for one in tried.values())[-10:]))
        at_random.append(np.mean([one.score for number, one in tried.items() if number < 7]))
        assert score(best(tried)[1]) == max(one.score for one in tried.values())
    assert np.mean(found) > np.mean(at_random) + 1.5


def test_a_suggestion_is_a_function_of_what_was_tried():
    tried = searched(12, 0)
    again = [tpe.suggest(SPACE, VALUES, tried, 12, 30, 0, lambda changes: None) for _ in range(2)]
    assert again[0] == again[1] != tpe.suggest(SPACE, VALUES, tried, 13, 30, 0, lambda changes: None)
    ends = [tpe.Tried(tried[0].changes, status, None, {20: 1.0}) for status in ("running", "stopped", "diverged", "failed")]
    assert [trial.state.name for trial in tpe.study_of(SPACE, ends, 0).trials] == ["RUNNING", "PRUNED", "PRUNED", "FAIL"]
    outside = tpe.Tried({"aid.solver": "loss_space", "workload.noise": 3.0}, "finished", 1.0)
    assert not tpe.study_of(SPACE, [outside], 0).trials


def test_what_can_not_be_or_was_tried_is_not_asked_for_again():
    def make(changes):
        if changes["aid.solver"] == "cg":
            raise ConfigError("aid.solver=cg: no; leave it out")

    assert {one.changes["aid.solver"] for one in searched(12, 0, make).values()} <= {"identity", "nystrom"}
    space = {"aid.inner_steps": Choice((1, 3, 5))}
    tried = {}
    while changes := tpe.suggest(space, VALUES, tried, len(tried), 10, 0, lambda changes: None):
        tried[len(tried)] = tpe.Tried(changes, "finished", 1.0)
    assert sorted(one.changes["aid.inner_steps"] for one in tried.values()) == [1, 3, 5]
    lists = {"aid.betas": Choice(([0.9, 0.99], [0.9, 0.999]))}
    assert tpe.suggest(lists, VALUES, {}, 0, 4, 0, lambda changes: None)["aid.betas"] in lists["aid.betas"].grid


@pytest.mark.parametrize("steps, every, reduction, wanted", [
    (300, 20, 3, [40, 100]), (60, 5, 2, [10, 15, 30]), (100, 50, 3, []), (90, 10, 3, [10, 30]), (100, 100, 2, [])])  # fmt: skip
def test_rungs_are_at_evaluations(steps, every, reduction, wanted):
    assert asha.rungs(steps, every, reduction) == wanted


def test_one_in_so_many_goes_on():
    assert asha.goes_on(1.0, [], 3) and asha.goes_on(2.0, [1.0, 0.0], 3) and not asha.goes_on(1.0, [2.0, 0.0], 3)
    assert asha.goes_on(1.0, [2.0, 0.0, 0.0], 3) and not asha.goes_on(1.0, [1.0], 2)  # of equals the earlier
    generator, seen, went = np.random.RandomState(0), [], 0
    for value in generator.normal(size=300):
        went, seen = went + asha.goes_on(value, seen, 3), [*seen, value]
    assert 90 <= went <= 125


def planned(*settings):
    request = cli.configure([*PRIMES, "sweep.space={aid.solver: [identity,cg], aid.damping: {low: 0.01, high: 1, log: true}, workload.width: [8,16]}",
                             "sweep.samples=6", *settings])  # fmt: skip
    return request.settings, request.config


def write(folder, trial, *rows):
    place = folder / "trials" / trial.name
    config_file.write(place / "config.yaml", trial.config)
    for step, status, found, error in rows:
        row = {
            "trial": trial.name,
            "arm": trial.arm,
            "phase": trial.phase,
            "split": "validation",
            "step": step,
            "status": status,
            "score": found,
            "error": error,
        }
        results.append(place, row, columns_of(trial.config))


def test_a_killed_search_asks_for_what_it_had_begun_then_for_new_ones(tmp_path):
    search = SpaceSearch(*planned(), {})
    source = Asking(search, tmp_path)
    first, second, third = source.next(), source.next(), source.next()
    assert (
        source.left == 3
        and first.config.combiner.name == "meltr"
        and first.config.seed == 1000
        and not first.test
        and first.arm == "meltr_searched"
    )
    assert first.config.workload.width == 64  # `ours` as it is
    write(tmp_path, first, (20, "running", 50.0, None), (300, "finished", 70.0, None))
    write(tmp_path, second, (20, "running", 40.0, None))  # killed
    write(tmp_path, third)  # killed before its first evaluation
    source.ended(first.name)
    assert source.tried[0].score == 70.0 and source.tried[1].status == "running"
    again = Asking(search, tmp_path)
    assert list(again.tried) == [0, 1, 2] and again.tried[0].score == 70.0 and again.left == 5
    repeated = [again.next(), again.next()]
    assert [trial.name for trial in repeated] == [second.name, third.name] and [t.config for t in repeated] == [second.config, third.config]
    new = [again.next() for _ in range(4)]
    assert [search.number_of(trial.name) for trial in new[:3]] == [3, 4, 5] and new[3] is None
    drawn = [repr(sorted(search.drawn_by(trial.config).items())) for trial in [first, second, third, *new[:3]]]
    assert len(set(drawn)) == 6
    assert Asking(SpaceSearch(*planned("sweep.samples=9"), {}), tmp_path).left == 2 + 6  # grown


def test_what_a_trial_drew_is_known_from_its_table_or_its_settings_or_another_takes_its_place(tmp_path, capsys):
    """Files that are damaged, gone or another trial's; the search goes on with what is left."""
    search = SpaceSearch(*planned(), {})
    drawn = [{}, {"aid.solver": "cg", "aid.damping": 0.0375, "workload.width": 8}, {"aid.solver": "identity", "workload.width": 16}]
    trials = [search.trial(number, changes) for number, changes in enumerate(drawn)]
    for trial in trials:
        write(tmp_path, trial, (300, "finished", 60.0, None))
    places = [tmp_path / "trials" / trial.name for trial in trials]
    whole = begun(search, tmp_path)
    assert [one.changes for one in whole.values()] == [search.drawn_by(trial.config) for trial in trials]
    shutil.copy(places[2] / "config.yaml", places[1] / "config.yaml")  # as it was written, of another trial
    for file in ("config.yaml", ".config.yaml.copy"):
        (places[2] / file).write_bytes((places[2] / file).read_bytes()[:100])
    (places[0] / "config.yaml").unlink()
    assert begun(search, tmp_path) == whole

    for place in places[1:]:
        (place / results.FILE).write_bytes(b"PAR1" + bytes(100))
        results.set_aside(place)
    config_file.write(places[1] / "config.yaml", trials[1].config)
    (places[1] / "config.yaml").unlink()
    source = Asking(search, tmp_path)
    assert list(source.tried) == [0, 1] and source.tried[1].changes == drawn[1] and source.left == 1 + 4
    assert "neither its table nor its settings say what it drew; it is set aside as" in capsys.readouterr().err
    assert (tmp_path / "damaged" / trials[2].name / f"{results.FILE}.damaged").exists() and not places[2].exists()
    assert source.next().config == trials[1].config and source.next().name == trials[2].name


def test_the_arm_takes_the_best_of_those_that_finished(tmp_path):
    settings, config = planned()
    search = SpaceSearch(settings, config, {"meltr": 5e-3})
    trials = [
        search.trial(number, changes)
        for number, changes in enumerate([{}, {"aid.solver": "cg", "aid.damping": 0.5, "workload.width": 8}, {"workload.width": 16}])
    ]
    for trial, row in zip(
        trials, [(300, "finished", 60.0, None), (300, "finished", 80.0, None), (100, "stopped", 90.0, "stopped at the rung")]
    ):
        write(tmp_path, trial, row)
    known = plan.Known({"meltr": 5e-3}, searched=begun(search, tmp_path))
    assert {number: one.status for number, one in known.searched.items()} == {0: "finished", 1: "finished", 2: "stopped"}
    *_, comparison = plan.phases(settings, config)
    (taken,) = [trial for trial in comparison.trials(known) if trial.arm == "meltr_searched"]
    flat = to_flat(taken.config)
    assert (flat["aid.solver"], flat["aid.damping"], flat["workload.width"], flat["optimizer.learning_rate"], taken.test) == (
        "cg",
        0.5,
        8,
        5e-3,
        False,
    )
    assert taken.name == "meltr_searched_1-seed0" and taken.phase == "ablation" and taken.config.seed == config.seed
    assert not [trial for trial in comparison.trials(plan.Known({})) if trial.arm == "meltr_searched"]


def test_the_plan_counts_the_search_and_its_arm():
    settings, config = planned("sweep.asha=3")
    trials = plan.all_trials(settings, config)
    assert sum(trial.phase == "space_search" for trial in trials) == 6 and sum(trial.arm == "meltr_searched" for trial in trials) == 7
    assert plan.search_in_words(settings, config)[0].endswith(
        "each chosen after the scores of those before it; the best 1 in 3 continues after step 40, 100"
    )
    assert {trial.config.seed for trial in trials if trial.phase == "space_search"} == {1000}


def test_rungs_are_those_of_the_table(tmp_path):
    """Of the same search and seed; what a rung has ended is final, what Ctrl-C has stopped isn't."""
    search = SpaceSearch(*planned("sweep.asha=3"), {})
    trials = [search.trial(number, {"workload.width": 8 + number}) for number in range(4)]
    for trial, found in zip(trials[:3], (50.0, 60.0, 70.0)):
        write(tmp_path, trial, (40, "running", found, None), (60, "stopped", found, None))
    place = tmp_path / "trials" / trials[3].name
    rungs = Rungs.of({"folder": str(place), "rungs": specified(trials[3])})
    row = {"split": "validation", "step": 40}
    assert rungs.why_stop(row | {"score": 65.0}) is None and rungs.why_stop(row | {"score": 50.0, "step": 60}) is None
    why = rungs.why_stop(row | {"score": 55.0})
    assert why == "stopped at the rung of step 40: place 3 of 4, and one in 3 goes on"
    write(tmp_path, trials[3], (40, "stopped", 55.0, why))
    assert results.is_final(place) and not results.is_final(tmp_path / "trials" / trials[0].name)
    assert specified(plan.all_trials(*planned("sweep.asha=3"))[-1]) is None and specified(SpaceSearch(*planned(), {}).trial(0, {})) is None


@pytest.mark.parametrize("settings, words", [
    ("sweep.space=null", "sweep.search=tpe: has nothing to search; give sweep.space"),
    ("sweep.budget_each=5m sweep.learning_rates=[1e-3,1e-2]", "sweep.search=tpe: has no part beside sweep.budget_each"),
    ("train.evaluate_every=200 sweep.asha=3", "sweep.asha=3: has no rung: no evaluation comes within the first 100 of 300 steps"),
    ("sweep.search=random sweep.space=null sweep.asha=3", "sweep.asha=3: stops trials of a search, and there is none"),
    ("sweep.asha=3 sweep.space={train.steps:[100,200]}", "sweep.space=train.steps: varies where trials are judged"),
    ("seed=999", "seed=999: seeds from 1000 on are those of searches"),
])  # fmt: skip
def test_a_search_that_can_not_be_is_refused(settings, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        base = [] if "sweep.space" in settings else ["sweep.space={workload.width: [8,16]}"]
        request = cli.configure([*dict((s.partition("=")[0], s) for s in [*PRIMES, *base, *settings.split()]).values()])
        plan.all_trials(request.settings, request.config)
