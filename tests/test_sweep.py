"""A real sweep on a real Ray cluster: outputs, failures, interruption and resuming."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from meltr_ray.cluster import sweep as phases
from meltr_ray.cluster.progress import Progress
from meltr_ray.results import table as results
from meltr_ray.workload import Metric
from tests.commands import QUICK, ROOT, kill_all, listening, run, start
from workloads import cli

pytestmark = pytest.mark.timeout(1200)  # clusters of Ray one after the other, beside another test process
SMALL = [*QUICK, "experiment=tasks", "train.steps=6", "train.evaluate_every=3", "train.checkpoint_every=3", "sweep.seeds=1",
         "sweep.baselines=[uniform]", "sweep.progress_every=1", "optimizer.weight_decay=100"]  # fmt: skip
HOT = 10.0
"""A learning rate at which every run of this weight decay diverges: a step multiplies weights by -999."""


def rows_of(folder: Path) -> list[dict]:
    return results.load(folder / "results.parquet").to_pylist()


def finished_in(folder: Path) -> dict[Path, int]:
    """Tables of finished trials -> when they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/results.parquet")
            if any(row["status"] == "finished" for row in results.read_trial(path.parent))}  # fmt: skip


def wait_for_a_trial(folder: Path, process: subprocess.Popen) -> None:
    """Until one has finished, or the sweep has ended."""
    deadline = time.monotonic() + 400
    while not finished_in(folder) and process.poll() is None:
        assert time.monotonic() < deadline, (folder.parents[2] / "sweep.out").read_text()
        time.sleep(0.05)


@dataclass
class Interrupted:
    """A sweep stopped by SIGTERM, and gone on with to its end, a trial at a time. Those that are killed are in test_kills.py."""

    folder: Path
    stopped: list[dict]
    """Rows after SIGTERM."""
    output: str
    """What was printed then."""
    report: bool
    """Whether there was one by then."""
    at_once: int
    """Trials that ran at once until then."""
    finished: dict[Path, int]
    """Tables of the trials that had finished."""
    last: str
    """What the command that went on printed."""


@pytest.fixture(scope="module")
def interrupted(digits_folder, tmp_path_factory) -> Interrupted:
    cwd = tmp_path_factory.mktemp("interrupted")
    folder = cwd / "outputs/sweeps/small"
    process = start("sweep", *SMALL, f"data.folder={digits_folder}", "name=small", f"sweep.learning_rates=[1e-3,{HOT:g}]", cwd=cwd)
    try:
        wait_for_a_trial(folder, process)
        os.kill(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)  # as `timeout` sends it, to the command and to its group
        assert process.wait(120) == 143, (cwd / "sweep.out").read_text()
    finally:
        kill_all(process)
    stopped, output, report = rows_of(folder), (cwd / "sweep.out").read_text(), (folder / "report.html").exists()
    at_once, finished = json.loads((folder / "sweep.json").read_text())["max_concurrent"], finished_in(folder)
    code, last = run("sweep", f"resume={folder}", "sweep.max_concurrent=1", cwd=cwd)
    assert code == 0, last
    return Interrupted(folder, stopped, output, report, at_once, finished, last)


def test_sigterm_saves_what_was_finished(interrupted):
    assert interrupted.report and interrupted.at_once == os.cpu_count()
    assert "Traceback" not in interrupted.output and f"resume={interrupted.folder}" in interrupted.output
    ends = {trial: results.status_of(row["status"] for row in interrupted.stopped if row["trial"] == trial)
            for trial in {row["trial"] for row in interrupted.stopped}}  # fmt: skip
    assert "finished" in ends.values() and "running" not in ends.values()  # what had a row and hadn't ended is stopped


def test_a_stopped_sweep_resumes_without_repeating_a_finished_trial(interrupted):
    folder, output = interrupted.folder, interrupted.last
    assert interrupted.finished and all(path.stat().st_mtime_ns == before for path, before in interrupted.finished.items())
    rows = rows_of(folder)
    assert {row["trial"] for row in rows} == {path.name for path in (folder / "trials").iterdir()}
    for trial in {row["trial"] for row in rows} - {row["trial"] for row in rows if row["status"] == "diverged"}:
        own = [row for row in rows if row["trial"] == trial]
        assert sum(row["status"] == "finished" for row in own) == 1, own
        assert sum(row["split"] == "test" for row in own) == (own[0]["phase"] == "comparison")  # scored once, for the compared alone
        assert sorted(row["step"] for row in own if row["split"] == "validation") == [3, 6]
    for name in ("report.html", "config.yaml", "sweep.json", "best/best.safetensors", "best/config.yaml"):
        assert (folder / name).stat().st_size > 0
    assert list((folder / "plots").glob("*.png"))
    counts = [(int(done), int(planned)) for done, planned in re.findall(r"(\d+)/(\d+) trials done", output)]
    assert counts and all(done <= planned for done, planned in counts) and "about -" not in output  # of searches that went on, too
    assert "MELTR against uniform weights" in output and "report: " in output and "trials done" in output
    assert "(pid=" not in output and "DeepSpeed" not in output and "INFO" not in output  # chatter goes to log.txt


def test_the_best_weights_of_a_sweep_are_scored(interrupted):
    code, output = run("evaluate", f"checkpoint={interrupted.folder}/best", "split=validation", cwd=interrupted.folder)
    best = max(row["score"] for row in rows_of(interrupted.folder) if row["split"] == "validation")
    assert code == 0 and json.loads(output)["metrics"]["score"] == pytest.approx(best)


def test_a_diverging_trial_is_recorded_and_the_sweep_goes_on(interrupted):
    rows = rows_of(interrupted.folder)
    hot = [row for row in rows if row["setting.optimizer.learning_rate"] == HOT]
    assert {row["arm"] for row in hot} == {"meltr", "uniform"}
    ends = [row for row in hot if row["split"] == "none"]
    assert {row["trial"] for row in ends} == {row["trial"] for row in hot} and {row["status"] for row in ends} == {"diverged"}
    assert all("is nan at step" in row["error"] or "is inf" in row["error"] for row in ends)
    assert {row["status"] for row in rows if row["phase"] == "comparison" and row["split"] == "test"} == {"finished"}


@pytest.mark.whole
def test_meltr_trains_video_on_two_ray_train_workers_that_only_this_machine_can_reach(digits_folder, tmp_path, monkeypatch):
    """At ZeRO 3, in an environment that switches Ray's token off. A sweep of such trials is in test_tenants.py."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("HOME", str(tmp_path))
    process, seen, answers = start("train", *QUICK, "train.steps=6", "train.evaluate_every=6", f"data.folder={digits_folder}", "name=nested",
                                   "train.num_workers=2", "engine.zero_stage=3", cwd=tmp_path), set(), {}  # fmt: skip
    try:
        deadline = time.monotonic() + 500
        while process.poll() is None:
            assert time.monotonic() < deadline, (tmp_path / "train.out").read_text()
            seen |= listening(process)
            if not answers and (port := dashboard_port(seen)):
                answers = {token: answer_of_dashboard(port, token) for token in ("", "guessed", (tmp_path / ".ray/auth_token").read_text())}
            time.sleep(0.2)
    finally:
        kill_all(process)
    assert process.returncode == 0, (tmp_path / "train.out").read_text()
    (row,) = results.read_trial(tmp_path / "outputs/runs/nested")
    assert (row["step"], row["status"], row["meta_steps"]) == (6, "finished", 2)
    assert row["elapsed"] > row["seconds"] > row["meta_seconds"] > 0
    assert {address.removeprefix("::ffff:") for _, address, _ in seen} == {"127.0.0.1"}, seen
    assert {"gcs_server", "raylet"} <= {name for name, _, _ in seen} and any("RayTrainWorker" in name for name, _, _ in seen)
    assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o077 == 0
    assert list(answers.values()) == [401, 403, 200], answers


def dashboard_port(seen: set[tuple[str, str, int]]) -> int | None:
    return next((port for _, _, port in seen if 8265 <= port < 8300), None)


def answer_of_dashboard(port: int, token: str) -> int:
    """HTTP's status to one who asks for the jobs of the cluster."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/api/jobs/", headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        return urllib.request.urlopen(asked, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


EQUAL = [f"workload={ROOT}/workloads/examples/primes.py:Primes", "experiment=compare", "workload.width=16", "losses.set=[prime,digit,norm]",
         "train.steps=20", "train.batch_size=16", "train.evaluate_every=5", *(setting for setting in QUICK if setting.startswith("combiner.")),
         "sweep.seeds=2", "sweep.other_seeds=1", "sweep.leave_one_out=false", "sweep.leaders=1",
         "sweep.confirmation_seeds=2", "sweep.learning_rates=[1e-3,1e-1]"]  # fmt: skip


@pytest.mark.slow  # its counts, schedules and choices are held by test_equal_budgets.py without training
def test_arms_search_their_own_settings_are_compared_and_the_leader_runs_again(tmp_path):
    """With the candidates that were counted before."""
    folder = tmp_path / "outputs/sweeps/equal"
    request = cli.configure([*EQUAL, "sweep.baselines=[uniform,tuned]", "sweep.budget_each=20m", f"output={tmp_path}/outputs"])
    phases.start(folder, request.settings, request.config, "", {"meltr": 2, "uniform": 5, "tuned": 5})
    code, output = run("sweep", f"resume={folder}", cwd=tmp_path)
    assert code == 0 and "uniform: 5 x 5, 3 x 10, 2 x 20 steps: optimizer.learning_rate, optimizer.weight_decay" in output, output
    rows, about = rows_of(folder), json.loads((folder / "sweep.json").read_text())
    searched = {row["trial"]: row for row in rows if row["phase"] == "settings_search"}
    assert (
        len([name for name in searched if name.startswith("uniform-")]) == 5 + 3 + 2
        and len([name for name in searched if name.startswith("meltr-")]) == 2
    )
    assert {row["setting.seed"] for row in searched.values()} == {1000}
    for arm, chosen in about["settings_chosen"].items():
        ran = [row for row in rows if row["phase"] == "comparison" and row["arm"] == arm]
        assert {row["setting.seed"] for row in ran} == {0, 1} and chosen["candidates"] == about["candidates"][arm]
        for name, value in chosen["settings"].items():
            assert {row[f"setting.{name}"] for row in ran} == {json.dumps(value) if isinstance(value, list) else value}
    tested = {(row["phase"], row["setting.seed"]) for row in rows if row["split"] == "test"}
    assert tested == {("confirmation", 2000), ("confirmation", 2001)}
    report = (folder / "report.html").read_text()
    assert all(text in report for text in ("What each arm chose", "settings search", "Leaders on fresh seeds", "validation, equal seconds"))


def test_progress_of_a_sweep_that_goes_on_knows_what_it_had():
    """Of validation alone, in the metric's direction and digits; the rest of its line, and that nobody may read it."""
    reader, writer = os.pipe()
    with open(reader) as lines, open(writer, "w") as terminal:
        progress = Progress(terminal, 12, 0, Metric("px", higher=False, digits=3))
        rows = {"early": ("validation", "finished", -0.4), "tested": ("test", "finished", -0.1), "off": ("validation", "diverged", None)}
        progress.take_up(
            [[{"trial": trial, "split": split, "status": status, "score": score}] for trial, (split, status, score) in rows.items()]
        )
        progress.skip(3)
        progress.see("validation", -0.4316, "late")
        progress.show()
        assert lines.readline() == "3/12 trials done  0 running  1 failed  best 0.400 px (early)  time left: not known yet\n"
        lines.close()
        progress.show()


@pytest.mark.whole
def test_a_budget_below_one_run_is_refused_before_the_start(tmp_path):
    code, output = run("sweep", *EQUAL, "sweep.baselines=[uniform]", "sweep.budget_each=0.01s", "name=equal", cwd=tmp_path)
    assert (
        code == 2
        and "error: sweep.budget_each=0.01s: buys not one full run of " in output
        and not (tmp_path / "outputs/sweeps/equal").exists()
    )
