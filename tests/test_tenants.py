"""Whole runs of workloads outside video: Primes swept to its report without the video package, NoisyLabels, resume, evaluate."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from meltr_ray.results import table as results
from meltr_ray.training import checkpoint
from tests.commands import ROOT, kill_all, run, start

PRIMES = "workload=workloads/examples/primes.py:Primes"
NOISY = "workload=workloads/examples/noisy_labels.py:NoisyLabels"
TINY = ["workload.width=4", "train.batch_size=8", "train.steps=6", "train.evaluate_every=3", "train.checkpoint_every=1",
        "combiner.embedding_size=16", "combiner.loss_encoder_size=8", "combiner.feed_forward_size=16"]  # fmt: skip
TWO_WORKERS = ["train.num_workers=2", "engine.zero_stage=3"]
SCREENED = [
    "experiment=screening",
    "sweep.learning_rates=[]",
    "losses.set=[prime,digit]",
    "sweep.seeds=1",
    "sweep.confirm=[]",
    "sweep.max_concurrent=1",
]
ONE_EACH = [
    "experiment=compare",
    "sweep.seeds=1",
    "sweep.other_seeds=1",
    "sweep.learning_rates=[]",
    "sweep.leave_one_out=false",
    "sweep.max_concurrent=1",
]


def without_video(root: Path) -> Path:
    """A copy of the project in `root` in which nothing of `meltr_ray/video` can be imported."""
    for part in ("meltr_ray", "workloads", "tune_spaces", "analysis"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("video", "__pycache__", "*.ipynb"))
    (root / "meltr_ray/video").mkdir()  # were it absent, an editable install would find that of the original
    (root / "meltr_ray/video/__init__.py").write_text("raise ModuleNotFoundError('video was taken out')\n")
    return root


def begin(root: Path, command: str, *settings: str) -> subprocess.Popen:
    """Start a command of the project in `root`, there; its output in `<root>/<command>.out`."""
    with open(root / f"{command}.out", "wb") as out:
        return subprocess.Popen([sys.executable, f"workloads/{command}.py", *settings], cwd=root, stdout=out, stderr=out,
                                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}, start_new_session=True)  # fmt: skip


def ended(root: Path, command: str, *settings: str) -> tuple[int, str]:
    """(exit code, output)."""
    process = begin(root, command, *settings)
    try:
        code = process.wait(500)
    finally:
        kill_all(process)
    return code, (root / f"{command}.out").read_text()


@pytest.mark.whole
@pytest.mark.xdist_group("ray")
def test_primes_swept_on_two_workers_without_the_video_package(tmp_path):
    """A screening of one loss; a report, the best weights scored, the text of the class kept. Sweeps that are killed are in test_kills.py."""
    root = without_video(tmp_path / "tree")
    code, output = ended(
        root, "sweep", PRIMES, *TINY[:-3], *TWO_WORKERS, *SCREENED, "name=primes"
    )  # fixed weights have no combiner's sizes
    sweep = root / "outputs/sweeps/primes"
    assert code == 0 and "report: " in output, output
    rows = results.gather(sweep).to_pylist()
    assert {row["arm"] for row in rows if row["status"] == "finished"} == {"uniform", "primary_only"}
    assert {row["setting.engine.zero_stage"] for row in rows} == {3} and all(0 <= row["metric.accuracy"] <= 100 for row in rows)
    assert {row["split"] for row in rows} == {"validation"} and all(row["elapsed"] > row["seconds"] for row in rows)
    assert "digit" in output and "undecided: too few trials" in output and "not confirmed" not in output
    report = (sweep / "report.html").read_text()
    assert "accuracy" in report and "digit" in report and "always no" in report
    assert (sweep / "workload/primes.py").read_text() == (ROOT / "workloads/examples/primes.py").read_text()

    code, output = ended(root, "evaluate", f"checkpoint={sweep}/best")
    best = max(row["score"] for row in rows if row["split"] == "validation")
    assert code == 0 and json.loads(output)["metrics"]["accuracy"] == pytest.approx(best), output


@pytest.mark.slow  # test_resume.py does it with video, test_engine_states.py in every state
def test_primes_trained_further_after_a_kill_ends_bit_identical(tmp_path):
    (tmp_path / "workloads").symlink_to(ROOT / "workloads")
    weights = []
    for name, kills in (("whole", 0), ("killed", 1)):
        folder = tmp_path / "outputs/runs" / name
        settings = [PRIMES, *(each for each in TINY if not each.startswith("train.steps")), "train.steps=30", f"name={name}"]
        if kills:
            process = start("train", *settings, cwd=tmp_path)
            while checkpoint.latest(folder / "checkpoints") is None and process.poll() is None:
                time.sleep(0.001)
            kill_all(process)
            settings = [f"resume={folder}"]
        code, output = run("train", *settings, cwd=tmp_path)
        assert code == 0, output
        weights.append(load_file(checkpoint.latest(folder / "checkpoints") / "shared.safetensors"))
    assert weights[0].keys() == weights[1].keys() and all(weights[0][name].equal(weights[1][name]) for name in weights[0])


@pytest.mark.whole
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize(
    "settings", [[], pytest.param(TWO_WORKERS, marks=pytest.mark.slow)], ids=["alone", "two workers at ZeRO 3"]
)  # test_example_weights.py has two ranks
def test_weights_of_examples_are_learned(settings, tmp_path):
    (tmp_path / "workloads").symlink_to(ROOT / "workloads")
    code, output = run("train", NOISY, "experiment=noisy_labels", *TINY[:-3], *settings, "name=noisy", cwd=tmp_path)
    assert code == 0 and "best validation accuracy" in output, output
    folder = tmp_path / "outputs/runs/noisy"
    state = load_file(checkpoint.latest(folder / "checkpoints") / "shared.safetensors")
    phi, workers = state["meta/combiner/phi"], 2 if settings else 1
    assert phi.shape == (1000,) and phi.count_nonzero() == 3 * 8 * workers  # 3 meta steps, on all that a step trains on
    row = results.read_trial(folder)[-1]
    assert row["meta_steps"] == 3 and row["loss.label"] > 0 and not [name for name in row if name.startswith("slope.")]


def test_the_library_is_imported_without_the_video_package(tmp_path):
    root = without_video(tmp_path)
    code, output = ended(root, "sweep", "--help", PRIMES)
    assert code == 0 and "workload.width" in output and "Hidden units." in output, output
    code, output = ended(root, "sweep")
    assert code == 2 and output == "error: workload=video: doesn't import: ModuleNotFoundError: video was taken out; mend it\n"


SCRIPT = """
from pathlib import Path

import meltr_ray
from workloads.examples.primes import Primes

TINY = {tiny}


class Mine(Primes):
    pass


if __name__ == "__main__":
    folder = meltr_ray.sweep(Mine, TINY)
    assert folder == Path("outputs/sweeps/mine").absolute(), folder
"""


@pytest.mark.whole
@pytest.mark.xdist_group("ray")
def test_a_script_sweeps_a_class_of_its_own(tmp_path):
    """Workers import the script by its file, without starting another sweep."""
    tiny = dict(setting.split("=") for setting in [*TINY, *ONE_EACH]) | {"losses.set": ["prime", "permuted"], "sweep.learning_rates": []}
    (tmp_path / "script.py").write_text(SCRIPT.format(tiny=tiny))
    found = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                           capture_output=True, text=True, timeout=500)  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    sweep = tmp_path / "outputs/sweeps/mine"
    assert (sweep / "report.html").exists() and (sweep / "workload/script.py").exists()
    rows = results.gather(sweep).to_pylist()
    assert {row["arm"] for row in rows if row["status"] == "finished"} == {"meltr", "uniform", "primary_only"}
    ours = [row for row in rows if row["arm"] == "meltr" and row["split"] == "validation"]
    assert all(row[f"{kind}.permuted"] is not None for row in ours for kind in ("loss", "slope"))
    assert {row["split"] for row in rows} == {"validation", "test"} and "permuted" in (sweep / "report.html").read_text()
