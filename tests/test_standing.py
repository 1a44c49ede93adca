"""Workers of a sweep's trials stay for the next trial, unless one failed in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from meltr_ray.results import table as results
from meltr_ray.training import checkpoint
from tests.commands import run

SEEN = """
import os
import torch
from workloads.examples.primes import Primes

class Seen(Primes):
    \"\"\"Each training step leaves a byte in a file of its process; the second rank's first step is a fault, once.\"\"\"
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
            if torch.distributed.get_rank() == 1 and os.path.exists(f"{self.steps}/fault"):
                os.unlink(f"{self.steps}/fault")
                raise RuntimeError("a fault")
"""
STEPS = 6
SWEEP = ["workload.width=4", "train.batch_size=8", f"train.steps={STEPS}", f"train.evaluate_every={STEPS}", "experiment=compare",
         "combiner.name=fixed", "losses.set=[prime,digit]", "sweep.seeds=1", "sweep.other_seeds=1", "sweep.learning_rates=[]",
         "sweep.leave_one_out=false", "sweep.max_concurrent=1", "train.num_workers=2", "engine.zero_stage=3", "train.max_failures=0"]  # fmt: skip


@pytest.mark.whole
@pytest.mark.xdist_group("ray")
def test_workers_stay_for_the_next_trial_which_ends_as_in_new_ones(tmp_path):
    (tmp_path / "seen.py").write_text(SEEN)
    steps, sweep = tmp_path / "steps", tmp_path / "outputs/sweeps/seen"
    steps.mkdir()
    (steps / "fault").touch()
    code, output = run("sweep", f"workload={tmp_path}/seen.py:Seen", f"workload.steps={steps}", *SWEEP, "name=seen", cwd=tmp_path)
    assert code == 0, output
    rows = results.load(sweep / results.FILE).to_pylist()
    ends = {row["trial"]: (row["status"], row["error"]) for row in sorted(rows, key=lambda row: row["time"])}
    first, *others = ends
    assert ends.pop(first) == ("failed", "RuntimeError: a fault") and len(others) == 2
    assert set(ends.values()) == {("finished", None)}
    assert sorted(path.stat().st_size for path in steps.iterdir())[2:] == 2 * [2 * STEPS]  # new workers, for both trials

    weights = last_weights(sweep / "trials" / others[-1])
    shutil.rmtree(sweep / "trials" / others[-1])
    code, output = run("sweep", f"resume={sweep}", cwd=tmp_path)
    assert code == 0, output
    again = last_weights(sweep / "trials" / others[-1])
    assert weights.keys() == again.keys() and all(weights[name].equal(again[name]) for name in weights)


def last_weights(trial: Path) -> dict:
    return load_file(checkpoint.latest(trial / "checkpoints") / "shared.safetensors")
