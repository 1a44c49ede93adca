"""Analysis: statistics against independent computations, pairing, the equal-seconds rule, partial sweeps, the report."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from matplotlib.text import Text

from analysis import cells, chosen, leaders, plots, report, standing, statistics, tables
from meltr_ray.config import SweepConfig
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from meltr_ray.results.columns import Columns
from meltr_ray.storage import sealed
from meltr_ray.workload import Metric
from tests.notebooks import printed_by

METRICS = {"recall_at_10": Metric("%", label="R@10"), "recall_at_5": Metric("%", label="R@5"), "median_rank": Metric(higher=False)}
LOSS_SET = ["joint", "masked_joint", "caption", "constant", "shuffled"]
BASELINES = ["uniform", "primary_only"]
POOR = "<b>CUDA</b> & <script>alert(1)</script>"


def write_trial(sweep, arm, seed, scores, *, phase="comparison", status="finished", error=None, test=None,
                seconds_per_step=0.1, every=50, learning_rate=1e-3, loss_set=LOSS_SET, slopes=None):  # fmt: skip
    """One trial with a validation score at each multiple of `every` steps and, if `test` is given, a test row."""
    settings = {"seed": seed, "losses.set": loss_set, "losses.primary": loss_set[0], "optimizer.learning_rate": learning_rate,
                "combiner.name": "meltr" if arm.startswith("meltr") else arm}  # fmt: skip
    columns = Columns.of(METRICS, loss_set, settings)
    name = f"{phase}_{arm}_{seed}_{learning_rate}"
    base = {"trial": name, "arm": arm, "phase": phase}
    best = int(np.argmax(scores))
    for index, score in enumerate(scores, 1):
        last, step = index == len(scores), index * every
        learned = {f"slope.{loss}": 1 + (end - 1) * index / len(scores) for loss, end in (slopes or {}).items()}
        row = {
            "split": "validation", "status": status if last else "running", "error": error if last else None,
            "step": step, "seconds": step * seconds_per_step, "meta_seconds": step * seconds_per_step * (0.3 if slopes else 0),
            "peak_memory_bytes": 2_000_000_000 + 50_000_000 * seed, "solver_outcome": "converged" if slopes else None,
        }  # fmt: skip
        results.append(sweep / "trials" / name, {**base, **row, **measured(score), **learned}, columns)
    if test is not None:
        row = {"split": "test", "status": status, "step": every * len(scores), "best_step": (best + 1) * every}
        results.append(sweep / "trials" / name, {**base, **row, **measured(test)}, columns)


def recalls(score):
    return {"recall_at_10": score, "recall_at_5": 0.8 * score, "median_rank": 90 - score}


def measured(score):
    return {"score": score} | {f"metric.{name}": value for name, value in recalls(score).items()}


def write_plan(sweep, **plan):
    """What lies beside the results table; gathers the trials."""
    plan = {"arms": {arm: {} for arm in ["meltr", *BASELINES]}, "baselines": BASELINES, **plan}
    about = {
        "metrics": {name: dataclasses.asdict(metric) for name, metric in METRICS.items()},
        "losses": {"primary": LOSS_SET[0], "set": LOSS_SET, "controls": ["constant", "shuffled"]}, "machine": "2 CPU cores, 8 GiB", "command": "python workloads/sweep.py",
        "started": "2026-01-01T10:00:00Z", "ended": "2026-01-01T12:30:00Z",
        "data": {"name": "digits", "description": "bouncing digits", "rows": 2000},
        "learning_rate_chosen": {"meltr": 1e-3, "uniform": 2e-3, "primary_only": 1e-3},
    }  # fmt: skip
    simple = {"chance": recalls(5.0), "ridge": recalls(38.0)}
    (sweep / "sweep.json").write_text(json.dumps({**dataclasses.asdict(SweepConfig(**plan)), **about}))
    (sweep / "baselines.json").write_text(json.dumps({"validation": simple, "test": simple}))
    results.gather(sweep)
    return sweep


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """Three arms by six seeds, a search of learning rates, an arm for each loss left out, failures; seeded numbers."""
    sweep, random = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0)
    climb = np.array([0.35, 0.6, 0.8, 0.92, 0.98, 1.0])
    for seed in range(6):
        luck = random.normal(0, 1.5)
        for arm, level in {"meltr": 57.0, "uniform": 54.0, "primary_only": 50.0}.items():
            scores = climb * (level + luck) + random.normal(0, 0.8, 6)
            ends = {loss: end + random.normal(0, 0.08) for loss, end in
                    {"joint": 1.6, "masked_joint": 1.3, "caption": 0.9, "constant": 0.95, "shuffled": 0.2}.items()}  # fmt: skip
            ours = arm == "meltr"
            bad = arm == "primary_only" and seed == 4
            write_trial(sweep, arm, seed, [float("nan")] if bad else scores.tolist(),
                        status="diverged" if bad else "finished", error="loss.joint is nan at step 37" if bad else None,
                        test=None if bad else scores[-1] - 1.5, seconds_per_step=0.15 if ours else 0.1,
                        slopes=ends if ours else None)  # fmt: skip
    for loss, effect in {"masked_joint": 3.0, "caption": 0.5, "constant": 0.0, "shuffled": -2.0}.items():
        for seed in range(4):
            scores = climb * (57.0 - effect) + random.normal(0, 0.8, 6)
            write_trial(sweep, f"meltr_without_{loss}", seed, scores.tolist(), phase="ablation", seconds_per_step=0.14,
                        loss_set=[name for name in LOSS_SET if name != loss])  # fmt: skip
    write_trial(sweep, "meltr_cg", 0, [20.0], phase="ablation", status="failed", error=POOR)
    for arm, best in {"meltr": 1e-3, "uniform": 2e-3, "primary_only": 1e-3}.items():
        for rate in (5e-4, 1e-3, 2e-3):
            score = 55 - 8 * np.log(rate / best) ** 2 + random.normal(0, 0.3)
            write_trial(sweep, arm, 100, [score - 5, score], phase="learning_rate_search", learning_rate=rate)
    arms = {arm: {} for arm in ["meltr", *BASELINES, "meltr_cg"]}
    return write_plan(sweep, arms=arms, learning_rates=[5e-4, 1e-3, 2e-3], other_seeds=4)


def small(folder, differences, baseline="uniform", **keywords):
    """Two arms: the baseline at 40 plus the seed, `meltr` higher by `differences`, on validation and test."""
    for seed, difference in enumerate(differences):
        write_trial(folder, baseline, seed, [30.0 + seed, 40.0 + seed], test=40.0 + seed)
        write_trial(folder, "meltr", seed, [20.0 + seed, 40.0 + seed + difference], test=40.0 + seed + difference, **keywords)
    return tables.load(write_plan(folder, baselines=[baseline], seeds=len(differences)))


def test_the_p_value_is_the_share_of_sign_patterns_at_least_as_extreme():
    values = np.random.default_rng(1).normal(0.6, 1, 9)
    means = [np.mean(values * signs) for signs in itertools.product([1, -1], repeat=len(values))]
    assert statistics.sign_flip_p(values) == pytest.approx(np.mean(np.abs(means) >= abs(values.mean()) - 1e-12))
    assert statistics.sign_flip_p([0.1, 2, 3, 0.5, 1, 7]) == 2 / 64  # six differences of one sign: the least p there is


def test_the_bootstrap_interval_of_a_large_sample_is_the_normal_one():
    values = np.random.default_rng(2).normal(3, 2, 400)
    interval, error = statistics.mean_interval(values), values.std(ddof=1) / 20
    assert (interval.low, interval.high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error)


def test_baselines_are_tested_in_the_order_of_the_plan():
    assert statistics.fixed_sequence([0.01, 0.04, 0.03]) == pytest.approx([0.01, 0.04, 0.04])  # no later p below an earlier
    assert statistics.fixed_sequence([0.06, 0.01])[1] == pytest.approx(0.06)
    assert np.isnan(statistics.fixed_sequence([np.nan, 0.01])[0]) and statistics.fixed_sequence([np.nan, 0.01])[1] == 1


def test_a_constant_shift_is_found_exactly_and_called_better(tmp_path):
    row = tables.comparisons(small(tmp_path, [2.5] * 6), "test").loc["uniform"]
    assert (row.n, row.verdict, row.p_adjusted) == (6, "better", 2 / 64)
    assert (row.difference, row.low, row.high) == pytest.approx((2.5, 2.5, 2.5))
    assert row.interval == "percentile bootstrap"  # BCa is undefined here
    assert report.headline(tmp_path).endswith("R@10 +2.5 points [+2.5, +2.5], n = 6 pairs, p = 0.031: better.")


def test_identical_arms_are_inconclusive_and_a_worse_one_is_worse(tmp_path):
    row = tables.comparisons(small(tmp_path / "same", [0.0] * 6), "test").loc["uniform"]
    assert (row.verdict, row.p, row.difference) == ("inconclusive", 1, 0)
    assert tables.comparisons(small(tmp_path / "worse", [-1, -2, -3, -1, -2, -2.5]), "test").verdict["uniform"] == "worse"


def test_a_verdict_that_no_data_could_reach_is_not_left_to_be_read_as_no_effect(tmp_path):
    for seed in range(5):
        for arm, score in (("meltr", 50.0), ("uniform", 40.0), ("primary_only", 30.0)):
            write_trial(tmp_path, arm, seed, [score + seed], test=score + seed)
    table = tables.comparisons(tables.load(write_plan(tmp_path)), "test")
    assert list(table.verdict) == ["inconclusive"] * 2 and list(table.least_p_adjusted) == [2 / 32] * 2
    assert "more seeds are needed" in " ".join(report.answer(tables.load(tmp_path)))


def test_seeds_without_a_pair_for_one_reason_are_said_together(tmp_path):
    for seed in range(4):
        write_trial(tmp_path, "meltr", seed, [30.0 + seed], test=30.0 + seed)
        write_trial(tmp_path, "uniform", seed, [30.0], status="finished" if seed < 2 else "diverged", test=30.0 if seed < 2 else None)
    write_trial(tmp_path, "meltr", 4, [31.0], test=31.0)
    (row,) = tables.comparisons(tables.load(write_plan(tmp_path, baselines=["uniform"])), "test").itertuples()
    assert row.n == 2 and row.lost == ["seeds 2, 3: uniform diverged", "seed 4: uniform has no trial"]


def test_trials_are_paired_by_seed_not_by_order(tmp_path):
    for seed, score in zip((3, 1, 2, 7), (10.0, 50.0, 30.0, 99.0)):  # 7 has no partner
        write_trial(tmp_path, "meltr", seed, [score + seed / 8], test=score + seed / 8)
    for seed, score in zip((2, 3, 1), (30.0, 10.0, 50.0)):
        write_trial(tmp_path, "uniform", seed, [score], test=score)
    table = tables.pairs(tables.load(write_plan(tmp_path)), "meltr", "uniform", "test")
    assert tables.differences(table).to_dict() == {1: 1 / 8, 2: 2 / 8, 3: 3 / 8}
    assert table.why[7] == "uniform has no trial"


def test_equal_seconds_takes_the_best_score_within_the_smaller_budget(tmp_path):
    # meltr is evaluated at 10, 20, 30, 40 s; uniform at 5, 10, 15, 20 s: the budget is 20 s, and its end counts
    write_trial(tmp_path, "meltr", 0, [20.0, 33.0, 60.0, 70.0], seconds_per_step=0.2)
    write_trial(tmp_path, "uniform", 0, [10.0, 50.0, 45.0, 40.0], seconds_per_step=0.1)
    # here the baseline has ended before meltr's first evaluation: no pair, and it is said
    write_trial(tmp_path, "meltr", 1, [20.0, 33.0], seconds_per_step=1.0)
    write_trial(tmp_path, "uniform", 1, [10.0], seconds_per_step=0.1)
    sweep = tables.load(write_plan(tmp_path))
    assert tables.differences(tables.pairs(sweep, "meltr", "uniform", "seconds")).to_dict() == {0: 33.0 - 50.0}
    assert tables.differences(tables.pairs(sweep, "meltr", "uniform", "steps")).to_dict() == {0: 70.0 - 50.0, 1: 20.0 - 10.0}
    assert tables.pairs(sweep, "meltr", "uniform", "seconds").why[1] == "meltr has no validation score"


def test_a_sweep_whose_table_is_damaged_or_gone_is_reported_by_those_of_its_trials(full, tmp_path):
    folder = shutil.copytree(full, tmp_path / "sweep")
    want = tables.load(folder)
    for damage, words in ((lambda file: file.write_bytes(file.read_bytes()[:-20]), "is damaged: the tables of the trials are read"),
                          (Path.unlink, "is missing: the tables of the trials are read")):  # fmt: skip
        damage(folder / results.FILE)
        found = tables.load(folder)
        pd.testing.assert_frame_equal(found.rows, want.rows)
        assert words in " ".join(found.absent) and words in report.write_report(folder).read_text()
    shutil.rmtree(folder / "trials")
    with pytest.raises(ConfigError, match="has no results.parquet"):
        tables.load(folder)
    (folder / results.FILE).write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="can't be read as Parquet"):
        tables.load(folder)


def test_diverged_and_failed_trials_are_left_out_and_named(full):
    sweep = tables.load(full)
    row = tables.comparisons(sweep, "test").loc["primary_only"]
    assert row.n == 5 and row.lost == ["seed 4: primary_only diverged"]
    assert "primary_only: 5 of 6 planned trials finished (1 diverged)." in tables.missing(sweep)
    assert set(tables.not_finished(sweep).error) == {"loss.joint is nan at step 37", POOR}


def test_the_search_of_learning_rates_stays_out_of_the_comparison(full):
    sweep = tables.load(full)
    assert 100 not in tables.arm_trials(sweep, "meltr").index
    chosen = tables.learning_rate_search(sweep).query("chosen").set_index("arm")
    assert chosen.edge.to_dict() == {"meltr": False, "primary_only": False, "uniform": True}
    assert any("edge of the grid for uniform:" in note for note in tables.missing(sweep))


def test_contributions_are_positive_where_leaving_out_hurts(tmp_path):
    for seed in range(3):
        write_trial(tmp_path, "meltr", seed, [50.0 + seed], test=50.0)
    for seed in range(3):
        write_trial(tmp_path, "meltr_without_caption", seed, [44.0 + 2 * seed], phase="ablation")
    for seed in range(2):
        write_trial(tmp_path, "meltr_without_shuffled", seed, [53.0 + seed], phase="ablation")
    table = tables.leave_one_out(tables.load(write_plan(tmp_path)))
    assert table.difference.to_dict() == {"caption": 5.0, "shuffled": -3.0}
    assert table.interval["caption"].endswith("bootstrap") and "n too small" in table.interval["shuffled"]


@pytest.mark.parametrize(("slope", "expected"), [(0.2, "demoted"), (1.0, "NOT demoted"), (0.78, "NOT demoted")])
def test_a_control_is_demoted_only_when_its_whole_interval_is(tmp_path, slope, expected):
    for seed, noise in enumerate((-0.05, 0.0, 0.05, 0.02)):  # 0.78: the mean lies below the bound, the interval reaches over
        write_trial(tmp_path, "meltr", seed, [50.0, 51.0],
                    slopes={"joint": 9.0, "masked_joint": 1.5, "caption": 0.5, "shuffled": slope + noise, "constant": 1.0})  # fmt: skip
    row = tables.controls(tables.load(write_plan(tmp_path))).loc["shuffled"]
    assert row.ratio == pytest.approx(slope + 0.005) and row.verdict == expected  # the primary's 9.0 stays out


def test_a_method_below_a_trivial_baseline_is_told_so_at_the_top(tmp_path):
    small(tmp_path, [-20.0] * 6)  # about 22 %, where ridge has 38
    page = report.write_report(tmp_path).read_text()
    assert page.index("lies wholly BELOW the baseline") < page.index("Against the baselines")


def test_the_report_stands_alone_and_escapes_what_trials_said(full):
    page = report.write_report(full).read_text()
    assert POOR not in page and "&lt;script&gt;alert(1)" in page and "<script" not in page
    assert 'src="http' not in page and page.count("data:image/png;base64") == len(list((full / "plots").glob("*.png"))) == 6
    assert report.headline(full) in page


def turned(folder):
    """The same sweep with the error of 100 minus the score as its metric, in a folder beside: lower is better."""
    other = folder.with_name(f"{folder.name}-errors")
    about = json.loads((folder / "sweep.json").read_text())
    about["metrics"] = {"error": dataclasses.asdict(Metric("%", higher=False, digits=2, label="ERR"))}
    simple = {split: {name: {"error": 100 - values["recall_at_10"]} for name, values in known.items()}
              for split, known in json.loads((folder / "baselines.json").read_text()).items()}  # fmt: skip
    table = results.load(folder / results.FILE).to_pandas()
    table["score"] -= 100
    table["metric.error"] = -table["score"]
    other.mkdir()
    table.to_parquet(other / "frame.parquet")
    results.write(other / results.FILE, pq.read_table(other / "frame.parquet").replace_schema_metadata({"version": "2"}))
    (other / "sweep.json").write_text(json.dumps(about))
    (other / "baselines.json").write_text(json.dumps(simple))
    return other


def test_where_lower_is_better_the_metric_is_shown_as_it_is_and_all_verdicts_stay(full):
    up, down = tables.load(full), tables.load(turned(full))
    for how in tables.HOW:
        a, b = tables.comparisons(up, how), tables.comparisons(down, how)
        assert list(a.verdict) == list(b.verdict) and a.p.tolist() == b.p.tolist()
        assert b.difference.to_numpy() == pytest.approx(-a.difference.to_numpy())
        assert b["first"].to_numpy() == pytest.approx(100 - a["first"].to_numpy())
        assert b.student_low.to_numpy() == pytest.approx(-a.student_high.to_numpy())
    a, b = tables.leave_one_out(up), tables.leave_one_out(down)
    assert list(a.index) == list(b.index) and list(a.verdict) == list(b.verdict)
    assert b.difference.to_numpy() == pytest.approx(-a.difference.to_numpy())
    assert list(report._floors(down).values()) == list(report._floors(up).values()) == [True, True]
    for table in (tables.learning_rate_search, tables.configurations):
        assert table(down).score.to_numpy() == pytest.approx(100 - table(up).score.to_numpy(), nan_ok=True)
    folder = full.with_name(f"{full.name}-errors")
    assert "ERR (lower is better) −2." in report.headline(folder) and report.headline(folder).endswith(": better.")
    page = report.write_report(folder).read_text()
    assert "Lower is better: a negative difference is in favour of meltr" in page and "axis reversed" in page
    axis = plots.paired_differences(down).axes[0]
    assert axis.get_xlim()[0] > axis.get_xlim()[1]  # better stays on the right


@pytest.fixture
def old(tmp_path):
    """Sweeps of version 1, by the code of that time."""
    with tarfile.open(Path(__file__).with_name("results_version_1.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_a_sweep_of_version_1_is_reported(old):
    assert "R@10 +2.5 points" in report.headline(old / "retrieval")
    sweep = tables.load(old / "retrieval")
    assert tables.losses_of(sweep) == ("joint", ["masked_joint", "caption"], ["constant", "shuffled"])
    assert tables.settings_apart(sweep) == {"uniform": "combiner.name=fixed"}
    assert cells.sceptic_table(sweep).header == ["what", "seeds", "R@10", "95 % interval", "R@1", "R@5", "median rank"]
    sweep = tables.load(old / "sentiment")
    row = tables.comparisons(sweep, "test").loc["uniform"]
    assert (row["first"], row["second"]) == pytest.approx((1.05 + 0.07 / 3, 1.15 + 0.14 / 3)) and row.difference < 0
    page = report.write_report(old / "sentiment").read_text()
    assert "MAE (lower is better) −0.123" in page and "negative_mae" not in page
    assert 'lies wholly below the baseline "constant": 1.073 against 1.400' in html.unescape(page)


def test_a_stopped_trial_is_said(tmp_path):
    write_trial(tmp_path, "meltr", 0, [20.0, 30.0], status="running")
    write_trial(tmp_path, "uniform", 0, [20.0, 30.0])
    results.mark_stopped(tmp_path)
    sweep = tables.load(write_plan(tmp_path))
    assert sweep.trials.status.to_dict() == {"comparison_meltr_0_0.001": "stopped", "comparison_uniform_0_0.001": "finished"}
    assert "meltr: 0 of 6 planned trials finished (1 stopped, 5 not evaluated yet)." in tables.missing(sweep)
    begun = tmp_path / "trials/uniform-seed1/config.yaml"  # it was cut off before it had a row
    begun.parent.mkdir()
    begun.touch()
    assert list(tables.not_finished(tables.load(tmp_path)).index) == ["comparison_meltr_0_0.001", "uniform-seed1"]
    page = report.write_report(tmp_path).read_text()
    assert "3 trials (1 finished, 2 stopped)" in page and "no evaluation yet" in page


def test_a_sweep_of_one_trial_that_learns_no_weights_is_said_as_it_is(tmp_path):
    """A baseline far from its curve is named at the edge; steps are whole."""
    write_trial(tmp_path, "meltr", 0, [20.0, 21.0, 22.0], every=1, slopes={"joint": 1.0, "caption": 1.0})
    sweep = tables.load(write_plan(tmp_path))
    page = html.unescape(report.write_report(tmp_path).read_text())
    assert "1 trial (1 finished)" in page and 'the one seed of MELTR lies BELOW the baseline "ridge": 22.0 against 38.0.' in page
    assert "No slope changes" in page and not (tmp_path / "plots/slopes.png").exists()
    figure = plots.learning_curves(sweep)
    labels, ticks = [text.get_text() for text in figure.legends[0].get_texts()], figure.axes[0].get_xticks()
    assert "ridge: 38.0 %, above what is shown" in labels and "chance: 5.0 %, below what is shown" in labels
    assert figure.axes[0].get_ylim() == pytest.approx((19.8, 22.2)) and (ticks == ticks.round()).all()


def test_any_workload_is_reported(tmp_path):
    """No slopes, no known settings but the seed, one metric without a label."""
    columns = {seed: Columns.of({"my_delay": Metric("s", higher=False)}, ["only"], {"seed": seed}) for seed in range(3)}
    for arm, seconds in {"meltr": 2.0, "uniform": 3.0}.items():
        for seed in range(3):
            row = {"trial": f"{arm}{seed}", "arm": arm, "phase": "comparison", "split": "validation", "status": "finished", "step": 5,
                   "seconds": 1.0, "score": -seconds - seed / 8, "metric.my_delay": seconds + seed / 8}  # fmt: skip
            results.append(tmp_path / "trials" / row["trial"], row, columns[seed])
    results.gather(tmp_path)
    about = {
        "metrics": {"my_delay": dataclasses.asdict(Metric("s", higher=False))},
        "losses": {"primary": "only", "set": ["only"], "controls": []},
    }
    (tmp_path / "sweep.json").write_text(json.dumps(about | dataclasses.asdict(SweepConfig(baselines=["uniform"]))))
    assert "my delay (lower is better) −1.0 s" in report.headline(tmp_path)
    page = report.write_report(tmp_path).read_text()
    assert "has no planted control" in page and ">2.1<" in page


def broken(folder, case):
    """A sweep that stopped early, in one of several ways."""
    folder.mkdir()
    if case not in ("empty", "searching"):
        write_trial(folder, "meltr", 0, [20.0, 30.0], status="running" if case == "running" else "finished")
    if case == "searching":  # the search's trials pair by seed too, but are not the comparison
        for arm in ("meltr", "uniform"):
            write_trial(folder, arm, 100, [20.0, 30.0], phase="learning_rate_search")
    if case in ("one pair", "no files"):
        write_trial(folder, "uniform", 0, [20.0, 28.0])
    write_plan(folder)
    if case == "no files":
        (folder / "sweep.json").unlink()
        (folder / "baselines.json").unlink()
    return folder


def test_a_metric_that_turns_nan_in_training_is_said(tmp_path):
    small(tmp_path, [1.0, 2.0, 3.0])
    assert not any("not a finite number" in note for note in tables.missing(tables.load(tmp_path)))
    write_trial(tmp_path, "meltr", 3, [20.0, float("nan"), 41.0], test=40.0)
    write_trial(tmp_path, "meltr", 4, [float("nan")], status="diverged", error="loss.joint is nan at step 37")
    results.gather(tmp_path)
    (note,) = (each for each in tables.missing(tables.load(tmp_path)) if each.startswith("recall_at_10 was"))
    assert (
        note
        == "recall_at_10 was not a finite number in 1 of 22 evaluations, first at step 100 of comparison_meltr_3_0.001; such weights are never the best."
    )


def test_a_plan_with_values_of_another_kind_makes_no_report_impossible(tmp_path):
    """With a right checksum, or none: an older version's, or one that was edited."""
    small(tmp_path, [1.0, 2.0])
    facts = sealed.read_json(tmp_path / "sweep.json")
    said = 0
    for name in facts:
        for odd in (None, [1, "x"]):
            sealed.put_json(tmp_path / "sweep.json", facts | {name: odd})
            sweep = tables.load(tmp_path)
            assert report.headline(tmp_path)
            said += any("sweep.json" in note for note in tables.missing(sweep))
    assert said > len(facts)


def test_the_command_ends_in_one_line_where_nobody_reads_or_nothing_can_be_written(tmp_path):
    small(tmp_path, [1.0, 2.0])
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "analysis.report", str(tmp_path)], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 141 and "Traceback" not in done.stderr and "Broken pipe" not in done.stderr
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("path", ["report.html", "plots"])
def test_something_else_in_the_place_of_the_report_is_named(tmp_path, capsys, path):
    small(tmp_path, [1.0, 2.0])
    (tmp_path / "report.html").mkdir() if path == "report.html" else (tmp_path / "plots").write_text("")
    assert report.main([str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and path in line and line.count("\n") == 1, line


@pytest.mark.parametrize("case", ["empty", "searching", "running", "one arm", "one pair", "no files"])
def test_a_partial_sweep_is_reported_with_what_is_missing(tmp_path, case):
    folder = broken(tmp_path / "sweep", case)
    page, line = report.write_report(folder).read_text(), report.headline(folder)
    assert "What is missing" in page and "primary_only" in page
    assert ("n = 1 pair," in line and "inconclusive" in line) if case in ("one pair", "no files") else "no finding" in line
    assert ("sweep.json is missing" in page) == (case == "no files")


def test_a_folder_without_results_is_a_one_line_error(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.whole
def test_the_notebook_runs_on_a_comparison_alone(full, monkeypatch):
    monkeypatch.setenv("MELTR_SWEEP", os.fspath(full))
    monkeypatch.delenv("MELTR_SCREENING", raising=False)
    printed = printed_by("compare_baseline.ipynb")
    assert printed.startswith("No screening here") and report.headline(full) in printed


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_differences_to_many_baselines_stand_in_rows_whose_titles_are_apart(tmp_path, count):
    """Of so many panels none is lost, and no title runs into another."""
    names = [f"with_masked_{number}" for number in range(count)]
    for arm in ("meltr", *names):
        for seed in range(3):
            write_trial(tmp_path, arm, seed, [40.0 + seed, 50.0 + len(arm)], test=45.0)
    figure = plots.paired_differences(tables.load(write_plan(tmp_path, baselines=names, arms={arm: {} for arm in ("meltr", *names)})))
    figure.draw_without_rendering()
    titles = [
        next(text for text in axis.get_children() if isinstance(text, Text) and "−" in text.get_text())
        for axis in figure.axes
        if axis.axison
    ]
    assert [title.get_text().split()[-1] for title in titles] == names
    boxes = [title.get_window_extent() for title in titles]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_every_arm_stands_by_its_distance_to_the_best_in_margins(full):
    sweep = tables.load(full)
    found = standing.standing(sweep)
    assert list(found.index) == ["meltr", "uniform", "primary_only"] and found.attrs["split"] == "test" and found.n.tolist() == [6, 6, 5]
    means = {arm: tables.arm_trials(sweep, arm).test_score.mean() for arm in found.index}
    assert found.score.to_dict() == pytest.approx(means)
    assert found.regret.to_dict() == pytest.approx({arm: (means["meltr"] - mean) / 1.5 for arm, mean in means.items()})
    page = report.write_report(full).read_text()
    assert "Where each arm ends" in page and "behind the best" in page


def test_what_an_arm_cost_before_the_sweep_is_in_its_tuning(tmp_path):
    """The screening that chose its losses, beside its own search; no other arm pays for it, and a run of its is no dearer."""
    for arm in ("meltr", "uniform", "primary_only"):
        write_trial(tmp_path, arm, 0, [40.0], test=40.0)
        write_trial(tmp_path, arm, 100, [40.0], phase="learning_rate_search")
    before = standing.standing(tables.load(write_plan(tmp_path)))
    sweep = tables.load(write_plan(tmp_path, charged={"uniform": "16m"}))
    after = standing.standing(sweep)
    assert (after.tuning - before.tuning).to_dict() == {"meltr": 0, "uniform": 960, "primary_only": 0} and after.run.equals(before.run)
    assert standing.standing_table(sweep).note.endswith("Tuning includes device time that was spent before this sweep: uniform 16 min.")
    assert cells.ledger_table(sweep).rows[-1] == ["before this sweep, for uniform", cells.DASH, cells.DASH, "16.0", cells.DASH, cells.DASH]
    page = report.write_report(tmp_path).read_text()
    assert "before this sweep, for uniform" in page and "spent before this sweep: uniform 16 min" in page


def test_arms_stand_by_the_metric_itself_where_lower_is_better(tmp_path):
    """Two arms have no such table; one without a finished trial stands last."""
    assert standing.standing_table(small(tmp_path, [2.0] * 3)) is None
    sweep = tables.load(tmp_path)
    sweep.metrics = {"median_rank": Metric(higher=False, margin=0.5)}  # its negative is the score
    found = standing.standing(sweep)
    assert found.score.to_dict() == {"meltr": -43.0, "uniform": -41.0} and found.regret.tolist() == [0, 4]
    sweep.plan.baselines = ["uniform", "never"]
    table = standing.standing_table(sweep)
    assert table.rows[-1][:3] == ["never", "0", cells.DASH]
    sweep.plan.baselines = ["uniform", *(f"never{number}" for number in range(6))]
    said = report.answer(sweep)
    assert sum("against" in line for line in said) <= 5 and any(line.startswith("3 more baselines: see the tables") for line in said)


def test_arms_stand_at_equal_seconds_as_far_as_the_cheapest_arm_goes(tmp_path):
    """A dear arm has half of its run by then, one that is dearer still no evaluation; all have the same steps."""
    for seed in range(3):
        write_trial(tmp_path, "uniform", seed, [20.0, 30.0, 25.0, 28.0], seconds_per_step=0.1 + seed / 1000)
        write_trial(tmp_path, "meltr", seed, [10.0, 35.0, 50.0, 60.0 + seed], seconds_per_step=0.2)
        write_trial(tmp_path, "primary_only", seed, [70.0, 71.0, 72.0, 73.0], seconds_per_step=1.0)
    found = standing.standing(tables.load(write_plan(tmp_path)))
    assert found.equal_steps.to_dict() == {"uniform": 30, "meltr": 61, "primary_only": 73}
    assert found.equal_seconds.drop("primary_only").to_dict() == {"uniform": 30, "meltr": 35} and np.isnan(
        found.equal_seconds["primary_only"]
    )


def test_leaders_are_judged_on_their_fresh_seeds_alone(tmp_path):
    for seed in range(6):
        write_trial(tmp_path, "uniform", seed, [40.0])
        write_trial(tmp_path, "meltr", seed, [50.0])
        write_trial(tmp_path, "uniform", 2000 + seed, [40.0], phase="confirmation", test=40.0 + seed)
        write_trial(tmp_path, "meltr", 2000 + seed, [39.0], phase="confirmation", test=37.0 + seed)
    sweep = tables.load(write_plan(tmp_path, baselines=["uniform"], leaders=1))
    found = leaders.leaders(sweep)
    assert found.validation.to_dict() == {"meltr": 50, "uniform": 40} and found.test.to_dict() == {"meltr": 39.5, "uniform": 42.5}
    assert (
        found.paired["meltr"].mean == -3
        and found.paired["uniform"] is None
        and tables.arm_trials(sweep, "meltr").index.tolist() == list(range(6))
    )
    said = report.answer(sweep)
    assert said[0].startswith(
        "MELTR, among the best on validation, against uniform weights on fresh seeds, test: R@10 −3.0 points"
    ) and said[0].endswith("worse.")
    assert not [note for note in tables.missing(sweep) if "test score" in note]
    assert "Leaders on fresh seeds" in report.write_report(tmp_path).read_text()
    sweep.rows = sweep.rows[(sweep.rows.phase != "confirmation") | (sweep.rows.arm == "uniform")]
    del sweep.trials
    assert (
        report.answer(sweep)[0]
        == "uniform weights, the first baseline, is itself the best on validation; on 6 fresh seeds, test: R@10 42.5."
    )


def test_what_each_arm_chose_stands_with_what_its_search_took(tmp_path):
    write_trial(tmp_path, "meltr", 1000, [20.0], phase="settings_search")
    write_trial(tmp_path, "meltr", 0, [30.0])
    write_plan(tmp_path, budget_each="20m", learning_rates=[1e-3, 1e-2], baselines=["uniform"])
    about = json.loads((tmp_path / "sweep.json").read_text())
    about["settings_chosen"] = {
        "meltr": {"number": 3, "candidates": 8, "score": 20.0, "settings": {"aid.gamma": 0.2, "combiner.weights": [1.0, 0.25]}}
    }
    (tmp_path / "sweep.json").write_text(json.dumps(about))
    sweep = tables.load(tmp_path)
    (row,) = chosen.chosen_table(sweep).rows
    assert row[:4] == ["meltr", "8", "1", "0"] and row[5:] == ["3", "aid.gamma=0.2, combiner.weights=[1, 0.25]", "20.0"]
    assert "No settings have been chosen for: uniform." in tables.missing(sweep)
    page = report.write_report(tmp_path).read_text()
    assert "Settings that each arm chose" in page and "20m of device time" in page
