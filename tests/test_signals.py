"""What held-out batches said of each loss: the loop's columns, and the table of the report."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from analysis import report, signals, tables, tries
from meltr_ray.combining.way import EFFECTS
from meltr_ray.results import table as results
from meltr_ray.results.columns import Columns
from meltr_ray.results.table import RunningMeans
from meltr_ray.training.statistics import by_name
from tests.engine_toy import toy_config
from tests.test_analysis import LOSS_SET, METRICS, measured, write_plan

TRUTH = {"joint": 1.0, "masked_joint": 0.5, "caption": 0.0, "shuffled": -0.4}
LOOKS, SEEDS, ROWS = 40, 6, 3


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A sweep whose arm `meltr` saw effects of known means under noise of standard deviation 1; and all looks, (seed, look, loss)."""
    folder, random = tmp_path_factory.mktemp("sweep"), np.random.default_rng(3)
    looks = random.normal(0, 1, (SEEDS, ROWS * LOOKS, len(TRUTH))) + list(TRUTH.values())
    for arm in ("meltr", "uniform", "primary_only"):
        for seed in range(SEEDS):
            settings = {"seed": seed, "losses.set": LOSS_SET, "losses.primary": LOSS_SET[0], "combiner.name": arm}
            columns, seen = Columns.of(METRICS, LOSS_SET, settings, learns=arm == "meltr"), {}
            for row in range(ROWS):
                part = looks[seed, row * LOOKS : (row + 1) * LOOKS]
                if arm == "meltr":
                    seen = {f"effect.{name}": value for name, value in zip(TRUTH, part.mean(0))}
                    seen |= {f"effect_square.{name}": value for name, value in zip(TRUTH, (part**2).mean(0))}
                about = {
                    "trial": f"{arm}-{seed}",
                    "arm": arm,
                    "phase": "comparison",
                    "split": "validation",
                    "step": 50 * (row + 1),
                    "seconds": 1.0,
                }
                results.append(
                    folder / "trials" / f"{arm}-{seed}",
                    about | {"status": "finished" if row == ROWS - 1 else "running"} | measured(40.0 + seed) | seen,
                    columns,
                )
    return write_plan(folder), looks


def test_signal_and_noise_are_those_of_all_looks(noisy):
    folder, looks = noisy
    found = signals.signals(tables.load(folder), "meltr")
    assert list(found.index) == list(TRUTH)
    for number, loss in enumerate(TRUTH):
        means = looks[:, :, number].mean(1)
        low, high = stats.t.interval(0.95, SEEDS - 1, means.mean(), stats.sem(means))
        row = found.loc[loss]
        assert (row["mean"], row.low, row.high) == pytest.approx((means.mean(), low, high))
        assert row.ratio == pytest.approx((means / looks[:, :, number].std(1)).mean())
        assert row.says == ("helps" if low > 0 else "harms" if high < 0 else "can't be told from noise")
    assert list(found.says) == ["helps", "helps", "can't be told from noise", "harms"]
    assert signals.signals(tables.load(folder), "uniform").empty


def test_one_look_a_run_has_no_noise_of_a_look(tmp_path):
    """As tryout takes it: the spread over seeds is all there is."""
    looks = [0.1 + 0.01 * seed for seed in range(4)]  # whose squares, rounded, aren't those of the mean
    for seed, look in enumerate(looks):
        settings = {"seed": seed, "losses.set": LOSS_SET, "losses.primary": LOSS_SET[0], "combiner.name": "tryout"}
        seen = {
            "effect.caption": look,
            "effect_square.caption": look**2 + 1e-17,
            "effect.shuffled": -look,
            "effect_square.shuffled": look**2,
        }
        about = {"trial": f"t{seed}", "arm": "meltr", "phase": "comparison", "split": "validation", "step": 9, "seconds": 1.0}
        results.append(tmp_path / "trials" / f"t{seed}", about | {"status": "finished"} | measured(40.0) | seen,
                       Columns.of(METRICS, LOSS_SET, settings, learns=True))  # fmt: skip
    found = signals.signals(tables.load(write_plan(tmp_path)), "meltr")
    assert found.ratio.isna().all() and list(found.says) == ["helps", "harms"]


def test_the_figure_of_tries_fills_what_was_trained_with(tmp_path, capsys):
    tried = {
        0: {"caption": (0.2, 1), "shuffled": (-0.1, 0)},
        1: {"caption": (-0.05, 0), "shuffled": (-0.3, 0)},
        2: {"caption": (0.1, 1), "shuffled": (0.4, 1)},
    }
    for seed, losses in tried.items():
        settings = {"seed": seed, "losses.set": LOSS_SET, "losses.primary": LOSS_SET[0], "combiner.name": "tryout"}
        seen = {f"effect.{loss}": effect for loss, (effect, _) in losses.items()} | {"slope.joint": 1.0}
        about = {"trial": f"t{seed}", "arm": "meltr", "phase": "comparison", "split": "validation", "step": 9, "seconds": 1.0}
        results.append(tmp_path / "trials" / f"t{seed}", about | {"status": "finished"} | measured(40.0) | seen | {f"slope.{loss}": on for loss, (_, on) in losses.items()},
                       Columns.of(METRICS, LOSS_SET, settings, learns=True))  # fmt: skip
    (axis,) = tries.figure({"one": tables.load(write_plan(tmp_path))}).axes
    drawn = {(x, line.get_markerfacecolor() != "none") for line in axis.lines if line.get_marker() == "o" for x in line.get_xdata()}
    assert drawn == {(effect, bool(on)) for losses in tried.values() for effect, on in losses.values()}
    assert [label.get_text() for label in axis.get_yticklabels()] == ["shuffled (control)", "caption"]
    assert tries.main([str(tmp_path / "a.png"), str(tmp_path)]) == 0 and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert tries.main([str(tmp_path / "b.png"), str(without_tries(tmp_path / "two"))]) == 2
    assert "has no try of a loss by meltr" in capsys.readouterr().err


def without_tries(folder):
    settings = {"seed": 0, "losses.set": LOSS_SET, "losses.primary": LOSS_SET[0], "combiner.name": "fixed"}
    about = {"trial": "t", "arm": "meltr", "phase": "comparison", "split": "validation", "step": 9, "seconds": 1.0, "status": "finished"}
    results.append(folder / "trials" / "t", about | measured(40.0), Columns.of(METRICS, LOSS_SET, settings))
    return write_plan(folder)


def test_the_report_has_them(noisy):
    assert "can&#x27;t be told from noise" in report.write_report(noisy[0]).read_text().replace("&#39;", "&#x27;")


def test_the_loop_names_effects_and_keeps_their_squares():
    config, means = toy_config(0), RunningMeans()
    for look in ([1.0, float("nan"), -2.0], [3.0, 5.0, 0.0]):
        means.add(by_name({EFFECTS: torch.tensor(look), "hypergradient_norm": 1.0}, config))
    found = {name: value for name, value in means.values().items() if value is not None}
    assert found == {"hypergradient_norm": 1.0, "effect.head": 2.0, "effect_square.head": 5.0, "effect.decoder": 5.0, "effect_square.decoder": 25.0,
                     "effect.steep": -1.0, "effect_square.steep": 2.0}  # fmt: skip
