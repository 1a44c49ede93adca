"""Loggers show what the results table has: real files of TensorBoard, MLflow and W&B, read back, after a SIGKILL too."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from meltr_ray.errors import ConfigError
from meltr_ray.loggers import named
from meltr_ray.loggers.logger import Logger, Tracked, numbers
from meltr_ray.loggers.mlflow import TAG, as_key, client, experiment
from meltr_ray.results import table as results
from tests.commands import kill_all, run, start
from tests.faults import written

ROW = {"split": "validation", "step": 5, "score": -1.5, "metric.R@10": 37.0, "loss.joint": 0.25, "slope.joint": float("nan"), "arm": "meltr",
       "learning_rate": 1e-3, "resampled": [1.0], "best_step": 5, "solver_outcome": None}  # fmt: skip


def test_a_row_is_shown_by_names_that_say_where_they_belong():
    shown = {"validation/score": -1.5, "validation/R@10": 37.0, "loss/joint": 0.25, "run/learning_rate": 1e-3, "run/best_step": 5.0}
    assert numbers(ROW) == shown
    assert as_key("validation/R@10") == "validation/R_at_10" and as_key("a:b %") == "a_b _"


def test_an_id_is_of_one_sweep_alone_and_one_for_all_attempts(tmp_path):
    def tracked(folder: str, trial: str) -> Tracked:
        (tmp_path / folder / "same").mkdir(parents=True, exist_ok=True)
        return Tracked(tmp_path / folder / "same", trial, "arm", "screening", {})

    one = tracked("a", "joint-seed1").id
    assert one == tracked("a", "joint-seed1").id and one.startswith("same-") and one.endswith("-joint-seed1")
    assert len({one, tracked("b", "joint-seed1").id, tracked("a", "x" * 200).id, tracked("a", "x" * 201).id}) == 4
    assert len(tracked("a", "x" * 200).id) <= 128


class Breaking(Logger):
    """Fails at its second row."""

    package, rows = "torch", 0

    def add(self, step, numbers):
        Breaking.rows += 1
        if Breaking.rows == 2:
            raise OSError("the server is gone")


def test_a_logger_that_fails_ends_no_training_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(named.LOGGERS, "breaking", "breaking:Breaking")
    monkeypatch.setattr(named, "logger", lambda name: Breaking)
    with named.opened(["breaking"], Tracked(tmp_path, "one", "arm", "single", {})) as loggers:
        for _ in range(4):
            loggers.add(ROW)
    assert Breaking.rows == 2
    assert capsys.readouterr().err == "loggers: breaking shows no more of this trial (OSError: the server is gone); the results table has all of it\n"  # fmt: skip


@pytest.mark.parametrize("names, environment, line", [
    (["tensorbord"], {}, "loggers=tensorbord: unknown; use one of tensorboard, mlflow, wandb"),
    (["wandb", "wandb"], {}, r"loggers=\['wandb', 'wandb'\]: has one twice; remove it"),
    (["wandb"], {"WANDB_MODE": "online"}, "loggers=wandb: nobody is logged in; run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline"),
    (["mlflow"], {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "MLFLOW_TRACKING_URI=http://127.0.0.1:9: no MLflow server answers there "),
    (["mlflow"], {"MLFLOW_TRACKING_URI": "postgresql://x/y"}, "MLFLOW_TRACKING_URI=postgresql://x/y: mlflow-skinny has no such store; "),
])  # fmt: skip
def test_what_would_show_nothing_is_refused_in_one_line(names, environment, line, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{line}"):
        named.check_names(names)
        named.check_loggers(names)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("meltr_ray.loggers.tensorboard.TensorBoard.package", "no-such-package")
    with pytest.raises(ConfigError, match=r"loggers=tensorboard: needs no-such-package; pip install 'meltr-ray\[loggers\]'$"):
        named.check_loggers(["tensorboard"])


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A sweep of three trials in all loggers, killed when one trial has rows, and gone on with to its end."""
    folder, kept = tmp_path_factory.mktemp("sweep"), dict(os.environ)
    os.environ |= {"WANDB_MODE": "offline"}
    sweep = folder / "outputs/sweeps/shown"
    try:
        process = start("sweep", f"workload={written(folder)}", "experiment=compare", "losses.set=[total,size]", "sweep.baselines=[uniform]",
                        "sweep.seeds=1", "sweep.other_seeds=1", "sweep.leave_one_out=false", "sweep.learning_rates=[]", "train.steps=60", "train.evaluate_every=10", "train.checkpoint_every=20", "train.batch_size=8", "name=shown",
                        "loggers=[tensorboard,mlflow,wandb]", cwd=folder)  # fmt: skip
        deadline = time.monotonic() + 240
        while not any(len(results.read_trial(trial)) >= 3 for trial in sweep.glob("trials/*")):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "sweep.out").read_text()
            time.sleep(0.02)
        kill_all(process)
        code, output = run("sweep", f"resume={sweep}", cwd=folder)
        assert code == 0, output
    finally:
        os.environ.clear()
        os.environ |= kept
    return sweep


def rows(sweep: Path, trial: str) -> dict[str, dict[int, float]]:
    """Name -> step -> number, of what the table has of a trial."""
    found: dict[str, dict[int, float]] = {}
    for row in results.read_trial(sweep / "trials" / trial):
        for name, value in numbers(row).items():
            found.setdefault(name, {})[row["step"]] = value
    return found


TRIALS = ("meltr-seed0", "primary_only-seed0", "uniform-seed0")


@pytest.mark.whole
@pytest.mark.parametrize("trial", TRIALS)
def test_tensorboard_has_the_rows_of_the_table(swept, trial):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(swept / "tensorboard" / trial))
    events.Reload()
    seen = {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}
    expected = rows(swept, trial)
    assert seen.keys() == expected.keys() and len(expected) > 10
    for name in seen:
        assert seen[name] == pytest.approx(expected[name], rel=1e-6), name
        assert len(events.Scalars(name)) == len(expected[name])  # what the killed attempt showed of later steps is gone
    assert "settings/text_summary" in events.Tags()["tensors"]


@pytest.mark.whole
@pytest.mark.parametrize("trial", TRIALS)
def test_mlflow_has_one_run_a_trial_with_the_rows_of_the_table(swept, trial):
    store = client(swept)
    place = store.get_experiment_by_name(experiment(swept)).experiment_id
    runs = store.search_runs([place])
    assert sorted(run.info.run_name for run in runs) == list(TRIALS) and {run.info.status for run in runs} == {"FINISHED"}
    (found,) = (run for run in runs if run.info.run_name == trial)
    assert found.data.tags[TAG] == Tracked(swept, trial, "", "", {}).id and found.data.params["train.steps"] == "60"
    for name, expected in rows(swept, trial).items():
        seen = {metric.step: metric.value for metric in store.get_metric_history(found.info.run_id, as_key(name))}
        assert seen == pytest.approx(expected), name


@pytest.mark.whole
@pytest.mark.parametrize("trial", TRIALS)
def test_wandb_has_the_rows_of_the_table_under_one_id(swept, trial):
    files = list(swept.glob(f"wandb/offline-run-*/run-{Tracked(swept, trial, '', '', {}).id}.wandb"))
    seen: dict[str, dict[int, float]] = {}
    for file in sorted(files, key=lambda path: path.stat().st_mtime):
        for row in history(file):
            for name, value in row.items():
                if not name.startswith(("_", "step")):
                    seen.setdefault(name, {})[int(row["step"])] = value
    expected = rows(swept, trial)
    assert seen.keys() == expected.keys()
    for name in seen:
        assert seen[name] == pytest.approx(expected[name]), name


def history(file: Path) -> list[dict[str, float]]:
    """Rows of a W&B file: records in blocks as LevelDB writes its log, each a protocol buffer."""
    import json

    from wandb.proto.wandb_internal_pb2 import Record

    data, found, held = file.read_bytes(), [], b""
    block, head, place = 32768, 7, 7  # W&B's own header stands where that of the first record would
    while place + head <= len(data):
        if block - place % block < head:
            place += block - place % block
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        held += data[place + head : place + head + length]
        place += head + length
        if kind in (1, 4):  # whole, or the last part
            record = Record.FromString(held)
            held = b""
            if record.WhichOneof("record_type") == "history":
                found.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
    return found
