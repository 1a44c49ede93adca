"""A real sweep on a real Ray cluster: outputs, failures, interruption and resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from meltr_ray.results import table as results
from tests.commands import QUICK, kill_all, run, start

pytestmark = pytest.mark.timeout(1200)  # two clusters of Ray one after the other, beside another test process
SMALL = [*QUICK, "train.steps=12", "train.evaluate_every=6", "train.checkpoint_every=3", "sweep.seeds=2", "sweep.other_seeds=1",
         "sweep.learning_rates=[1e-3]", "sweep.leave_one_out=false", "sweep.progress_every=1"]  # fmt: skip


def rows_of(folder: Path) -> list[dict]:
    return pq.read_table(folder / "results.parquet").to_pylist()


def wait_for_results(folder: Path, count: int, process: subprocess.Popen) -> None:
    """Until `count` trials have written a row, or the sweep has ended."""
    deadline = time.monotonic() + 400
    while len(list(folder.glob("trials/*/results.parquet"))) < count and process.poll() is None:
        assert time.monotonic() < deadline, (folder.parents[2] / "sweep.out").read_text()
        time.sleep(0.05)


def test_a_killed_sweep_resumes_without_repeating_a_finished_trial(digits_folder, tmp_path):
    folder = tmp_path / "outputs/sweeps/small"
    process = start("sweep", *SMALL, f"data.folder={digits_folder}", "name=small", cwd=tmp_path)
    try:
        wait_for_results(folder, 4, process)
    finally:
        kill_all(process)
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/results.parquet")
                if any(row["status"] == "finished" for row in pq.read_table(path).to_pylist())}  # fmt: skip
    assert finished

    code, output = run("sweep", f"resume={folder}", cwd=tmp_path)
    assert code == 0, output
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())
    rows = rows_of(folder)
    assert {row["trial"] for row in rows} == {path.name for path in (folder / "trials").iterdir()}
    for trial in {row["trial"] for row in rows}:
        own = [row for row in rows if row["trial"] == trial]
        assert sum(row["status"] == "finished" for row in own) == 1, own
        led = own[0]["arm"] in ("meltr", "uniform", "primary_only") and own[0]["phase"] == "comparison"
        assert sum(row["split"] == "test" for row in own) == led  # scored once, for the compared alone
        assert sorted(row["step"] for row in own if row["split"] == "validation") == [6, 12]
    for name in ("report.html", "config.yaml", "sweep.json", "best/best.safetensors", "best/config.yaml"):
        assert (folder / name).stat().st_size > 0
    assert list((folder / "plots").glob("*.png"))
    assert "MELTR against uniform weights" in output and "report: " in output and "trials done" in output
    assert "(pid=" not in output and "DeepSpeed" not in output and "INFO" not in output  # chatter goes to log.txt

    code, output = run("evaluate", f"checkpoint={folder}/best", "split=validation", cwd=tmp_path)
    best = max(row["score"] for row in rows if row["split"] == "validation")
    assert code == 0 and json.loads(output)["metrics"]["score"] == pytest.approx(best)


def test_a_diverging_trial_is_recorded_and_the_sweep_goes_on(digits_folder, tmp_path):
    code, output = run("sweep", *SMALL, f"data.folder={digits_folder}", "name=hot", "sweep.learning_rates=[1e-3,1e30]", cwd=tmp_path)
    assert code == 0, output
    rows = rows_of(tmp_path / "outputs/sweeps/hot")
    hot = [row for row in rows if row["setting.optimizer.learning_rate"] == 1e30]
    assert {row["status"] for row in hot} == {"diverged"} and all("is nan at step" in row["error"] or "is inf" in row["error"] for row in hot)
    assert {row["status"] for row in rows if row["phase"] == "comparison" and row["split"] == "test"} == {"finished"}


def test_ctrl_c_saves_what_was_finished(digits_folder, tmp_path):
    folder = tmp_path / "outputs/sweeps/stopped"
    process = start("sweep", *SMALL, f"data.folder={digits_folder}", "name=stopped", cwd=tmp_path)
    try:
        wait_for_results(folder, 3, process)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(120) == 130, (tmp_path / "sweep.out").read_text()
    finally:
        kill_all(process)
    output = (tmp_path / "sweep.out").read_text()
    assert "Traceback" not in output and f"resume={folder}" in output
    rows = rows_of(folder)
    assert rows and (folder / "report.html").exists()
    ends = {trial: results.status_of(row["status"] for row in rows if row["trial"] == trial) for trial in {row["trial"] for row in rows}}
    assert "running" not in ends.values()  # what had a row and hadn't ended is stopped


@pytest.mark.parametrize("stage", [3])
def test_trials_on_two_ray_train_workers(stage, digits_folder, tmp_path):
    """Train under Tune: three arms, MELTR among them, on two workers each with ZeRO-3, as trials of a sweep."""
    code, output = run("sweep", "experiment=tasks", *SMALL, f"data.folder={digits_folder}", "name=nested", "train.num_workers=2", f"engine.zero_stage={stage}",
                       "sweep.learning_rates=[]", "sweep.seeds=1", "sweep.max_concurrent=1", cwd=tmp_path, timeout=500)  # fmt: skip
    assert code == 0, output
    rows = rows_of(tmp_path / "outputs/sweeps/nested")
    ended = {row["arm"] for row in rows if row["status"] == "finished"}
    assert ended == {"primary_only", "uniform", "meltr"}, output
    assert {row["setting.engine.zero_stage"] for row in rows} == {stage}
