"""A real sweep on a real Ray cluster: outputs, failures, interruption and resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from meltr_ray.results import table as results
from tests.commands import QUICK, kill_all, run, start

pytestmark = pytest.mark.timeout(1200)  # clusters of Ray one after the other, beside another test process
SMALL = [*QUICK, "experiment=tasks", "train.steps=6", "train.evaluate_every=3", "train.checkpoint_every=3", "sweep.seeds=1",
         "sweep.progress_every=1"]  # fmt: skip
HOT = 1e30
"""A learning rate at which every run diverges."""


def rows_of(folder: Path) -> list[dict]:
    return results.load(folder / "results.parquet").to_pylist()


def finished_in(folder: Path) -> dict[Path, int]:
    """Tables of finished trials -> when they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/results.parquet")
            if any(row["status"] == "finished" for row in results.read_trial(path.parent))}  # fmt: skip


def wait_for(count: int, folder: Path, process: subprocess.Popen) -> None:
    """Until `count` trials have finished, or the sweep has ended."""
    deadline = time.monotonic() + 400
    while len(finished_in(folder)) < count and process.poll() is None:
        assert time.monotonic() < deadline, (folder.parents[2] / "sweep.out").read_text()
        time.sleep(0.05)


@dataclass
class Interrupted:
    """A sweep stopped by Ctrl-C, gone on with, killed, and gone on with to its end."""

    folder: Path
    stopped: list[dict]
    """Rows after Ctrl-C."""
    output: str
    """What was printed at Ctrl-C."""
    killed: dict[Path, int]
    """Tables that were finished when the sweep was killed."""
    last: str
    """What the last command printed."""


@pytest.fixture(scope="module")
def interrupted(digits_folder, tmp_path_factory) -> Interrupted:
    cwd = tmp_path_factory.mktemp("interrupted")
    folder = cwd / "outputs/sweeps/small"
    process = start("sweep", *SMALL, f"data.folder={digits_folder}", "name=small", f"sweep.learning_rates=[1e-3,{HOT:g}]", cwd=cwd)
    try:
        wait_for(1, folder, process)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(120) == 130, (cwd / "sweep.out").read_text()
    finally:
        kill_all(process)
    stopped, output = rows_of(folder), (cwd / "sweep.out").read_text()
    process = start("sweep", f"resume={folder}", cwd=cwd)
    try:
        wait_for(4, folder, process)
    finally:
        kill_all(process)
    killed = finished_in(folder)
    code, last = run("sweep", f"resume={folder}", cwd=cwd)
    assert code == 0, last
    return Interrupted(folder, stopped, output, killed, last)


def test_ctrl_c_saves_what_was_finished(interrupted):
    assert "Traceback" not in interrupted.output and f"resume={interrupted.folder}" in interrupted.output
    ends = {trial: results.status_of(row["status"] for row in interrupted.stopped if row["trial"] == trial)
            for trial in {row["trial"] for row in interrupted.stopped}}  # fmt: skip
    assert "finished" in ends.values() and "running" not in ends.values()  # what had a row and hadn't ended is stopped


def test_a_killed_sweep_resumes_without_repeating_a_finished_trial(interrupted):
    folder, output = interrupted.folder, interrupted.last
    assert interrupted.killed and all(path.stat().st_mtime_ns == before for path, before in interrupted.killed.items())
    rows = rows_of(folder)
    assert {row["trial"] for row in rows} == {path.name for path in (folder / "trials").iterdir()}
    for trial in {row["trial"] for row in rows if row["status"] != "diverged"}:
        own = [row for row in rows if row["trial"] == trial]
        assert sum(row["status"] == "finished" for row in own) == 1, own
        assert sum(row["split"] == "test" for row in own) == (own[0]["phase"] == "comparison")  # scored once, for the compared alone
        assert sorted(row["step"] for row in own if row["split"] == "validation") == [3, 6]
    for name in ("report.html", "config.yaml", "sweep.json", "best/best.safetensors", "best/config.yaml"):
        assert (folder / name).stat().st_size > 0
    assert list((folder / "plots").glob("*.png"))
    assert "MELTR against uniform weights" in output and "report: " in output and "trials done" in output
    assert "(pid=" not in output and "DeepSpeed" not in output and "INFO" not in output  # chatter goes to log.txt


def test_the_best_weights_of_a_sweep_are_scored(interrupted):
    code, output = run("evaluate", f"checkpoint={interrupted.folder}/best", "split=validation", cwd=interrupted.folder)
    best = max(row["score"] for row in rows_of(interrupted.folder) if row["split"] == "validation")
    assert code == 0 and json.loads(output)["metrics"]["score"] == pytest.approx(best)


def test_a_diverging_trial_is_recorded_and_the_sweep_goes_on(interrupted):
    rows = rows_of(interrupted.folder)
    hot = [row for row in rows if row["setting.optimizer.learning_rate"] == HOT]
    assert {row["arm"] for row in hot} == {"meltr", "uniform", "primary_only"}
    assert {row["status"] for row in hot} == {"diverged"} and all("is nan at step" in row["error"] or "is inf" in row["error"] for row in hot)
    assert {row["status"] for row in rows if row["phase"] == "comparison" and row["split"] == "test"} == {"finished"}


def test_meltr_trains_video_on_two_ray_train_workers(digits_folder, tmp_path):
    """At ZeRO 3. A sweep of such trials is in test_tenants.py."""
    code, output = run("train", *QUICK, "train.steps=6", "train.evaluate_every=6", f"data.folder={digits_folder}", "name=nested",
                       "train.num_workers=2", "engine.zero_stage=3", cwd=tmp_path, timeout=500)  # fmt: skip
    assert code == 0, output
    (row,) = results.read_trial(tmp_path / "outputs/runs/nested")
    assert (row["step"], row["status"], row["meta_steps"]) == (6, "finished", 2)
    assert row["elapsed"] > row["seconds"] > row["meta_seconds"] > 0
