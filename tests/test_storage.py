"""What runs leave on disk is read as it was written or not at all: every region of every file flipped once; one writer at a time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from meltr_ray.config import file as config_file
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from meltr_ray.results.columns import Columns
from meltr_ray.storage import disk, sealed, stop
from meltr_ray.storage.writers import Attempt, ShutOut, only_writer
from meltr_ray.training import checkpoint
from meltr_ray.training.evaluation import check_numbers, load_weights
from tests.engine_toy import toy, toy_config
from tests.forks import ROOT
from tests.test_analysis import LOSS_SET, METRICS, measured

REGIONS = 24


def flips(file: Path):
    """The file with a bit of one byte flipped, in each of many regions, one after the other; then as it was."""
    whole = file.read_bytes()
    for region in range(min(REGIONS, len(whole))):
        position = region * len(whole) // min(REGIONS, len(whole))
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << region % 8]) + whole[position + 1 :])
        yield position
    file.write_bytes(whole)


def saved(root: Path, step: int) -> Path:
    tensors = {"weights/w": torch.randn(40, 3), "meta/phi": torch.randn(7)}
    checkpoint.save(root, step, 0, tensors, {"cpu": torch.get_rng_state()}, {"progress": {"step": step}}, lambda: None)
    return root / f"step-{step:08d}"


def test_a_checkpoint_that_is_damaged_anywhere_gives_way_to_the_older_one(tmp_path, capsys):
    older, newer = saved(tmp_path, 1), saved(tmp_path, 2)
    assert checkpoint.latest(tmp_path) == newer and capsys.readouterr().err == ""
    for file in sorted(newer.iterdir()):
        for position in flips(file):
            assert checkpoint.latest(tmp_path) == older, (file.name, position)
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and "isn't as it was written; an older one is used" in said
        file.rename(tmp_path / "away")
        if file.name != checkpoint.MARKER:
            assert checkpoint.latest(tmp_path) == older, file.name
        (tmp_path / "away").rename(file)
        capsys.readouterr()
    for file in older.iterdir(), newer.iterdir():
        next(each for each in file if each.name == "shared.safetensors").write_bytes(b"")
    assert checkpoint.latest(tmp_path) is None


def test_best_weights_that_are_damaged_anywhere_are_refused(tmp_path):
    path, weights = tmp_path / "best.safetensors", toy()[0].state_dict()
    checkpoint.save_weights(path, weights, {"step": 3, "error": 0.5})
    assert checkpoint.weights_facts(path)["step"] == 3 and checkpoint.load_weights_file(path).keys() == weights.keys()
    for position in flips(path):
        with pytest.raises(ConfigError, match="isn't as it was written; restore it"):
            checkpoint.load_weights_file(path)
            pytest.fail(f"taken with byte {position} flipped")


def test_a_table_that_is_damaged_anywhere_is_set_aside(tmp_path, capsys):
    trial = tmp_path / "trials/one"
    columns = Columns.of(METRICS, LOSS_SET, {"seed": 0})
    for step in range(1, 6):
        results.append(
            trial,
            {"trial": "one", "arm": "a", "phase": "single", "split": "validation", "status": "running", "step": step}
            | measured(30.0 + step),
            columns,
        )
    whole = results.read_trial(trial)
    for position in flips(trial / results.FILE):
        try:
            assert results.read_trial(trial) == whole, position  # what flipped says nothing, such as a page's offset that isn't used
        except sealed.Damaged:
            pass
    assert results.read_trial(trial) == whole
    (trial / results.FILE).write_bytes(b"PAR1" + bytes(200))
    assert len(results.gather(tmp_path)) == 0 and "it is left out" in capsys.readouterr().err
    results.set_aside(trial)
    assert results.read_trial(trial) == [] and "its trial runs again" in capsys.readouterr().err


def test_settings_and_facts_that_are_damaged_have_a_copy(tmp_path, capsys):
    settings, facts, known = tmp_path / "config.yaml", tmp_path / "sweep.json", {"seeds": 6, "é": [0.1, None], "of": {"b": 1, "a": 2}}
    config_file.write(settings, config := toy_config(3))
    sealed.put_json(facts, known)
    text = sealed.read(settings)
    for position in flips(settings):
        try:
            assert sealed.read(settings) == text or sealed.SEAL not in settings.read_text("utf-8", "replace"), position
        except ValueError:
            assert sealed.read(sealed.whole_of(settings)) == text
    for position in flips(facts):
        assert sealed.read_json(facts) == known, position
    assert "its copy is used" in capsys.readouterr().err
    for file in (facts, sealed.copy_of(facts)):
        file.write_text(file.read_text().replace("6", "7", 1))
    with pytest.raises(sealed.Damaged, match="isn't as it was written"):
        sealed.read_json(facts)
    assert config.engine.zero_stage == 3


def test_settings_that_are_cut_off_do_not_pass_for_older_ones(tmp_path, capsys):
    """The seal stands in the last line: without it a file would be filled up with defaults, an empty one become another workload's."""
    settings = tmp_path / "config.yaml"
    config_file.write(settings, toy_config(3))
    whole, text = settings.read_bytes(), sealed.read(settings)
    for length in (0, 1, 20, len(sealed.HEAD), *range(60, len(whole) - 70, 97), len(whole) - 70):
        settings.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match="restore it from a copy"):
            config_file.load(settings)
        assert sealed.read(sealed.whole_of(settings)) == text
    assert "its copy is used" in capsys.readouterr().err
    cut = text[: len(text) // 2]  # of a version that sealed without a first line, and had copies
    settings.write_text(cut)
    assert sealed.read(sealed.whole_of(settings)) == text
    sealed.copy_of(settings).unlink()
    assert sealed.read(settings) == cut


def test_a_request_to_stop_is_no_link_to_somewhere_else(tmp_path):
    (tmp_path / "victim").write_text("kept")
    for target in ("victim", "nowhere", stop.STOP):
        (tmp_path / stop.STOP).unlink(missing_ok=True)
        (tmp_path / stop.STOP).symlink_to(target)
        stop.withdraw(tmp_path)
        stop.ask(tmp_path)
        assert stop.Asked(tmp_path)() and not (tmp_path / stop.STOP).is_symlink()
    for make in (os.mkfifo, os.mkdir):
        (tmp_path / stop.STOP).unlink()
        make(tmp_path / stop.STOP)
        stop.withdraw(tmp_path)
        assert (tmp_path / stop.STOP).is_file() and not stop.Asked(tmp_path)()
    assert (tmp_path / "victim").read_text() == "kept" and not (tmp_path / "nowhere").exists()


def test_a_folder_in_the_place_of_a_file_is_named_before_training(tmp_path):
    (tmp_path / "best.safetensors").mkdir()
    (tmp_path / "results.parquet").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=f"^resume={tmp_path}: best.safetensors in it is no file, .*; move it away$"):
        disk.check_files("resume", tmp_path, ("config.yaml", "results.parquet", "best.safetensors"))
    (tmp_path / "best.safetensors").rmdir()
    disk.check_files("resume", tmp_path, ("config.yaml", "results.parquet", "best.safetensors"))
    os.mkfifo(tmp_path / ".attempt")
    with pytest.raises(ConfigError, match=".attempt in it is no file"):
        disk.check_files("resume", tmp_path, (".attempt",))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_never_read(kind, tmp_path, capsys):
    """Reading a pipe waits for a writer, and a device may have no end."""
    make = {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind]
    readers = {
        "config.yaml": config_file.load,
        "sweep.json": sealed.read_json,
        "results.parquet": results.load,
        "best.safetensors": checkpoint.load_weights_file,
    }
    signal.alarm(30)
    for name, read in readers.items():
        make(tmp_path / name)
        with pytest.raises(ConfigError, match="no such file|is no file|isn't as it was written"):
            read(tmp_path / name)
    older, newer = saved(tmp_path / "run", 1), saved(tmp_path / "run", 2)
    for file in newer.iterdir():
        file.rename(tmp_path / "away")
        make(file)
        assert checkpoint.latest(tmp_path / "run") == older, file.name
        file.rmdir() if kind == "folder" else file.unlink()
        (tmp_path / "away").rename(file)
    signal.alarm(0)
    assert checkpoint.latest(tmp_path / "run") == newer


UNREADABLE = """
import sys
from pathlib import Path
from meltr_ray.config import file as config_file
from meltr_ray.results import table as results
from meltr_ray.training import checkpoint
readers = {"config.yaml": config_file.load, "results.parquet": results.load, "best.safetensors": checkpoint.load_weights_file, "checkpoints": checkpoint.latest}
for name, read in readers.items():
    try:
        print(name, read(Path(sys.argv[1]) / name))
    except PermissionError as error:
        print("refused", error.filename)
"""
POWERLESS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]  # root reads what it likes


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root, and no setpriv to give up its rights")
def test_what_may_not_be_read_is_neither_damaged_nor_missing(tmp_path):
    for name in ("config.yaml", "results.parquet", "best.safetensors"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0)
    saved(tmp_path / "checkpoints", 1)
    (tmp_path / "checkpoints").chmod(0)
    command = [*(POWERLESS if os.geteuid() == 0 else []), sys.executable, "-c", UNREADABLE, str(tmp_path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (tmp_path / "checkpoints").chmod(0o755)
    assert said.stdout.split("\n")[:4] == [
        f"refused {tmp_path / name}" for name in ("config.yaml", "results.parquet", "best.safetensors", "checkpoints")
    ], said


def test_files_without_a_seal_are_read_as_they_are(tmp_path):
    (tmp_path / "old.yaml").write_text("seed: 3\n")
    (tmp_path / "old.json").write_text('{"seeds": 6}')
    assert sealed.read(tmp_path / "old.yaml") == "seed: 3\n" and sealed.read_json(tmp_path / "old.json") == {"seeds": 6}
    older = saved(tmp_path, 1)
    (older / checkpoint.MARKER).write_text("")
    assert checkpoint.latest(tmp_path) == older
    table = pa.table({"step": [1]}, schema=pa.schema([("step", pa.int64())], metadata={"version": "2"}))
    pa.parquet.write_table(table, tmp_path / "old.parquet")
    assert results.load(tmp_path / "old.parquet").to_pylist() == [{"step": 1}]


@pytest.mark.parametrize("change, words", [
    (lambda w: w.to(torch.int8), "body.0.weight is int8 where the model has float32"),
    (lambda w: w.to(torch.complex64), "body.0.weight is complex64 where the model has float32"),
    (lambda w: w * float("nan"), "body.0.weight has a number that is not finite"), (lambda w: w[:2], "body.0.weight does not fit"),
])  # fmt: skip
def test_weights_of_another_kind_are_refused_by_name(change, words):
    model = toy()[0]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_weights(model, weights | {"body.0.weight": weights["body.0.weight"].half()}, Path("half"))  # a narrower float is one
    with pytest.raises(ConfigError, match=words):
        load_weights(model, weights | {"body.0.weight": change(weights["body.0.weight"])}, Path("other"))
    check_numbers({}, "nothing")


def test_a_folder_has_one_writer_until_it_dies(tmp_path):
    holder = "import sys, time, pathlib; from meltr_ray.storage.writers import only_writer\nwith only_writer(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"^resume=.*/run: process {process.pid} on .* writes it; wait until that has ended"):
            with only_writer(tmp_path / "run"):
                pass
    finally:
        process.kill()
        process.wait()
    with only_writer(tmp_path / "run"):
        pass


def test_a_later_attempt_shuts_out_an_earlier_one(tmp_path):
    first = Attempt(tmp_path)
    first.check()
    second = Attempt(tmp_path)
    second.check()
    with pytest.raises(ShutOut, match="attempt 2 writes .* now, and this is attempt 1"):
        first.check()
    shutil.rmtree(tmp_path)
    second.check()


def test_what_was_swapped_between_two_trials_is_found(tmp_path, capsys):
    """Whole files, each as it was written: tables, checkpoints, best weights."""
    columns = Columns.of(METRICS, LOSS_SET, {"seed": 0})
    for name in ("one", "two"):
        row = {"trial": name, "arm": "a", "phase": "single", "split": "validation", "status": "finished", "step": 1}
        results.append(tmp_path / "trials" / name, row | measured(30.0), columns)
    shutil.copy(tmp_path / "trials/one/results.parquet", tmp_path / "trials/two/results.parquet")
    assert results.gather(tmp_path)["trial"].to_pylist() == ["one"] and "is that of trial one; put it back" in capsys.readouterr().err
    results.set_aside(tmp_path / "trials/two")
    assert not results.is_final(tmp_path / "trials/two") and results.is_final(tmp_path / "trials/one")

    config = toy_config(0)
    checkpoint.check_facts(config, {"settings": checkpoint.settings(config)}, tmp_path / "two/checkpoints")
    with pytest.raises(ConfigError, match=r"^seed=0: the checkpoint in .*/two was made with 7"):
        checkpoint.check_facts(config, {"settings": checkpoint.settings(config) | {"seed": 7}}, tmp_path / "two/checkpoints")

    checkpoint.save_weights(tmp_path / "best.safetensors", toy()[0].state_dict(), {"trial": "one"})
    checkpoint.check_weights_of("one", tmp_path / "best.safetensors")
    with pytest.raises(ConfigError, match="has the weights of one; put those of two back"):
        checkpoint.check_weights_of("two", tmp_path / "best.safetensors")
