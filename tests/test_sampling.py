"""How far other examples would move an effect: against what theory gives for a mean, with the seeds held fixed."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import sampling
from meltr_ray.results import bootstrap

ARMS, SEEDS, SOURCES, RESAMPLES = ("with", "without"), (3, 4, 5), 150, 2000


def scored(luck, of_examples):
    """(arm, seed) -> per-example scores (4 * SOURCES,), four examples a source that share most of theirs."""
    generator = np.random.default_rng(0)
    shared = {arm: generator.normal(0, 10, SOURCES).repeat(4) for arm in ARMS}
    return {
        (arm, seed): 50 + generator.normal(0, luck) + of_examples * shared[arm] + generator.normal(0, 2, 4 * SOURCES)
        for arm in ARMS
        for seed in SEEDS
    }


def drawn(values):
    """The score, a mean, on each resample, as a trial keeps it."""
    rows = [{"source": f"video{at // 4}", "value": value} for at, value in enumerate(values)]
    return bootstrap.resampled(rows, lambda rows: [np.mean([row["value"] for row in rows])], 1, resamples=RESAMPLES)[:, 0]


@pytest.mark.parametrize("luck", [0.0, 30.0])
def test_it_is_the_error_of_a_mean_over_sources_whatever_seeds_do(luck):
    scores = scored(luck, of_examples=1.0)
    found = sampling.half_width({"with": 1.0, "without": -1.0}, {key: drawn(values) for key, values in scores.items()})
    of_sources = np.mean([scores["with", seed] - scores["without", seed] for seed in SEEDS], axis=0).reshape(SOURCES, 4).mean(1)
    assert found == pytest.approx(1.96 * of_sources.std(ddof=1) / np.sqrt(SOURCES), rel=0.08)


def test_what_two_arms_share_takes_no_part():
    scores = scored(0.0, of_examples=0.0)
    hard = np.random.default_rng(1).normal(0, 30, SOURCES).repeat(4)
    vectors = {key: drawn(values + hard) for key, values in scores.items()}
    alone = sampling.half_width({"with": 1.0}, vectors)
    assert sampling.half_width({"with": 1.0, "without": -1.0}, vectors) < alone / 20


def test_seeds_that_lack_an_arm_are_left_out():
    vectors = {("with", 0): np.array([1.0, 2.0, 3.0]), ("without", 0): np.zeros(3), ("with", 1): np.array([9.0, 0.0, 9.0])}
    assert sampling.half_width({"with": 1.0, "without": -1.0}, vectors) == pytest.approx(1.96)
    assert np.isnan(sampling.half_width({"with": 1.0, "other": -1.0}, vectors))
