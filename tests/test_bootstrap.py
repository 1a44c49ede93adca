"""Intervals of any measure of rows: against those of sums, over sources, and where a resample can't be measured."""

from __future__ import annotations

import numpy as np
import pytest

from meltr_ray.results import bootstrap


def mean(rows):
    return {"accuracy": 100 * sum(row["correct"] for row in rows) / len(rows)}


def examples(count=120, seed=0):
    generator = np.random.default_rng(seed)
    return [
        {"id": f"e{i}", "source": f"video{i // 4}", "correct": bool(generator.random() < 0.3 + 0.4 * (i // 4 % 2))} for i in range(count)
    ]


def test_a_measure_of_rows_has_the_interval_of_its_sums():
    rows = examples()
    sources = [row["source"] for row in rows]
    found = bootstrap.intervals(rows, mean, resamples=4000)["accuracy"]
    expected = bootstrap.interval(bootstrap.with_ones([100.0 * row["correct"] for row in rows]), sources, bootstrap.ratio, resamples=20_000)
    assert found == pytest.approx(expected, abs=0.05 * (expected.high - expected.low))
    assert (
        found
        == bootstrap.intervals(rows, mean, sources, 4000)["accuracy"]
        != bootstrap.intervals(rows, mean, resamples=4000, seed=1)["accuracy"]
    )


def test_rows_of_one_source_are_drawn_together():
    rows = examples()
    alone = bootstrap.intervals([{"correct": row["correct"]} for row in rows], mean)["accuracy"]
    copies = bootstrap.intervals([row | {"source": row["id"]} for row in rows for _ in range(10)], mean)["accuracy"]
    assert copies == pytest.approx(alone, abs=2) and copies == bootstrap.intervals(rows, mean, range(len(rows)))["accuracy"]
    one = bootstrap.intervals([row | {"source": "the same"} for row in rows], mean)
    assert set(one) == {"accuracy"} and np.isnan(one["accuracy"]).all()


def test_resamples_that_cannot_be_measured_are_left_out():
    rows = [{"id": i, "group": "rare" if i < 2 else "common", "value": float(i)} for i in range(12)]

    def measure(rows):
        rare = [row["value"] for row in rows if row["group"] == "rare"]
        if not rare:
            raise ValueError("no row of the rare group")
        return {"all": np.mean([row["value"] for row in rows]), "rare": np.mean(rare), "never": float("nan")}

    found = bootstrap.intervals(rows, measure)
    assert 0 <= found["rare"].low <= found["rare"].high <= 1 and found["all"].low < 5.5 < found["all"].high
    assert np.isnan(found["never"]).all()
    with pytest.raises(KeyError):  # a mistake is none of those
        bootstrap.intervals(rows, lambda rows: {"x": rows[0]["nothing"]})
