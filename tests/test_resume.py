"""Signals at any moment, SIGKILL too, then all state torch.equal to a run that was never interrupted."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from meltr_ray.results import table as results
from meltr_ray.training import checkpoint
from tests.commands import QUICK, kill_all, run, start, workers_of

STEPS = 40


def settings(folder: Path, workers: int, stage: int, checkpoint_every: int = 1) -> list[str]:
    return [*QUICK, f"data.folder={folder}", f"train.num_workers={workers}", f"engine.zero_stage={stage}", f"train.steps={STEPS}",
            "train.evaluate_every=10", f"train.checkpoint_every={checkpoint_every}", "train.max_failures=100", "aid.solver=cg", "aid.iterations=2",
            "aid.inner_steps=2", "backbone.dropout=0.2", "task.loss_set=[joint,masked_joint,caption]"]  # fmt: skip


def assert_same_end(run_folder: Path, reference: Path, workers: int) -> None:
    ours, theirs = (checkpoint.latest(f / "checkpoints") for f in (run_folder, reference))
    assert ours.name == theirs.name == f"step-{STEPS:08d}"
    for name in ["shared.safetensors", *(f"rank-{rank}.safetensors" for rank in range(max(1, workers)))]:
        a, b = load_file(ours / name), load_file(theirs / name)
        assert a.keys() == b.keys() and a
        assert all(a[key].equal(b[key]) for key in a), [key for key in a if not a[key].equal(b[key])]
    kept = ("step", "split", "status", "score", "train_loss", "loss.caption", "slope.caption", "best_step")
    a, b = ([{key: row[key] for key in kept} for row in results.read_trial(f)] for f in (run_folder, reference))
    assert sorted(a, key=lambda row: row["step"]) == sorted(b, key=lambda row: row["step"])


def last_step(folder: Path) -> int:
    found = checkpoint.latest(folder / "checkpoints")
    return int(found.name.split("-")[1]) if found else 0


def kill_until_done(data: Path, cwd: Path, workers: int, stage: int, kills: int, chance: random.Random) -> int:
    """Kill worker or driver, in the middle of a step or while a checkpoint is written, `kills` times; kills done."""
    folder, done = cwd / "outputs/runs/killed", 0
    arguments = [*settings(data, workers, stage), "name=killed"]
    process = start("train", *arguments, cwd=cwd)
    while done < kills:
        before, deadline = last_step(folder), time.monotonic() + 120
        while last_step(folder) <= before and process.poll() is None:  # some progress between two kills
            assert time.monotonic() < deadline, (cwd / "train.out").read_text()
            time.sleep(0.02)
        if process.poll() is not None or last_step(folder) >= STEPS:
            break
        if chance.random() < 0.3:  # while a checkpoint is written
            while not list((folder / "checkpoints").glob(".*.tmp")) and process.poll() is None:
                time.sleep(0.001)
        else:  # anywhere: most of a step with CG is the meta step
            time.sleep(chance.uniform(0, 0.3))
        victims = workers_of(process) if chance.random() < 0.5 else []
        if victims:
            try:
                os.kill(chance.choice(victims), signal.SIGKILL)
            except ProcessLookupError:
                continue
            done += 1
            time.sleep(0.5)
            continue
        kill_all(process)
        done += 1
        process = start("train", f"resume={folder}", cwd=cwd)
    assert process.wait(400) == 0, (cwd / "train.out").read_text()[-3000:]
    return done


@pytest.fixture(scope="module")
def whole(digits_folder, tmp_path_factory) -> Path:
    """A run in its own process that nothing interrupts."""
    cwd = tmp_path_factory.mktemp("whole")
    code, output = run("train", *settings(digits_folder, 0, 0), "name=whole", cwd=cwd)
    assert code == 0, output
    return cwd / "outputs/runs/whole"


@pytest.mark.whole
def test_a_run_stopped_by_signals_goes_on_from_the_step_where_it_stopped(whole, digits_folder, tmp_path):
    """Though it saves no checkpoint of its own before the last."""
    folder, arguments, stopped = (
        tmp_path / "outputs/runs/stopped",
        [*settings(digits_folder, 0, 0, checkpoint_every=0), "name=stopped"],
        [0],
    )
    for number, rows in ((signal.SIGTERM, 1), (signal.SIGINT, 2)):
        process = start("train", *arguments, cwd=tmp_path)
        while len(results.read_trial(folder)) < rows and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(number)
        code, said = process.wait(100), (tmp_path / "train.out").read_text()
        assert code == 128 + number and f"go on with: python workloads/train.py resume={folder}" in said and "Traceback" not in said, said
        assert results.read_trial(folder)[-1]["status"] == "stopped"
        stopped.append(last_step(folder))
        arguments = [f"resume={folder}"]
    assert stopped[0] < stopped[1] < stopped[2] < STEPS and stopped[1] >= 10 and stopped[2] >= 20, stopped
    code, output = run("train", *arguments, cwd=tmp_path)
    assert code == 0, output
    assert_same_end(folder, whole, 0)


@pytest.mark.whole
def test_a_run_killed_in_its_own_process_ends_bit_identical(whole, digits_folder, tmp_path):
    done = kill_until_done(digits_folder, tmp_path, 0, 0, kills=2, chance=random.Random(0))
    assert done >= 1
    assert_same_end(tmp_path / "outputs/runs/killed", whole, 0)

    (tmp_path / "train.out").unlink()
    code, output = run("train", f"resume={whole}", "aid.solver=neumann", cwd=tmp_path)
    assert code == 2 and output.startswith("error: aid.solver=neumann: the checkpoint in") and "set aid.solver=cg" in output


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", [0, 3])
def test_two_workers_killed_ten_times_end_bit_identical(stage, digits_folder, tmp_path):
    """Twenty kills over the two stages, of a Ray Train worker or of the driver with all of its cluster."""
    code, output = run("train", *settings(digits_folder, 2, stage), "name=whole", cwd=tmp_path)
    assert code == 0, output
    assert kill_until_done(digits_folder, tmp_path, 2, stage, kills=10, chance=random.Random(stage)) == 10
    assert_same_end(tmp_path / "outputs/runs/killed", tmp_path / "outputs/runs/whole", 2)
