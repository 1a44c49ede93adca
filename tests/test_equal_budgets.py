"""Equal budgets: the halving as numbers, the settings that an arm draws for itself, and what a sweep plans of them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from meltr_ray.combining.named import WAYS
from meltr_ray.errors import ConfigError
from tune_spaces import halving, plan
from tune_spaces.arms import TUNED
from tune_spaces.cost import Timed, Timing, to_time
from tune_spaces.equal_budgets import EqualBudgets
from tune_spaces.own_settings import candidate, space
from workloads import cli

INF = float("inf")
IN_PROPORTION = {rung: 1 / rung for rung in halving.RUNGS}
"""Cost of a run at each rung, a whole one being 1."""
PRIMES = ["workload=workloads/examples/primes.py:Primes", "experiment=compare", "losses.set=[prime,digit,norm]", "sweep.leave_one_out=false",
          "sweep.learning_rates=[1e-3,3e-3,4e-3]", "sweep.seeds=2", "sweep.baselines=[uniform,tuned]", "train.steps=100"]  # fmt: skip


def configured(*settings):
    request = cli.configure([*PRIMES, "sweep.budget_each=20m", *settings])
    return request.settings, request.config


def run(count, score):
    """A whole search: rung -> candidates that trained there, and the scores."""
    scores = {rung: {} for rung in halving.RUNGS}
    while any(candidate not in scores[rung] for rung, going in halving.course(count, scores).items() for candidate in going):
        for rung, going in halving.course(count, scores).items():
            scores[rung] |= {candidate: score(rung, candidate) for candidate in going}
    return halving.course(count, scores), scores


@pytest.mark.parametrize("count", range(1, 40))
def test_a_rung_halves_what_trains_there_and_the_choice_is_made_at_full_length(count):
    sizes = halving.sizes(count)
    assert (
        next(iter(sizes.values())) == count
        and sizes[1] >= min(count, halving.LAST)
        and list(sizes.values()) == sorted(sizes.values(), reverse=True)
    )
    assert len(set(sizes.values())) == len(sizes)  # a rung from which all go on tells nothing
    assert halving.cost(count, IN_PROPORTION) < halving.cost(count + 1, IN_PROPORTION)


@pytest.mark.parametrize("budget, dear", [(1, 1.0), (6, 1.0), (6, 3.0), (40, 7.0), (2.9, 1.0)])
def test_an_arm_of_cost_c_gets_what_its_budget_over_c_buys(budget, dear):
    costs = {rung: dear * cost for rung, cost in IN_PROPORTION.items()}
    count = halving.affordable(budget, costs)
    assert count == halving.affordable(budget / dear, IN_PROPORTION)
    assert count == 0 or halving.cost(count, costs) <= budget
    assert halving.cost(count + 1, costs) > budget


def test_the_better_half_goes_on_and_the_best_at_full_length_is_chosen():
    best_at = {4: [5, 2, 7, 0, 1, 3, 4, 6], 2: [7, 2, 0, 5], 1: [2, 7]}  # best first
    course, scores = run(8, lambda rung, candidate: -best_at[rung].index(candidate))
    assert course == {4: list(range(8)), 2: [5, 2, 7, 0], 1: [7, 2]} and halving.winner(8, scores) == 2
    assert halving.winner(8, scores | {1: {2: 0.0}}) is None  # one still runs
    assert halving.course(8, {4: {candidate: 0.0 for candidate in range(7)}}) == {4: list(range(8))}


def test_what_diverged_ranks_last_and_of_equals_the_earlier_goes_first():
    course, scores = run(8, lambda rung, candidate: -INF if candidate in (0, 1, 2, 3, 5) else 1.0)
    assert course[2] == [4, 6, 7, 0] and course[1] == [4, 6] and halving.winner(8, scores) == 4
    _, scores = run(8, lambda rung, candidate: -INF)
    assert halving.winner(8, scores) == 0  # the arm as configured


@pytest.mark.parametrize("name", WAYS)
def test_every_way_searches_what_its_class_declares(name):
    """In a range around what is configured, whose ends are settings that it takes."""
    way = WAYS[name]
    settings = [f"combiner.name={name}"] if name != "own" else ["combiner.name=meltr"]
    config = cli.configure([*PRIMES[:-2], "combiner.temperature=null", *settings]).config
    ranges = way.ranges(config)
    declared = [f"combiner.{number}" for number in ("temperature", "strength") if getattr(way, number) is not None]
    assert set(ranges) == {*declared, *(f"aid.{number}" for number in way.searched)}
    for setting, (low, high) in ranges.items():
        part, _, number = setting.partition(".")
        assert 0 < low < getattr(getattr(config, part), number) <= high
        for end in (low, high):
            cli.configure([*PRIMES[:-2], *settings, f"{setting}={end}"])


def test_candidates_are_pure_functions_of_seed_arm_and_number():
    _, config = configured()
    domains = space(config, {})
    assert set(domains) == {"optimizer.learning_rate", "optimizer.weight_decay", "aid.learning_rate", "aid.gamma"}
    assert candidate(domains, "meltr", 0, 0) == {"optimizer.learning_rate": 2e-3}  # else as configured; the middle of the range
    drawn = [candidate(domains, "meltr", number, 0) for number in range(1, 300)]
    assert drawn == [candidate(domains, "meltr", number, 0) for number in range(1, 300)] and len({str(one) for one in drawn}) == 299
    assert candidate(domains, "meltr", 1, 0) != candidate(domains, "meltr", 1, 1) != candidate(domains, "uniform", 1, 0)
    rates, decays = ([one[f"optimizer.{name}"] for one in drawn] for name in ("learning_rate", "weight_decay"))
    assert 1e-3 <= min(rates) < 1.1e-3 and 3.8e-3 < max(rates) <= 4e-3 and np.median(rates) == pytest.approx(2e-3, rel=0.1)
    assert 0.1 < np.mean(np.array(decays) == 0) < 0.3


def test_what_an_arm_gives_itself_and_what_is_off_stays():
    _, config = configured("aid.gamma=0")
    assert set(space(config, {"optimizer.weight_decay": 0.1})) == {"optimizer.learning_rate", "aid.learning_rate"}


def by_losses(trial):
    """Device-seconds as if a step took a second for each loss, and three for each of MELTR."""
    return trial.config.train.steps * len(trial.config.losses.set) * (3 if trial.config.combiner.name == "meltr" else 1)


def test_a_sweep_gives_each_arm_the_same_seconds_then_its_seeds():
    settings, config = configured("sweep.budget_each=1h")
    counted = EqualBudgets(settings, config, {}).count(by_losses)
    assert counted == {
        "meltr": halving.affordable(4, IN_PROPORTION),
        "uniform": halving.affordable(12, IN_PROPORTION),
        TUNED: halving.affordable(12, IN_PROPORTION),
    }
    search, comparison = plan.phases(settings, config, counted)
    ended, trials = {}, search.trials(plan.Known({}))
    assert {trial.config.train.steps for trial in trials} == {25} and comparison.trials(plan.Known({})) == []
    while len(trials) > len(ended):
        ended = {trial.name: -trial.config.optimizer.learning_rate for trial in trials}
        trials = search.trials(plan.Known({}, halved=ended))
    assert (
        {trial.config.seed for trial in trials} == {1000}
        and {trial.phase for trial in trials} == {"settings_search"}
        and not any(trial.test for trial in trials)
    )
    assert sum(trial.phase == "settings_search" for trial in plan.all_trials(settings, config, counted)) == len(trials)
    for arm in counted:
        spent = sum(by_losses(trial) for trial in trials if trial.arm == arm)
        assert 0.75 * 3600 <= spent <= 3600
    tuned = [trial.config.combiner.weights for trial in trials if trial.arm == TUNED and trial.config.combiner.weights != "uniform"]
    assert all(weights[0] == 1 and all(1 / 31 < weight <= 30 for weight in weights) for weights in tuned)
    compared = comparison.trials(plan.Known({}, halved=ended))
    assert {(trial.arm, trial.config.seed) for trial in compared if trial.test} == {(arm, seed) for arm in counted for seed in (0, 1)}
    for arm in counted:
        least = min(trial.config.optimizer.learning_rate for trial in trials if trial.arm == arm and trial.config.train.steps == 100)
        assert {trial.config.optimizer.learning_rate for trial in compared if trial.arm == arm} == {least}
    (other,) = {trial.config.optimizer.learning_rate for trial in compared if trial.arm == "primary_only"}  # not compared: that of `ours`
    assert other in [trial.config.optimizer.learning_rate for trial in compared if trial.arm == "meltr"]


def test_times_are_taken_of_arms_and_hold_for_their_candidates():
    settings, config = configured()
    planned = plan.all_trials(settings, config)
    timed = to_time(planned)
    assert {trial.config.combiner.name for trial in timed} == {"meltr", "fixed"} and len(timed) == 3  # fixed: fewest losses and most
    known = Timed({trial.arm: (trial, Timing(0.0, float(by_losses(trial)) / trial.config.train.steps, 0.0)) for trial in timed})
    for trial in plan.all_trials(settings, config, {"meltr": 5, TUNED: 5}):
        assert known.cost(trial) == pytest.approx(by_losses(trial))


def test_a_budget_below_one_run_names_the_arm_and_the_least():
    settings, config = configured("sweep.budget_each=10m")
    with pytest.raises(
        ConfigError, match=re.escape("sweep.budget_each=10m: buys not one full run of meltr, which takes 900.0 s; give at least 900s")
    ):
        EqualBudgets(settings, config, {}).count(by_losses)
    settings, config = configured("sweep.budget_each=900s")
    assert EqualBudgets(settings, config, {}).count(by_losses)["meltr"] == 1


@pytest.mark.parametrize("settings, rule", [
    ("sweep.budget_each=soon", "sweep.budget_each=soon: is no length of time"),
    ("sweep.tuned_weights=8", "sweep.tuned_weights=8: has no part beside sweep.budget_each"),
    ("sweep.learning_rate_seeds=2", "sweep.learning_rate_seeds=2: has no part beside sweep.budget_each"),
    ("sweep.learning_rates=[1e-3]", "sweep.learning_rates=[0.001]: sweep.budget_each draws between"),
    ("experiment=screening sweep.baselines=[uniform,primary_only] sweep.leave_one_out=true", "sweep.budget_each=20m: has no part in a screening"),
    ("train.steps=3", "train.steps=3: a search by halving"),
    ("seed=999", "seed=999: seeds from 1000 on"),
    ("sweep.ours=tuned", "sweep.ours=tuned: no such arm"),
])  # fmt: skip
def test_what_equal_budgets_cannot_be_is_one_line(settings, rule):
    with pytest.raises(ConfigError, match=f"^{re.escape(rule)}") as caught:
        plan.all_trials(*configured(*settings.split()))
    assert "\n" not in str(caught.value)


def test_leaders_are_the_best_on_validation_and_the_first_baseline_on_fresh_seeds():
    settings, config = configured("sweep.leaders=1", "sweep.confirmation_seeds=3")
    search, comparison, confirmation = plan.phases(settings, config)
    known = plan.Known({}, halved={trial.name: 0.0 for trial in search.trials(plan.Known({}))})
    compared = comparison.trials(known)
    assert compared and not any(trial.test for trial in compared) and confirmation.trials(known) == []  # not before all have ended
    scores = {trial.name: {"meltr": 1.0, "uniform": 2.0, TUNED: 3.0}.get(trial.arm, 9.0) for trial in compared}
    fresh = confirmation.trials(replace(known, compared=scores))
    assert {(trial.arm, trial.config.seed) for trial in fresh} == {(arm, seed) for arm in (TUNED, "uniform") for seed in (2000, 2001, 2002)}
    assert all(trial.test and trial.phase == "confirmation" for trial in fresh)
    for trial in fresh:
        before = next(other.config for other in compared if other.arm == trial.arm)
        assert before.seed == 0 and replace(before, seed=trial.config.seed) == trial.config  # as it was compared
    diverged = scores | {trial.name: -INF for trial in compared if trial.arm == TUNED and trial.config.seed == 1}
    assert {trial.arm for trial in confirmation.trials(replace(known, compared=diverged))} == {"uniform"}
    words = plan.in_words(config, plan.all_trials(settings, config))
    assert (
        words[0] == "leaders: the best 1 on validation and uniform: 3 fresh seeds, at most 6 trials; the test split is scored in them alone"
    )


@pytest.mark.parametrize("settings, rule", [
    ("sweep.leaders=4", "sweep.leaders=4: must lie between 0 and the 3 arms"),
    ("sweep.confirmation_seeds=3", "sweep.confirmation_seeds=3: has no part in a comparison"),
])  # fmt: skip
def test_leaders_that_cannot_be_are_one_line(settings, rule):
    with pytest.raises(ConfigError, match=f"^{re.escape(rule)}"):
        plan.all_trials(*configured(*settings.split()))
