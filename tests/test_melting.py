"""What g_phi does to losses: curves and slopes against autograd and by hand; the notebook on a run of ours."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from analysis import melting
from meltr_ray import MELTR
from meltr_ray.errors import ConfigError
from tests.commands import run
from tests.faults import written
from tests.notebooks import printed_by


class Quadratic(torch.nn.Module):
    """g(l) = l_0 + 2 l_1 + 3 l_0 l_1 + l_2^2."""

    def forward(self, l):
        return l[0] + 2 * l[1] + 3 * l[0] * l[1] + l[2] ** 2


def test_curves_surfaces_and_melting_are_those_of_the_function():
    one = melting.Combined(7, Quadratic(), torch.tensor([1.0, 2.0, 0.5]))
    span = np.array([0.5, 1.0, 2.0])
    assert melting.curve(one, 0, span) == pytest.approx((1 + 3 * 2) * (span - 1))
    assert melting.curve(one, 2, span) == pytest.approx((0.5 * span) ** 2 - 0.25)
    assert melting.slopes(one.combiner, one.losses[None])[0] == pytest.approx([1 + 6, 2 + 3, 1])
    assert melting.melting(one) == pytest.approx(np.array([[0, 3 * 2, 0], [3 * 1, 0, 0], [0, 0, 2 * 0.5]]))
    assert melting.surface(one, 0, 1, span)[0, 2] == pytest.approx(0.5 + 2 * 4 + 3 * 0.5 * 4 + 0.25)


def test_the_published_start_melts_nothing():
    """near_sum starts as the plain sum: slopes 1, no loss changes another's."""
    one = melting.Combined(0, MELTR(3, 16, 8, 16), torch.tensor([1.0, 2.0, 0.5]))
    assert np.array_equal(melting.slopes(one.combiner, one.losses[None])[0], np.ones(3)) and not melting.melting(one).any()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    code, output = run("train", f"workload={written(folder)}", "losses.set=[total,size]", "train.batch_size=8", "train.steps=12", "train.checkpoint_every=4", "train.checkpoints_kept=3",
                       "aid.learning_rate=0.1", "aid.gamma=0", "name=mine", cwd=folder)  # fmt: skip
    assert code == 0, output
    return folder / "outputs/runs/mine"


def test_every_checkpoint_has_its_own_combiner(trained):
    names, course = melting.combined(trained)
    assert names == ["total", "size"] and [one.step for one in course] == [4, 8, 12]
    assert not np.allclose(*(melting.slopes(one.combiner, course[-1].losses[None]) for one in course[::2]))
    with pytest.raises(ConfigError, match="has no checkpoint"):
        (trained / "checkpoints").rename(trained / "away")
        try:
            melting.combined(trained)
        finally:
            (trained / "away").rename(trained / "checkpoints")


@pytest.mark.whole
def test_the_notebook_runs_on_a_run(trained, monkeypatch):
    monkeypatch.setenv("MELTR_RUN", os.fspath(trained))
    printed = printed_by("what_the_combiner_does.ipynb")
    assert "losses total, size; g_phi after 4, 8, 12 steps" in printed and "largest between two losses" in printed
