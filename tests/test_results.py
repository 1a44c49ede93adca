"""The results table: open columns, what joins them, statuses, and the tables of version 1."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meltr_ray.cluster import live
from meltr_ray.errors import ConfigError
from meltr_ray.results import migration
from meltr_ray.results import table as results
from meltr_ray.results.columns import FIXED, Columns, common
from meltr_ray.workload import Metric

METRICS = {"delay": Metric("s", higher=False, digits=2, meaning="seconds until the answer"), "hits": Metric("%")}


def columns(losses=("main", "side"), **settings):
    return Columns.of(METRICS, losses, {name.replace("__", "."): value for name, value in settings.items()})


def row(step, split="validation", status="running", **cells):
    return {"trial": "a", "arm": "ours", "phase": "comparison", "split": split, "status": status, "step": step,
            "time": datetime(2026, 1, 1, tzinfo=UTC), "score": -1.5, "metric.delay": 1.5, **cells}  # fmt: skip


def test_a_trial_has_the_columns_of_its_own_run_and_their_meaning(tmp_path):
    made = columns(aid__cg_iterations=5, optimizer__learning_rate=1e-3, losses__set=["main", "side"], aid__extra=None, seed=3)
    results.append(tmp_path, row(10, **{"loss.main": 0.5, "slope.main": 1.0}), made)
    table = results.load(tmp_path / results.FILE)
    own = [name for name in table.column_names if name not in FIXED]
    assert own == ["metric.delay", "metric.hits", "loss.main", "loss.side", "slope.main", "slope.side", "setting.aid.cg_iterations",
                   "setting.optimizer.learning_rate", "setting.losses.set", "setting.aid.extra", "setting.seed"]  # fmt: skip
    (only,) = table.to_pylist()
    assert (only["setting.aid.cg_iterations"], only["setting.losses.set"], only["setting.aid.extra"]) == (5, '["main", "side"]', None)
    assert only["metric.delay"] == 1.5 and only["metric.hits"] is None
    assert table.schema.field("setting.aid.cg_iterations").type == pa.int64()
    assert table.schema.metadata[b"version"] == b"2"
    assert table.schema.field("metric.delay").metadata == {b"meaning": b"seconds until the answer", b"unit": b"s"}
    for name in table.column_names:
        assert table.schema.field(name).metadata[b"meaning"], name


def test_a_column_that_the_run_does_not_declare_is_refused(tmp_path):
    with pytest.raises(KeyError, match="loss.other"):
        results.append(tmp_path, row(10, **{"loss.other": 1.0}), columns())
    assert results.read_trial(tmp_path) == []


def test_gathering_unifies_what_trials_have(tmp_path):
    results.append(
        tmp_path / "trials/a", row(10, trial="a"), columns(("main",), aid__weight=1, aid__way="mean", data__rate=None, only__a=True)
    )
    results.append(tmp_path / "trials/b", row(10, trial="b"), columns(("main", "side"), aid__weight=0.5, aid__way=[1, 2], data__rate=7))
    results.append(tmp_path / "trials/c", row(10, trial="c"), columns(("main",), aid__weight=2, aid__way=3.5, data__rate=None))
    table = results.gather(tmp_path)
    rows = table.to_pylist()
    assert [each["setting.aid.weight"] for each in rows] == [1.0, 0.5, 2.0]
    assert [each["setting.aid.way"] for each in rows] == ["mean", "[1, 2]", "3.5"]
    assert [each["setting.data.rate"] for each in rows] == [None, 7, None]
    assert [each["setting.only.a"] for each in rows] == [True, None, None]
    assert table.schema.field("loss.side").metadata[b"meaning"] == b"loss side, mean since the last row"
    assert table.equals(results.load(tmp_path / results.FILE), check_metadata=True)
    order = [next((k for k, family in enumerate(("metric.", "loss.", "slope.", "setting."), 1) if name.startswith(family)), 0)
             for name in table.column_names]  # fmt: skip
    assert order == sorted(order)


def test_gathering_a_sweep_that_grows_is_gathering_it_once(tmp_path):
    gathered = results.Gathered(tmp_path)
    for round in range(3):  # rows are added to old trials, and trials with columns of their own between them
        results.append(tmp_path / "trials/b", row(round, trial="b"), columns(("main",), aid__weight=1))
        results.append(
            tmp_path / f"trials/{'cab'[round]}{round}", row(9, trial=f"{'cab'[round]}{round}"), columns(("side",), aid__weight=0.5)
        )
        assert gathered().to_pylist() == results.gather(tmp_path).to_pylist()
    shutil.rmtree(tmp_path / "trials/b")
    assert gathered()["trial"].to_pylist() == ["a1", "b2", "c0"]
    assert gathered().to_pylist() == results.gather(tmp_path).to_pylist()


@pytest.mark.parametrize("a, b, both", [
    (pa.int64(), pa.int64(), pa.int64()), (pa.int64(), pa.float64(), pa.float64()), (pa.null(), pa.bool_(), pa.bool_()),
    (pa.bool_(), pa.int64(), pa.string()), (pa.string(), pa.float64(), pa.string()), (pa.null(), pa.null(), pa.null()),
])  # fmt: skip
def test_the_type_of_two(a, b, both):
    assert common(a, b) == common(b, a) == both


def test_an_empty_sweep_has_an_empty_table(tmp_path):
    assert results.gather(tmp_path).column_names == list(FIXED) and results.load(tmp_path / results.FILE).num_rows == 0


def test_a_table_is_read_whole_while_its_trial_writes(tmp_path):
    results.append(tmp_path, row(0), columns())
    with ThreadPoolExecutor(1) as trial:
        writing = trial.submit(lambda: [results.append(tmp_path, row(step), columns()) for step in range(1, 60)])
        counts = []
        while not writing.done():
            counts.append(len(results.read_trial(tmp_path)))
        writing.result()
    assert len(counts) > 5 and counts == sorted(counts)


def test_a_row_replaces_what_it_makes_void(tmp_path):
    made = columns()
    for each in (row(10), row(20), row(20, "none", "failed", error="lost"), row(20, score=9.0), row(20, "test", "finished")):
        results.append(tmp_path, each, made)
    assert [(each["step"], each["split"], each["status"]) for each in results.read_trial(tmp_path)] == [
        (10, "validation", "running"), (20, "validation", "running"), (20, "test", "finished")]  # fmt: skip
    assert results.read_trial(tmp_path)[1]["score"] == 9.0


def test_ctrl_c_stops_what_runs_and_a_stopped_trial_goes_on(tmp_path):
    ends = {"runs": "running", "done": "finished", "hot": "diverged", "lost": "failed"}
    for name, status in ends.items():
        results.append(tmp_path / "trials" / name, row(10), columns())
        results.append(tmp_path / "trials" / name, row(20, status=status), columns())
    (tmp_path / "trials/nothing_yet").mkdir()
    assert results.mark_stopped(tmp_path) == ["runs"] and results.mark_stopped(tmp_path) == []

    def statuses(name):
        return [each["status"] for each in results.read_trial(tmp_path / "trials" / name)]

    assert statuses("runs") == ["running", "stopped"] and results.status_of(statuses("runs")) == "stopped"
    assert {name for name in ends if results.is_final(tmp_path / "trials" / name)} == {"done", "hot"}
    results.append(tmp_path / "trials/runs", row(30, status="finished"), columns())
    assert statuses("runs") == ["running", "running", "finished"] and results.status_of(statuses("runs")) == "finished"


def test_the_gravest_status_counts():
    assert results.STATUSES == ("failed", "diverged", "finished", "stopped", "running")
    for number, status in enumerate(results.STATUSES):
        assert results.status_of(results.STATUSES[number:]) == status


@pytest.mark.parametrize("content, rule", [(b"half a file", "can't be read"), ("3", "has version 3")])
def test_a_table_that_cannot_be_read_is_refused_in_one_line(tmp_path, content, rule):
    path = tmp_path / results.FILE
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(pa.table({"step": [1]}).replace_schema_metadata({"version": content}), path)
    with pytest.raises(ConfigError, match=rule) as found:
        results.load(path)
    assert "\n" not in str(found.value)


# Version 1: written by the code of that time, 254 bare columns, with the sweep.json beside it


@pytest.fixture
def old(tmp_path) -> Path:
    """Two sweeps, `retrieval` and `sentiment`: whole tables, and those of two trials of the first."""
    with tarfile.open(Path(__file__).with_name("results_version_1.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.parametrize("task, metric", [("retrieval", "recall_at_10"), ("sentiment", "mae")])
def test_a_table_of_version_1_comes_out_as_version_2(old, task, metric):
    path = old / task / results.FILE
    before, table = pq.read_table(path), results.load(path)
    assert len(before.column_names) > 200 > 140 > len(table.column_names) and table.schema.metadata[b"version"] == b"2"
    after, sign = table.to_pylist(), -1 if metric == "mae" else 1
    for was, row in zip(before.to_pylist(), after, strict=True):
        later = {"elapsed", "resampled"}  # they weren't kept then
        assert not later & set(row)
        kept = [name for name in FIXED if name not in later]
        assert repr([was[name] for name in kept]) == repr([row[name] for name in kept])  # NaN is NaN there
        assert row[f"metric.{metric}"] == pytest.approx(was[metric], nan_ok=True) == pytest.approx(sign * row["score"], nan_ok=True)
        assert row["setting.task.primary"] == row["setting.losses.primary"] == was["task.primary"]
        assert row["setting.losses.set"] == was["task.loss_set"] and row["setting.seed"] == was["seed"]
        assert row["setting.optimizer.learning_rate"] == was["optimizer.learning_rate"]
        values = {name: value for name, value in row.items() if name not in FIXED and value is not None}
        names = {name.partition(".")[2] if name.startswith(("metric.", "setting.")) else name for name in values}
        assert names - {"losses.set", "losses.primary"} == {name for name, value in was.items() if value is not None} - set(FIXED)
    assert table.schema.field(f"metric.{metric}").metadata[b"unit"] == (b"" if metric == "mae" else b"%")
    assert table.schema.field("metric.correlation" if metric == "mae" else "metric.mean_rank").metadata[b"meaning"]


def test_a_trial_of_version_1_goes_on_in_version_2(old):
    folder = old / "retrieval/trials/meltr-seed0"
    before = results.read_trial(folder)
    assert results.is_final(folder) and results.is_final(folder.with_name("uniform-seed2"))
    made = Columns.of({"recall_at_10": Metric("%")}, ["joint", "extra"], {"seed": 0, "losses.set": ["joint", "extra"]})
    results.append(
        folder, {"trial": "meltr-seed0", "split": "validation", "status": "running", "step": 99, "metric.recall_at_10": 1.0}, made
    )
    after = results.read_trial(folder)
    assert len(after) == len(before) + 1 and after[-1]["setting.losses.set"] == '["joint", "extra"]'
    assert after[-1]["setting.task.primary"] is None and after[0]["loss.extra"] is None
    gathered = results.gather(old / "retrieval").to_pylist()
    assert {row["trial"] for row in gathered} >= {"meltr-seed0", "uniform-seed2"} and 99 in [row["step"] for row in gathered]


def test_sweep_json_of_version_1(old):
    about = json.loads((old / "sentiment/sweep.json").read_text())
    found = migration.migrate_about(about, results.load(old / "sentiment" / results.FILE).column_names)
    name, headline = next(iter(found["metrics"].items()))
    assert (name, Metric(**headline).score(1.25), headline["label"], headline["digits"]) == ("mae", -1.25, "MAE", 3)
    assert list(found["metrics"])[1:] == ["correlation", "accuracy_2", "accuracy_2_non_zero", "accuracy_7", "f1"]
    assert found["losses"] == {"primary": "sentiment", "set": about["loss_set"], "controls": ["constant", "shuffled"]}
    assert not {"metric", "primary", "loss_set"} & set(found) and found["started"] == about["started"]
    about = json.loads((old / "retrieval/sweep.json").read_text())
    found = migration.migrate_about(about, results.load(old / "retrieval" / results.FILE).column_names)
    assert list(found["metrics"]) == ["recall_at_10", "recall_at_1", "recall_at_5", "median_rank"]
    assert found["losses"]["controls"] == ["constant", "shuffled"] and migration.migrate_about(found, []) is found


def test_the_table_of_a_running_sweep_grows_with_its_trials_and_reads_what_changed_alone(tmp_path, monkeypatch):
    read: list[str] = []
    monkeypatch.setattr(results, "load_of_trial", lambda path, load=results.load_of_trial: read.append(path.parent.name) or load(path))
    monkeypatch.setattr(live, "EVERY", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)
    watched = live.Live(tmp_path)
    watched.next = 0.0

    def after(*rows: tuple[str, int]) -> list[tuple[str, int]]:
        for trial, step in rows:
            results.append(tmp_path / "trials" / trial, row(step, trial=trial), columns())
        read.clear()
        watched.on_step_end(0, [])
        return [(one["trial"], one["step"]) for one in results.load(tmp_path / results.FILE).to_pylist()]

    assert after(("b", 1)) == [("b", 1)]
    assert after(("a", 1), ("b", 2)) == [("a", 1), ("b", 1), ("b", 2)] and read == ["a", "b"]
    assert after(("a", 2)) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)] and read == ["a"]
    (tmp_path / "trials/b/results.parquet").unlink()
    assert after() == [("a", 1), ("a", 2)] and read == []
    assert len(pickle.dumps(watched)) < 1000
