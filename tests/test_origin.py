"""What hangs on the process, the order of a set or the clock, is found where processes have to start alike."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import UserDict

import numpy as np
import pytest
import torch

from meltr_ray.errors import ConfigError
from meltr_ray.training.origin import check_alike, checksum
from meltr_ray.training.tensors import tensors
from tests.faults import DOC, MINE, attempt, written
from tests.forks import ENVIRONMENT, ROOT


class Ranks:
    """Stands for the ranks of an engine: what each of them found."""

    def __init__(self, *others: dict[str, int]):
        self.rank, self.device, self.others = 0, torch.device("cpu"), others

    def gather(self, own: torch.Tensor) -> list[torch.Tensor]:
        return [own, *(torch.tensor(list(each.values())) for each in self.others)]


@pytest.mark.parametrize("other", [
    {"x": np.arange(3.0), "y": [1, "b"]}, {"x": np.arange(3), "y": [1, "a"]}, {"y": [1, "a"], "x": np.arange(3.0)},
    {"x": np.arange(3.0).reshape(3, 1), "y": [1, "a"]}, {"x": torch.arange(3.0), "y": [1, "a"]}, [np.arange(3.0), 1, "a"],
])  # fmt: skip
def test_a_checksum_sees_values_types_shapes_and_order(other):
    x = {"x": np.arange(3.0), "y": [1, "a"]}
    assert checksum(x) == checksum({"x": np.arange(3.0), "y": [1, "a"]}) != checksum(other)
    if isinstance(other, dict):  # a batch of transformers is a UserDict
        assert checksum(UserDict(x)) == checksum(UserDict(x)) != checksum(UserDict(other))
        assert [place for place, _ in tensors(UserDict(other))] == [place for place, _ in tensors(other)]


def test_what_differs_is_named(tmp_path):
    workload = attempt(written(tmp_path)).workload
    own = {"batch": 1, "validation": 2, "weights": 3}
    check_alike(workload, own, Ranks(own), {"batch": 1, "weights": 7})  # weights of a run that goes on are those of its checkpoint
    with pytest.raises(ConfigError, match=r"module\(\) gives another on each worker, with the same seed"):
        check_alike(workload, own, Ranks(own | {"weights": 4}))
    with pytest.raises(ConfigError, match=r"examples\('train'\) or batch\(\) give another when the run goes on"):
        check_alike(workload, own, Ranks(own), {"batch": 2})


@pytest.mark.whole
def test_a_run_whose_examples_hang_on_the_order_of_a_set_does_not_go_on(tmp_path):
    """A set of texts has another order in each process: the run would go on with examples that it has trained on."""
    order = "    order = [ord(x) - ord('a') for x in {'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}]\n"
    text = MINE.replace(DOC, DOC + order).replace(
        "(sizes[split], 3)).astype(np.float32)", "(sizes[split], 3)).astype(np.float32)[[*self.order, *range(8, sizes[split])]]"
    )
    (tmp_path / "mine.py").write_text(text)

    def train(*settings: str, hashed: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, str(ROOT / "workloads/train.py"), *settings], cwd=tmp_path, capture_output=True, text=True,
                              env=os.environ | ENVIRONMENT | {"PYTHONHASHSEED": hashed})  # fmt: skip

    done = train(
        f"workload={tmp_path}/mine.py:Mine", "train.batch_size=20", "train.steps=4", "train.checkpoint_every=2", "name=mine", hashed="1"
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "outputs/runs/mine/checkpoints/step-00000004")
    other = train("resume=outputs/runs/mine", hashed="2")
    assert other.returncode == 1 and "another when the run goes on, with the same seed; let nothing hang on the process" in other.stderr, (
        other.stderr
    )
