"""Processes of a sweep's trials stay for the next trial, unless one failed in them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import ray
from ray.train.v2.api.exceptions import ControllerError
from safetensors.torch import load_file

from meltr_ray.cluster import local, standing
from meltr_ray.cluster.connection import connected
from meltr_ray.cluster.failures import cause_of
from meltr_ray.config import Config
from meltr_ray.results import table as results
from meltr_ray.training import checkpoint
from meltr_ray.training.stopping import End
from tests.commands import run
from tests.engine_toy import toy_config

SEEN = """
import os
import torch
from workloads.examples.primes import Primes

class Seen(Primes):
    \"\"\"Each training step leaves a byte in a file of its process; the last rank's first step is a fault, once.\"\"\"
    steps: str = "steps"
    \"\"\"Folder of those files.\"\"\"

    def module(self):
        module = super().module()
        module.register_forward_pre_hook(self.see)
        return module

    def see(self, module, inputs):
        if module.training and torch.distributed.is_initialized():
            with open(f"{self.steps}/{os.getpid()}", "ab") as file:
                file.write(b".")
            if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1 and os.path.exists(f"{self.steps}/fault"):
                os.unlink(f"{self.steps}/fault")
                raise RuntimeError("a fault")
"""
STEPS = 6
SWEEP = ["workload.width=4", "train.batch_size=8", f"train.steps={STEPS}", f"train.evaluate_every={STEPS}", "experiment=compare",
         "combiner.name=fixed", "losses.set=[prime,digit]", "sweep.seeds=1", "sweep.other_seeds=1", "sweep.learning_rates=[]",
         "sweep.leave_one_out=false", "sweep.max_concurrent=1", "train.max_failures=0"]  # fmt: skip


@pytest.mark.whole
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("workers, stage", [(0, 0), (2, 3)])
def test_processes_stay_for_the_next_trial_which_ends_as_in_new_ones(workers, stage, tmp_path):
    (tmp_path / "seen.py").write_text(SEEN)
    steps, sweep = tmp_path / "steps", tmp_path / "outputs/sweeps/seen"
    steps.mkdir()
    (steps / "fault").touch()
    code, output = run("sweep", f"workload={tmp_path}/seen.py:Seen", f"workload.steps={steps}", *SWEEP, f"train.num_workers={workers}",
                       f"engine.zero_stage={stage}", "name=seen", cwd=tmp_path)  # fmt: skip
    assert code == 0, output
    rows = results.load(sweep / results.FILE).to_pylist()
    ends = {row["trial"]: (row["status"], row["error"]) for row in sorted(rows, key=lambda row: row["time"])}
    first, *others = ends
    assert ends.pop(first) == ("failed", "RuntimeError: a fault") and len(others) == 2
    assert set(ends.values()) == {("finished", None)}
    processes = max(1, workers)
    assert sorted(path.stat().st_size for path in steps.iterdir())[processes:] == processes * [2 * STEPS]  # new ones, for both trials

    weights = last_weights(sweep / "trials" / others[-1])
    shutil.rmtree(sweep / "trials" / others[-1])
    code, output = run("sweep", f"resume={sweep}", cwd=tmp_path)
    assert code == 0, output
    again = last_weights(sweep / "trials" / others[-1])
    assert weights.keys() == again.keys() and all(weights[name].equal(again[name]) for name in weights)


@pytest.mark.whole
@pytest.mark.xdist_group("ray")
def test_workers_that_meet_a_fault_in_the_last_part_of_their_start_have_failed_and_hold_nothing(tmp_path):
    config = toy_config(0)
    config.train.num_workers, config.train.max_failures = 2, 1
    with connected(config):
        process = ray.remote(num_cpus=0)(ProcessOfTrials).remote(faults=2)
        assert ray.get(process.train.remote(config, str(tmp_path)), timeout=120) == ("no rendezvous", 2)
        deadline = time.monotonic() + 30
        while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
            assert time.monotonic() < deadline, ray.available_resources()
            time.sleep(0.2)
        assert ray.get(process.train.remote(config, str(tmp_path)), timeout=120) == ("finished", 3)


class ProcessOfTrials:
    """As Tune has it, but that the first starts of its workers fail when they look for each other."""

    def __init__(self, faults: int):
        self.starts, on_start = 0, local._ByFile.on_start

        def faulty(*arguments):
            self.starts += 1
            if self.starts <= faults:
                raise RuntimeError("no rendezvous")
            on_start(*arguments)

        local._ByFile.on_start = faulty

    def train(self, config: Config, folder: str) -> tuple[str, int]:
        """(how the trial ended, starts so far)."""
        try:
            end = standing.train_on_workers({"stop": folder}, config, finishes, [].append).value
        except ControllerError as error:
            end = str(cause_of(error))
        return end, self.starts


def finishes(trial: dict) -> str:
    return End.FINISHED.value


def last_weights(trial: Path) -> dict:
    return load_file(checkpoint.latest(trial / "checkpoints") / "shared.safetensors")
