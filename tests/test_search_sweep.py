"""A sweep that searches by TPE and stops trials at rungs, killed in the middle and gone on with; and one that grows when it has ended."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from meltr_ray.config import file as config_file
from meltr_ray.results import table as results
from tests.commands import QUICK, ROOT, kill_all, run, start
from tests.notebooks import printed_by
from tune_spaces import asha

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SMALL = [f"workload={ROOT}/workloads/examples/primes.py:Primes", "experiment=compare", "workload.width=8", "losses.set=[prime,digit]",
         *(setting for setting in QUICK if setting.startswith("combiner.")), "train.steps=60", "train.batch_size=16", "train.evaluate_every=5",
         "train.checkpoint_every=30", "sweep.baselines=[uniform]", "sweep.seeds=2", "sweep.other_seeds=1", "sweep.leave_one_out=false",
         "sweep.learning_rates=[]", "sweep.max_concurrent=2", "sweep.progress_every=1"]  # fmt: skip
SPACE = ("sweep.space={aid.solver: [identity,cg], aid.damping: {low: 0.01, high: 1, log: true}, workload.width: [8,12,16], "
         "optimizer.learning_rate: {low: 1e-4, high: 1e-1, log: true}}")  # fmt: skip


def rows_of(folder: Path) -> list[dict]:
    return results.load(folder / "results.parquet").to_pylist()


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> tuple[Path, dict[Path, int], str]:
    """(folder, tables that were final when the sweep was killed, what the last command printed)."""
    cwd = tmp_path_factory.mktemp("searched")
    folder = cwd / "outputs/sweeps/small"
    process = start("sweep", *SMALL, SPACE, "sweep.search=tpe", "sweep.samples=10", "sweep.asha=2", "name=small", cwd=cwd)
    try:
        deadline = time.monotonic() + 400
        while len(final_in(folder)) < 4:
            assert process.poll() is None and time.monotonic() < deadline, (cwd / "sweep.out").read_text()
            time.sleep(0.05)
    finally:
        kill_all(process)
    killed = final_in(folder)
    code, output = run("sweep", f"resume={folder}", cwd=cwd)
    assert code == 0, output
    return folder, killed, output


def final_in(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/results.parquet") if results.is_final(path.parent)}


def test_a_search_goes_on_after_a_kill_and_ends_with_an_arm(searched):
    folder, killed, output = searched
    assert killed and all(path.stat().st_mtime_ns == before for path, before in killed.items())
    trials = {path.name: results.read_trial(path) for path in (folder / "trials").iterdir()}
    search = {name: rows for name, rows in trials.items() if "_search_" in name}
    assert set(search) == {f"meltr_search_{number}-seed1000" for number in range(10)}
    assert {row["phase"] for rows in search.values() for row in rows} == {"space_search"} and not any(
        row["split"] == "test" for rows in search.values() for row in rows
    )
    ends = {name: results.status_of(row["status"] for row in rows) for name, rows in search.items()}
    assert set(ends.values()) == {"finished", "stopped"}
    best = max((name for name, end in ends.items() if end == "finished"), key=lambda name: max(row["score"] for row in search[name]))
    names = ("aid.solver", "workload.width", "optimizer.learning_rate")
    taken, found = trials[f"meltr_searched_{best.split('_')[2].partition('-')[0]}-seed0"][-1], search[best][-1]
    assert [taken[f"setting.{name}"] for name in names] == [found[f"setting.{name}"] for name in names] and taken["phase"] == "ablation"
    assert len({tuple(rows[-1][f"setting.{name}"] for name in names) for rows in search.values()}) == 10
    assert "search (tpe): 10 configurations of" in output and "the best 1 in 2 continues after step 10, 15, 30" in output


def test_trials_stop_at_rungs_where_others_are_better_by_the_table(searched):
    """And say so; those that go on were among the better half of those that had come so far, or of fewer."""
    folder, _, _ = searched
    steps = asha.rungs(60, 5, 2)
    search = {path.name: results.read_trial(path) for path in (folder / "trials").glob("meltr_search_*")}
    for rows in search.values():
        last = rows[-1]
        if last["status"] == "stopped":
            assert last["step"] in steps and last["error"].startswith(f"stopped at the rung of step {last['step']}: place ")
            rung = [row["score"] for other in search.values() for row in other if row["step"] == last["step"]]
            assert sum(score >= last["score"] for score in rung) >= 2  # itself among them
        else:
            assert last["step"] == 60 and last["error"] is None
    assert sum(rows[-1]["status"] == "stopped" for rows in search.values()) >= 3


def test_the_report_says_what_mattered(searched):
    folder, _, _ = searched
    report = (folder / "report.html").read_text()
    assert "Which settings mattered" in report and (folder / "plots/parallel_coordinates.png").exists()
    assert json.loads((folder / "sweep.json").read_text())["samples"] == 10


def test_the_notebook_runs_on_a_search(searched, monkeypatch):
    monkeypatch.setenv("MELTR_SWEEP", os.fspath(searched[0]))
    printed = printed_by("aid_settings.ipynb")
    assert "10 configurations: " in printed and "meltr_searched" in printed and "damping 10, meltr-seed" in printed


def test_a_search_that_has_ended_grows(searched):
    folder, _, _ = searched
    before = final_in(folder)
    code, output = run("sweep", f"resume={folder}", "sweep.samples=12", "sweep.seeds=3", cwd=folder.parents[2])
    assert code == 0, output
    names = {path.name for path in (folder / "trials").iterdir()}
    assert {"meltr_search_10-seed1000", "meltr_search_11-seed1000", "meltr-seed2", "uniform-seed2"} <= names
    after = final_in(folder)
    kept = {path: when for path, when in before.items() if "searched" not in path.parent.name}
    assert all(after[path] == when for path, when in kept.items())
    assert config_file.load(folder / "settings.yaml").sweep.samples == 12
    assert "6 then" not in output and "Seeds that were added after a look" in (folder / "report.html").read_text()
