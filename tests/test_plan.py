"""What a sweep plans: learning rates beyond the edge of their grid, what trials cost, and how far a budget goes."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from meltr_ray.cluster.budget import Budget
from meltr_ray.cluster.searches import chosen_rates, learning_rates_tried
from meltr_ray.cluster.timing import EVALUATIONS, cut
from meltr_ray.config import duration
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from meltr_ray.results.columns import Columns
from meltr_ray.workload import Metric
from tune_spaces import plan, weights
from tune_spaces.cost import Timed, Timing, to_time
from tune_spaces.rates import FURTHER, chosen, extended
from workloads import cli

PRIMES = "workload=workloads/examples/primes.py:Primes"
INF = float("inf")


@pytest.mark.parametrize("best, added", [
    (2e-3, []),
    (4e-3, [8e-3]),  # found on the edge; the next one is worse
    (1e-3, [5e-4]),
    (6e-2, [8e-3, 1.6e-2, 3.2e-2]),  # always further, until there are enough
])  # fmt: skip
def test_a_search_goes_on_where_its_best_lies_on_an_edge(best, added):
    grid, tried = [1e-3, 2e-3, 4e-3], {}
    while set(rates := extended(grid, tried)) - set(tried):
        assert rates[:3] == grid and len(rates) <= 3 + FURTHER
        tried |= {rate: -abs(rate / best - 1) for rate in rates}
    assert extended(grid, tried)[3:] == pytest.approx(added)
    assert chosen(tried) == max(tried, key=tried.get)


def test_a_search_ends_at_rates_that_diverge_and_waits_for_those_that_run():
    assert extended([1e-3, 2e-3], {1e-3: 1.0, 2e-3: -INF}) == [1e-3, 2e-3, 5e-4]
    assert extended([1e-3, 2e-3], {2e-3: 1.0}) == [1e-3, 2e-3]
    assert extended([1e-3], {1e-3: 1.0}) == [1e-3] and extended([], {}) == []
    assert chosen({1e-3: -INF}) is None and chosen({}) is None


def write(sweep, name, rate, *rows, phase="learning_rate_search", workers=0):
    columns = Columns.of({"accuracy": Metric("%")}, [], {"optimizer.learning_rate": rate, "train.num_workers": workers})
    for step, (status, score, elapsed) in enumerate(rows):
        row = {
            "trial": name,
            "arm": "uniform",
            "phase": phase,
            "split": "validation",
            "status": status,
            "score": score,
            "step": step,
            "elapsed": elapsed,
        }
        results.append(sweep / "trials" / name, row, columns)


def test_a_rate_at_which_one_seed_diverges_is_not_chosen(tmp_path):
    write(tmp_path, "a0", 1e-3, ("running", 50.0, 1.0), ("finished", 40.0, 2.0))
    write(tmp_path, "a1", 1e-3, ("finished", 60.0, 2.0))
    write(tmp_path, "b0", 2e-3, ("finished", 99.0, 2.0))
    write(tmp_path, "b1", 2e-3, ("diverged", None, 1.0))
    write(tmp_path, "c0", 4e-3, ("finished", 99.0, 2.0))
    write(tmp_path, "c1", 4e-3, ("stopped", 99.0, 1.0))  # goes on when resumed
    tried = learning_rates_tried(tmp_path)
    assert tried == {"uniform": {1e-3: 55.0, 2e-3: -INF}} and chosen_rates(tried) == {"uniform": 1e-3}


@pytest.mark.parametrize(
    "text, length", [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("1.5 h", 5400), ("45s", 45), ("45", 45), ("1d", 86400)]
)
def test_lengths_of_time(text, length):
    assert duration.seconds("sweep.budget", text) == length


@pytest.mark.parametrize("text", ["", "0h", "-1h", "2 hours", "h", "30m1h", "nan", "1e3"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(ConfigError, match="^sweep.budget=.*: is no length of time; use such as 2h"):
        duration.seconds("sweep.budget", text)


def timed(*settings):
    """A plan of Primes, and the cost of its trials as if a step took a second for each loss."""
    request = cli.configure([PRIMES, "experiment=screening", "losses.set=[prime,digit,norm,permuted]", "sweep.learning_rates=[]",
                             "train.steps=100", "train.evaluate_every=50", *settings])  # fmt: skip
    trials = plan.all_trials(request.settings, request.config)
    return request.config, trials, Timed({t.arm: (t, Timing(10.0, len(t.config.losses.set), 5.0)) for t in to_time(trials)})


def test_two_short_trials_tell_the_cost_of_all():
    config, trials, known = timed()
    assert {arm: trial.config.losses.set for arm, (trial, _) in known.of_arms.items()} == {
        "primary_only": ["prime"], "uniform_with_permuted": ["prime", "digit", "norm", "permuted"]}  # fmt: skip
    for trial in trials:  # start, steps, two evaluations, and the one of the test split
        assert known.cost(trial) == pytest.approx(10 + 100 * len(trial.config.losses.set) + 5 * (2 + trial.test))
    lines = plan.cost_in_words(config, trials, known)
    assert (
        lines[0] == "estimated device time of a trial: primary_only 2 min, uniform_with_permuted 7 min"
        and lines[1] == "device time in all: about 3 h 07 min: screening 2 h 32 min, confirmation 35 min"
    )


def test_short_trials_have_the_rows_that_timing_asks_for():
    config, trials, _ = timed()
    short = cut(trials[0].config)
    assert short.train.steps == EVALUATIONS * short.train.evaluate_every and trials[0].config.train.steps == 100


def fed(*times):
    """Rows of a trial, evaluated every ten steps: (seconds of training, of all since the last row)."""
    totals = np.cumsum(times, axis=0)
    return [{"step": 10 * number, "seconds": seconds, "elapsed": elapsed} for number, (seconds, elapsed) in enumerate(totals, 1)]


QUIET = [(30.0, 50.0), (10.0, 14.0), (10.0, 14.0)]
"""1 s a step and 4 s an evaluation once it is under way, 36 s before."""
BUSY = [(60.0, 100.0), (25.0, 35.0), (10.0, 31.0)]


@pytest.mark.parametrize("timings", [
    [QUIET], [QUIET[:2]],
    [QUIET, BUSY], [BUSY, QUIET],  # one of two timings was disturbed
    [[QUIET[0], BUSY[1], QUIET[1]], [BUSY[0], BUSY[1], BUSY[2]]],  # one quiet window of four
    [[BUSY[0], BUSY[1], (10.0, 20.0)], [QUIET[0], (20.0, 24.0), BUSY[1]]],  # steps in one, an evaluation in another
])  # fmt: skip
def test_a_busy_moment_doesnt_make_a_step_dearer(timings):
    assert Timing.of(*(fed(*one) for one in timings)) == Timing(36.0, 1.0, 4.0)


def test_a_budget_says_how_far_it_goes_or_what_a_block_costs():
    config, trials, known = timed("sweep.budget=2h")
    # a seed: 120, 220, 220, 320, 220 and 420 s
    assert plan.cost_in_words(config, trials, known)[-1] == "sweep.budget=2h ends the sweep after about 29 of 48 trials"
    with pytest.raises(ConfigError, match="^sweep.budget=20m: is below one block: the trials of one seed take 25 min; give more"):
        plan.cost_in_words(*timed("sweep.budget=20m"))


def test_a_budget_books_what_runs_and_counts_what_ran(tmp_path):
    write(tmp_path, "done", 1e-3, ("finished", 1.0, 30.0), workers=2)
    write(tmp_path, "begun", 1e-3, ("stopped", 1.0, 10.0))
    budget = Budget.of(tmp_path, 100.0)
    trial = tmp_path / "trials"
    assert budget.spent == 70 and not budget.exhausted
    assert budget.start(trial / "begun", 25.0)  # 15 more
    assert not budget.start(trial / "next", 20.0) and budget.exhausted
    write(tmp_path, "begun", 1e-3, ("finished", 1.0, 12.0))
    budget.end(trial / "begun")
    assert budget.spent == 72 and budget.start(trial / "next", 20.0)
    assert Budget.of(tmp_path, None).start(trial / "next", 1e9)


def surface(point):
    """Best at weights 5 and 1 / 3 of two auxiliary losses, and a rate above the middle."""
    where = np.array([np.log(5), -np.log(3), np.nan]) / np.log(weights.LARGEST)
    where[2] = 0.4
    return 50 - 30 * float(((point - where) ** 2).sum())


def test_the_search_for_weights_goes_where_the_best_are():
    """Over twenty seeds, noise of a point of score: the chosen ones lose less than a third of what random ones lose, and are sure of the direction."""
    chosen, at_random = [], []
    for seed in range(20):
        noise, scores, found = np.random.RandomState(seed), {}, []
        while len(found) < 24 or len(scores) < 24:
            found = weights.points(24, 3, scores, seed)
            scores |= {number: surface(point) + noise.normal() for number, point in enumerate(found) if number not in scores}
        best = weights.best(found, [scores[number] for number in range(24)])
        chosen.append(50 - surface(best))
        at_random.append(50 - surface(found[int(np.argmax([scores[number] for number in range(12)]))]))
        assert all(np.array_equal(a, b) for a, b in zip(found, weights.points(24, 3, scores, seed)))  # whenever it is asked
        assert np.abs(found).max() <= 1
    assert np.mean(chosen) < 0.6 * np.mean(at_random), (np.mean(chosen), np.mean(at_random))


def test_runs_that_diverge_count_as_the_worst_and_those_that_run_are_waited_for():
    found = weights.points(8, 2, {}, 0)
    assert len(found) == 4 and len(weights.points(8, 2, {0: 1.0, 1: 2.0, 3: 1.0}, 0)) == 4
    scores = {0: 1.0, 1: 5.0, 2: -INF, 3: 2.0}
    more = weights.points(8, 2, scores, 0)
    assert len(more) == 6 and all(np.array_equal(a, b) for a, b in zip(found, more))
    assert weights.best(more[:4], [1.0, 5.0, -INF, 2.0]) is not more[2] and weights.best(found, [-INF] * 4) is None


def test_weights_and_rate_of_a_point():
    assert weights.weights_of(np.array([1.0, -1.0, 0.0]), 3, 1) == [30.0, 1.0, 0.03333]
    assert weights.rate_of(np.array([1.0, -1.0, -1.0]), 3, [1e-3, 4e-3, 2e-3]) == 1e-3 and weights.rate_of(np.zeros(2), 3, [1e-3]) is None


def test_tuned_weights_are_an_arm_beside_the_others():
    request = cli.configure([PRIMES, "experiment=compare", "losses.set=[prime,digit,norm]", "sweep.tuned_weights=8", "sweep.leave_one_out=false",
                             "sweep.baselines=[uniform,tuned]", "sweep.learning_rates=[1e-3,4e-3]", "sweep.seeds=2"])  # fmt: skip
    search, weighed, comparison = plan.phases(request.settings, request.config)
    known = plan.Known({"meltr": 1e-3, "uniform": 4e-3})
    assert {trial.arm for trial in search.trials(known)} == {"meltr", "uniform"}
    while len(trials := weighed.trials(known)) < 8:
        known = replace(known, weighed={trial.name: -trial.config.combiner.weights[2] for trial in trials})
    assert {trial.phase for trial in trials} == {"weight_search"} and {trial.config.seed for trial in trials} == {1000}
    assert all(1e-3 <= trial.config.optimizer.learning_rate <= 4e-3 for trial in trials)
    known = replace(known, weighed={trial.name: -trial.config.combiner.weights[2] for trial in trials})
    tuned = [trial for trial in comparison.trials(known) if trial.arm == "tuned"]
    assert len(tuned) == 2 and all(trial.test and trial.phase == "comparison" for trial in tuned)
    chosen = tuned[0].config.combiner.weights
    assert chosen in [trial.config.combiner.weights for trial in trials] and chosen[0] == 1 and chosen[2] < 0.5
    every = plan.all_trials(request.settings, request.config)
    assert (
        plan.in_words(request.config, every)[0] == "weights: 8 runs for the arm tuned, 4 of them at the best point of a fit to the others"
    )
    for settings, rule in (
        ("sweep.tuned_weights=2", "sweep.tuned_weights=2: a fit needs more runs"),
        ("sweep.baselines=[tuned]", "sweep.baselines=tuned: no such arm"),
    ):
        with pytest.raises(ConfigError, match=re.escape(rule)):
            cli.configure([PRIMES, "experiment=compare", settings])


def test_what_an_arm_is_charged_with_is_in_the_plan_and_checked():
    compared = [PRIMES, "experiment=compare", "sweep.baselines=[uniform]"]
    request = cli.configure([*compared, "sweep.charged={uniform: 1h30m}"])
    trials = plan.all_trials(request.settings, request.config)
    assert request.config.sweep.charged_seconds == {"uniform": 5400}
    assert plan.in_words(request.config, trials)[0] == "charged to uniform: 90 min of device time before this sweep"
    for settings, rule in (
        ([*compared, "sweep.charged={uniform: soon}"], "sweep.charged.uniform=soon: is no length of time; use such as 2h"),
        ([*compared, "sweep.charged={primary_only: 2h}"], "sweep.charged=primary_only: is not compared; use one of meltr, uniform"),
        ([PRIMES, "experiment=screening", "sweep.charged={meltr: 2h}"], "sweep.charged={'meltr': '2h'}: has no part in a screening"),
        ([*compared, "sweep.charged=2h"], "sweep.charged=2h: "),
    ):
        with pytest.raises(ConfigError, match=f"^{re.escape(rule)}"):
            request = cli.configure(settings)
            plan.all_trials(request.settings, request.config)


ELSEWHERE = {"aid", "noisy_labels", "overfit", "primes", "tryout_primes"}
"""Experiments of other workloads or backbones, which their own tests plan."""


@pytest.mark.parametrize("name", sorted({path.stem for path in (cli.CONF / "experiment").glob("*.yaml")} - ELSEWHERE))
def test_every_experiment_has_a_plan(name):
    request = cli.configure([f"experiment={name}"])
    assert plan.all_trials(request.settings, request.config)


@pytest.mark.parametrize("name, most", [("methods", 27), ("methods_mosi", 10), ("methods_retrieval", 9)])
def test_the_recorded_comparisons_plan_every_arm_at_equal_terms(name, most):
    """Each arm searches the same rates with as many seeds, has its own three, and is scored on test in these alone."""
    request = cli.configure([f"experiment={name}"])
    arms, trials = [request.config.sweep.ours, *request.config.sweep.baselines], plan.all_trials(request.settings, request.config)
    searched = {
        arm: sorted(t.config.optimizer.learning_rate for t in trials if t.arm == arm and t.phase == "learning_rate_search") for arm in arms
    }
    assert len(arms) == most and all(rates == request.config.sweep.learning_rates for arm, rates in searched.items() if arm != "tuned")
    assert {arm: sorted(t.config.seed for t in trials if t.arm == arm and t.test) for arm in arms} == dict.fromkeys(arms, [10, 11, 12])
    assert all(t.test for t in trials if t.phase == "comparison") and not any(t.test for t in trials if t.phase != "comparison")
