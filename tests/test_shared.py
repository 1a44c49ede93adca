"""Trials of a sweep are compared, so a sweep doesn't go on with other data than those that it began with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from meltr_ray.cluster import sweep as phases
from meltr_ray.cluster.trial import run_trial
from meltr_ray.cluster.tune import shared_of, specification
from meltr_ray.errors import ConfigError
from meltr_ray.training.shared import named
from tests.faults import DOC, MINE
from tune_spaces.arms import Trial
from workloads import cli

READ = "return np.random.default_rng(len(split)).standard_normal((sizes[split], 3)).astype(np.float32)"
OF_A_FILE = """    def identity(self):
        return {"notes": str((Path(__file__).parent / "notes.txt").read_text())}
"""


@pytest.fixture
def request_of(tmp_path, monkeypatch):
    """A sweep of a workload whose examples are files beside it, and which names another file as part of its identity."""
    text = MINE.replace(READ, "return np.load(Path(__file__).parent / f'{split}.npy')").replace(DOC, DOC + OF_A_FILE)
    (tmp_path / "mine.py").write_text(text.replace("import numpy as np\n", "from pathlib import Path\n\nimport numpy as np\n"))
    (tmp_path / "notes.txt").write_text("first")
    for split, count in {"train": 200, "validation": 12}.items():
        save(tmp_path, split, count)
    monkeypatch.chdir(tmp_path)
    settings = [f"workload={tmp_path}/mine.py:Mine", "experiment=compare", "train.steps=2", "sweep.seeds=1", "sweep.other_seeds=1"]
    return lambda *more: cli.configure([*settings, *more])


def save(folder: Path, split: str, count: int, shift: float = 0.0) -> None:
    np.save(folder / f"{split}.npy", np.random.default_rng(len(split)).standard_normal((count, 3)).astype(np.float32) + shift)


CHANGES = {
    "more examples": (lambda folder: save(folder, "train", 240), "the number of train examples isn't that of the sweep's first trials"),
    "other values": (lambda folder: save(folder, "validation", 12, 0.5), "the first validation example isn't that of"),
    "another identity": (lambda folder: (folder / "notes.txt").write_text("second"), "the notes of its identity isn't that of"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_resumed_sweep_refuses_other_data(request_of, tmp_path, name):
    change, words = CHANGES[name]
    request, folder = request_of(), tmp_path / "sweep"
    phases.start(folder, request.settings, request.config, "")
    phases.start(folder, request.settings, request.config, "")
    before = (folder / "sweep.json").read_bytes()
    change(tmp_path)
    with pytest.raises(ConfigError, match=f"^workload=.*: {words}.*; put the data back"):
        phases.start(folder, request.settings, request.config, "")
    assert (folder / "sweep.json").read_bytes() == before


def test_a_trial_refuses_other_data_than_the_sweep_began_with(request_of, tmp_path):
    request, folder = request_of(), tmp_path / "sweep"
    phases.start(folder, request.settings, request.config, "")
    trial = specification(Trial("mine-seed0", "meltr", "comparison", request.config), folder, request.config, shared_of(folder))
    assert trial["shared"].items() >= named(request.config.workload).items()
    (tmp_path / "notes.txt").write_text("second")
    with pytest.raises(ConfigError, match="the notes of its identity isn't that of the sweep's first trials"):
        run_trial(trial, lambda row: None)


def test_an_arm_on_other_data_is_not_held_against_the_sweep(request_of, tmp_path):
    request, folder = request_of(), tmp_path / "sweep"
    phases.start(folder, request.settings, request.config, "")
    other = request_of("workload.width=8")
    assert specification(Trial("mine-seed0", "wide", "comparison", other.config), folder, request.config, shared_of(folder))["shared"] == {}


def test_clips_are_part_of_videos_identity(digits_folder, tmp_path):
    before = cli.configure([f"data.folder={digits_folder}"]).config.workload.identity()
    assert list(before) == ["clips"]
    other = Path(shutil.copytree(digits_folder, tmp_path / "digits"))
    assert cli.configure([f"data.folder={other}"]).config.workload.identity() == before
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert cli.configure([f"data.folder={other}"]).config.workload.identity() != before
