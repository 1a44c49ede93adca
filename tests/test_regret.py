"""Regret over tasks: paired by seed and in margins, against the best on validation; the error of its mean as Welch has it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis import regret
from analysis.records import load
from tests.test_analysis import write_plan, write_trial

VALIDATION = {"meltr": 30.0, "uniform": 33.0, "primary_only": 31.0}
"""Uniform is the best there, and the primary alone on test."""


def sweep_of(folder, ours):
    """`ours` ends on test as given, uniform at 50."""
    generator = np.random.default_rng(len(ours))
    for seed, score in enumerate(ours):
        for arm, value in VALIDATION.items():
            on_test = {"meltr": score, "uniform": 50.0, "primary_only": 60.0}[arm]
            write_trial(folder, arm, seed, [value + 0.1 * generator.standard_normal()], test=on_test)
    return load(write_plan(folder))


def test_it_is_in_margins_against_the_best_on_validation_and_its_mean_is_welchs(tmp_path):
    scores = [np.array([51.0, 52.5, 49.0, 50.5]), np.array([44.0, 47.0, 46.0, 49.0, 41.0])]
    tasks = [regret.of_sweep(sweep_of(tmp_path / str(number), one), str(number)) for number, one in enumerate(scores)]
    margin = sweep_of(tmp_path / "again", scores[0]).margin
    first, second = ((one - 50) / margin for one in scores)
    assert [task.rival for task in tasks] == ["uniform"] * 2 and np.allclose(tasks[0].differences, first)
    mean, low, high = regret.mean_over(tasks)
    interval = stats.ttest_ind(first, -second, equal_var=False).confidence_interval(0.95)  # of the sum of both means
    assert (mean, low, high) == pytest.approx(((first.mean() + second.mean()) / 2, interval.low / 2, interval.high / 2))
    said = regret.markdown(tasks, "meltr")
    assert f"above -1: {'yes' if low > -1 else 'no'}" in said and "worse than the best on: 1." in said


def test_what_can_not_be_compared_is_one_line(tmp_path, capsys):
    write_trial(tmp_path / "one", "meltr", 0, [30.0], test=50.0)
    assert regret.main([str(write_plan(tmp_path / "one"))]) == 2 and regret.main([]) == 2
    line = capsys.readouterr().err.splitlines()[0]
    assert line == "error: sweep=one: has no finished trial of these arms; let it go on"


def test_two_folders_of_one_name_are_refused(tmp_path, capsys):
    assert regret.main([str(tmp_path / "a" / "one"), str(tmp_path / "b" / "one")]) == 2
    assert capsys.readouterr().err == "error: sweep=one: names two folders; rename one\n"
