"""What the report says of a search, from a table made by hand; what solvers cost and how far off they are, against the dense solve."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import report, solve_errors, space
from analysis.tables import Sweep
from meltr_ray import MELTR
from meltr_ray.config import SweepConfig
from meltr_ray.config.used import DECIDERS
from meltr_ray.workload import Metric
from workloads.examples.primes import Primes

CONSTANT = {"combiner.name": "meltr", "aid.gamma": 0.1, "combiner.slopes": "any", "combiner.gramian": "exact", "train.num_workers": 0,
            "optimizer.schedule": "linear", "tuning.lora": "[]"}  # fmt: skip


def searched(count: int = 60) -> Sweep:
    """The damping of cg decides, the width hardly; a few are stopped, a few of `ours` stand on the same seed."""
    generator, rows = np.random.RandomState(0), []
    for number in range(count):
        solver = ["identity", "cg"][number % 2]
        values = {
            "aid.solver": solver,
            "aid.damping": float(10 ** generator.uniform(-3, 0)),
            "workload.width": int(generator.choice([8, 16, 32])),
        }
        value = (20 - 8 * abs(np.log10(values["aid.damping"]) + 1) if solver == "cg" else 8) + 0.2 * generator.normal()
        stopped = number % 10 == 9
        rows.append({"trial": f"t{number}", "arm": "meltr_searched", "phase": "space_search", "status": "stopped" if stopped else "finished", "score": value,
                     "step": 100 if stopped else 300, "error": "stopped at the rung of step 100" if stopped else None, "setting.seed": 1000,
                     **{f"setting.{name}": each for name, each in (CONSTANT | values).items()}})  # fmt: skip
    table = pd.DataFrame(rows).assign(
        split="validation", seconds=1.0, meta_seconds=0.0, peak_memory_bytes=1, time=pd.Timestamp("2026-01-01", tz="UTC")
    )
    space_of = {"aid.solver": ["identity", "cg"], "aid.damping": {"low": 1e-3, "high": 1.0, "log": True}, "workload.width": [8, 16, 32]}
    arms = {arm: {} for arm in ("meltr", "uniform", "primary_only")}
    return Sweep(table, SweepConfig(arms=arms, space=space_of, search="tpe"), {"accuracy": Metric("%")})


def test_configurations_are_those_that_differ_the_best_first():
    assert set(CONSTANT) | {"aid.solver"} == set(DECIDERS)
    found = space.configurations(searched())
    best = found.iloc[0]
    assert best["aid.solver"] == "cg" and abs(np.log10(best["aid.damping"]) + 1) < 0.3 and found.score.iloc[0] == found.score.max()
    plain = found[found["aid.solver"] == "identity"]
    assert plain["aid.damping"].isna().all() and len(plain) <= 6 and plain.trials.sum() == 30  # of equal ones, the mean
    assert set(found.status) == {"finished", "stopped"} and found[found.status == "stopped"].score.isna().all()


def test_what_decides_is_important():
    shares = space.importance(searched())
    assert shares.sum() == pytest.approx(1) and set(shares.index) == {"aid.solver", "aid.damping", "workload.width"}
    assert shares["aid.damping"] > 3 * shares["workload.width"] and shares.index[0] == "aid.damping"
    few = searched(12)  # of which seven differ
    assert space.importance(few).empty and len(space.configurations(few)) < space.LEAST


def test_the_report_has_the_figure_and_both_tables():
    sweep = searched()
    (section,) = report._space(sweep)
    assert [table.caption for table in section.tables] == [
        "How much each setting mattered",
        "The best configurations",
    ] and not section.texts
    assert section.tables[1].rows[0][0] == "cg" and section.tables[0].rows[0][0] == "aid.damping"
    figure = space.parallel_coordinates(sweep)
    (axis,) = figure.axes
    assert len([line for line in axis.lines if len(line.get_xdata()) > 1 and line.get_marker() == "o"]) == len(space.configurations(sweep))
    assert [text.get_text().replace("\n", "") for text in axis.get_xticklabels()] == ["aid.solver", "aid.damping", "workload.width"]
    (few,) = report._space(searched(6))
    assert few.texts and few.tables[0] is None
    none = Sweep(sweep.rows, SweepConfig(arms=sweep.plan.arms), sweep.metrics)
    assert report._space(none) == [] and space.parallel_coordinates(none) is None


@pytest.fixture(scope="module")
def solved() -> pd.DataFrame:
    torch.manual_seed(0)
    workload = Primes(width=4)
    module, names = workload.module().double().eval(), ("prime", "digit", "norm")
    combiner = MELTR(3, 16, 8, 16).double()
    torch.nn.init.normal_(combiner.fc1.weight, std=0.5)
    batches = [workload.batch(workload.examples(split)[:16], np.random.default_rng(0)) for split in ("train", "meta")]
    batch, held_out = (solve_errors._doubled(each) for each in batches)
    return solve_errors.errors(module, combiner, lambda: torch.stack([module(batch, names)[name] for name in names]),
                               lambda: module(held_out, ("prime",))["prime"], damping=10.0, step=0.05)  # fmt: skip


def test_more_iterations_cost_more_and_come_nearer(solved):
    cg, neumann = (solved[solved.solver == name] for name in ("cg", "neumann"))
    for rows in (cg, neumann, solved[solved.solver == "nystrom"]):
        assert (
            list(rows["size"]) == list(solve_errors.SIZES)
            and (np.diff(rows.passes) >= 0).all()
            and rows.passes.iloc[-1] > rows.passes.iloc[0]
        )
    assert cg.error.iloc[-1] < 1e-2 < cg.error.iloc[0] and neumann.error.iloc[-1] < neumann.error.iloc[0]
    identity = solved[solved.solver == "identity"].iloc[0]
    assert identity.passes == solved.passes.min() and identity.error > cg.error.iloc[-1]
    assert len(solve_errors.plot({10.0: solved}).axes[0].lines) == 5
