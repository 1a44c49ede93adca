"""Outputs in object storage: a real server of S3's protocol on loopback; what it has is a state to go on from at any moment."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from meltr_ray.cluster import mirror as mirrors
from meltr_ray.cluster.mirror import Mirror, mirrored
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from meltr_ray.results.columns import Columns
from meltr_ray.storage import claim as claims
from meltr_ray.storage import put, store
from meltr_ray.storage.address import parsed
from meltr_ray.storage.claim import Claim, Taken
from meltr_ray.storage.store import Store, opened
from meltr_ray.storage.twin import Twin, pulled
from meltr_ray.training import checkpoint
from tests.commands import kill_all, run, start
from tests.ends import Ended
from tests.forks import ENVIRONMENT, ROOT
from tests.object_storage import CREDENTIALS, SERVER, make, served
from tests.test_analysis import LOSS_SET, METRICS, measured

needs_server = pytest.mark.skipif(SERVER is None, reason="has no moto_server")
SEED = int(os.environ.get("KILLS_SEED", "0"))


@pytest.fixture(scope="module")
def options() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in CREDENTIALS.items():
            environment.setenv(name, value)
        with served() as found:
            yield found


@pytest.mark.parametrize("text, words", [
    ("hdfs://name/x", "hdfs isn't supported; give a folder, or s3://bucket/path or gs://bucket/path"), ("https://host/x", "https isn't"),
    ("abfs://c@account/x", "abfs isn't"), ("s3:/bucket/x", "names no bucket"), ("s3://", "names no bucket"), ("s3://b/../x", "has an empty name, . or .."),
    ("s3://b/a//x", "has an empty name"), ("s3://b/x#1", "has a #"), ("gs://b/" + "x/" * 500, "is a path of 999 bytes; shorten it to 800"),
])  # fmt: skip
def test_an_address_that_can_not_be_used_is_one_line(text, words):
    with pytest.raises(ConfigError) as refused:
        parsed("output", text)
    assert str(refused.value).startswith("output=") and words in str(refused.value)


def test_a_password_in_an_address_is_not_shown():
    with pytest.raises(ConfigError, match="has a password in it") as refused:
        parsed("output", "s3://key:secret@bucket/x")
    assert "secret" not in str(refused.value)


def test_addresses_are_written_as_they_are_read():
    for text in ("s3://bucket/a%20b/c?scheme=http", "gs://anonymous@bucket/x", "s3://bucket/%C3%A9"):
        address = parsed("output", text)
        assert str(address) == text and parsed("output", str(address / "name, 1")) == address / "name, 1"
    assert parsed("output", "s3://bucket/a%20b/").below("outputs") == Path("outputs/s3/bucket/a b")


@pytest.mark.parametrize("server", ["none", "silent"])
def test_storage_that_does_not_answer_is_one_line_in_time(server, monkeypatch):
    """Nothing listens, or what listens says nothing."""
    monkeypatch.setattr(store, "ANSWER_SECONDS", 8)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        if server == "none":
            listening.close()
        with pytest.raises(ConfigError, match="^output=s3://.*: can't be used"):
            opened("output", f"s3://bucket/x?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1")
    assert time.monotonic() - began < 10


class Cut(Exception):
    """In place of SIGKILL: nothing after it is sent."""


class Dying(Store):
    """Takes so many changes more."""

    left = 10**9

    def take(self) -> None:
        if self.left == 0:
            raise Cut
        self.left -= 1

    def send(self, file: Path, name: str) -> None:
        self.take()
        super().send(file, name)

    def delete(self, name: str) -> None:
        self.take()
        super().delete(name)


def step_of(trial: Path, step: int) -> None:
    """An evaluation with the best score so far, and then a checkpoint."""
    put(trial / "best.safetensors", f"weights of {step}")
    row = {"trial": trial.name, "arm": "a", "phase": "single", "split": "validation", "status": "running", "step": step, "best_step": step}
    results.append(trial, row | measured(30.0 + step), Columns.of(METRICS, LOSS_SET, {"seed": 0}))
    save_step(trial, step)


def save_step(trial: Path, step: int) -> None:
    checkpoint.save(trial / "checkpoints", step, 0, {"weights/w": torch.full((9,), float(step))}, {"cpu": torch.rand(3)}, {"progress": {"step": step}},
                    lambda: None)  # fmt: skip


def follower(folder: Path, text: str) -> Mirror:
    """Of a folder, as it is after its process was killed: nothing is known but what lies there."""
    found = opened("output", text)
    twin = Twin.of(folder) or Twin(text)
    dying, claim = Dying(found.address, found.system, found.base), Claim(found)
    claim.beat()
    twin.tokens = [claim.token]
    twin.keep(folder)
    twin.forget_missing(found.names())
    return Mirror(folder, twin, dying, claim)


@needs_server
def test_what_is_there_is_a_state_to_go_on_from_after_each_change(options, tmp_path):
    """Sent and cut off after 0, 1, 2... changes: a checkpoint is whole, and has the rows and the weights that it knows of."""
    folder, text, cuts = tmp_path / "here", f"s3://bucket/cut?{options}", 0
    for name in ("one", "two"):
        step_of(folder / "trials" / name, 1)
    put(folder / "settings.yaml", "seed: 0")
    assert follower(folder, text).sent() == ""
    for step in range(2, 5):
        step_of(folder / "trials/one", step)
        if step == 4:  # the same one again: a run that went on from the one before it, here alone
            save_step(folder / "trials/one", step)
        left, done = 0, False
        while not done:
            mirror = follower(folder, text)
            mirror.store.left = left
            try:
                done = mirror.sent() == ""
            except Cut:
                cuts += 1
            there = tmp_path / f"there-{step}-{left}"
            assert pulled("resume", opened("resume", text), there, ["settings.yaml"])
            for name in ("one", "two"):
                trial = there / "trials" / name
                found, rows = checkpoint.latest(trial / "checkpoints"), results.read_trial(trial)
                at = int(found.name.split("-")[1])
                assert at >= (step - 1 if name == "one" else 1) and rows[-1]["step"] >= at
                assert int((trial / "best.safetensors").read_text().split()[-1]) >= rows[-1]["best_step"]
            left += 1
        assert checkpoint.latest(there / "trials/one/checkpoints").name == f"step-{step:08d}"
    assert cuts > 15
    assert {name for name in opened("output", text).names() if "two" in name} == {
        f"trials/two/{name}"
        for name in ("best.safetensors", "results.parquet", *(f"checkpoints/step-00000001/{each}" for each in
                     ("COMPLETE", "facts.json", "rank-0.safetensors", "shared.safetensors")))
    }  # fmt: skip


@needs_server
def test_only_what_has_changed_is_sent(options, tmp_path, monkeypatch):
    sent: list[str] = []
    monkeypatch.setattr(Dying, "send", lambda self, file, name: (sent.append(name), Store.send(self, file, name)))
    step_of(tmp_path / "trials/one", 1)
    text = f"s3://bucket/changed?{options}"
    for change, names in ((lambda: None, 6), (lambda: None, 0), (lambda: put(tmp_path / "trials/one/best.safetensors", "weights of 1"), 0),
                          (lambda: put(tmp_path / "sweep.json", "{}"), 1)):  # fmt: skip
        change()
        sent.clear()
        assert follower(tmp_path, text).sent() == "" and len(sent) == names, sent


@needs_server
def test_one_writer_at_a_time(options, tmp_path, monkeypatch):
    for name, seconds in (("BEAT", 0.3), ("SILENT", 1.0), ("SETTLED", 0.2)):
        monkeypatch.setattr(claims, name, seconds)
    monkeypatch.setattr(mirrors, "BEAT", 0.3)
    text, ended = f"s3://bucket/claimed?{options}", []
    monkeypatch.setattr(os, "kill", lambda *signal: ended.append(signal))
    put(tmp_path / "one/settings.yaml", "seed: 0")
    twin = Twin(text)
    with pytest.raises(ConfigError, match="hasn't all that was written .process .* writes there now"):
        with mirrored(tmp_path / "one", twin) as first:
            first.begin()
            with pytest.raises(ConfigError, match="process .* writes there; wait until that has ended"):
                claims.Claim(first.store).look(set(twin.tokens))
            assert pulled("resume", first.store, tmp_path / "two", ["settings.yaml"])
            second = Claim(first.store)  # whoever takes it all the same
            second.take()
            deadline = time.monotonic() + 20
            while not ended and time.monotonic() < deadline:
                time.sleep(0.1)
            assert ended and first.taken
            with pytest.raises(Taken):
                first.claim.check()
    assert opened("output", text).read(".writer.json") and claims.said(first.store)["token"] == second.token
    with pytest.raises(ConfigError, match="has written there since these files were; go on with resume=s3://"):
        Claim(first.store).look(set(Twin.of(tmp_path / "one").tokens))
    assert pulled("resume", first.store, tmp_path / "one", ["settings.yaml"]) and (tmp_path / "one.before-1").exists()
    assert Claim(first.store).look({second.token}) == [second.token]  # which has been silent


PRIMES = [f"workload={ROOT}/workloads/examples/primes.py:Primes", "workload.width=4", "train.steps=40", "train.evaluate_every=10",
          "train.checkpoint_every=10", "name=one"]  # fmt: skip


@pytest.mark.whole
@needs_server
def test_a_run_in_a_bucket_is_scored_and_gone_on_with(options, tmp_path):
    """A name with a space; evaluate.py writes nothing here."""
    where = f"s3://bucket/a%20b?{options}"
    code, output = run("train", *PRIMES, f"output={where}", cwd=tmp_path)
    assert code == 0 and f"copied to s3://bucket/a%20b/runs/one?{options}" in output, output
    shutil.rmtree(tmp_path / "outputs")
    for command, setting in (("evaluate", "checkpoint"), ("train", "resume")):
        code, output = run(command, f"{setting}=s3://bucket/a%20b/runs/one?{options}", cwd=tmp_path)
        assert code == 0 and "accuracy" in output, output
        assert (tmp_path / "outputs").exists() == (command == "train")
    (tmp_path / "train.out").unlink()
    (tmp_path / "file").touch()
    for settings, words in ((["name=one"], "exists; go on with resume=s3://bucket/a%20b/runs/one?"), (["name=two", "working_folder=file"], "is a file, where a folder is needed")):  # fmt: skip
        code, output = run("train", *PRIMES[:-1], f"output={where}", *settings, cwd=tmp_path)
        assert code == 2 and words in output and output.count("\n") == 1, output
        (tmp_path / "train.out").unlink()


@pytest.mark.whole
@needs_server
def test_a_server_that_goes_away_ends_in_one_line_and_nothing_is_lost(tmp_path, monkeypatch):
    """The run itself goes on; what the bucket lacks, here all of it, is sent when it goes on."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with served() as options:
        process = start(
            "train", *[each for each in PRIMES if "steps" not in each], "train.steps=2000", f"output=s3://bucket/x?{options}", cwd=tmp_path
        )
        while "step 10/" not in (tmp_path / "train.out").read_text():
            assert process.poll() is None, (tmp_path / "train.out").read_text()
            time.sleep(0.05)
    try:
        assert process.wait(300) == 2
    finally:
        kill_all(process)
    said = (tmp_path / "train.out").read_text()
    assert "step 2000/2000" in said and "hasn't all that was written" in said and "Traceback" not in said, said
    port = int(options.partition("127.0.0.1:")[2].partition("&")[0])
    with served(port=port) as options:
        code, output = run("train", f"resume={tmp_path}/outputs/s3/bucket/x/runs/one", cwd=tmp_path)
        assert code == 0, output
        assert pulled("resume", opened("resume", f"s3://bucket/x/runs/one?{options}"), tmp_path / "there", ["config.yaml"])
    assert checkpoint.latest(tmp_path / "there/checkpoints").name == "step-00002000"
    assert results.read_trial(tmp_path / "there")[-1]["status"] == "finished"


@dataclass
class Stored(Ended):
    """A sweep whose folder here is lost whenever it is ended."""

    bucket: str = ""
    options: str = ""

    @property
    def folder(self) -> Path:
        return self.root / "outputs/s3" / self.bucket / "kept/sweeps/paced"

    @property
    def address(self) -> str:
        return f"s3://{self.bucket}/kept/sweeps/paced?{self.options}"

    def about(self) -> list[str]:
        if self.process:
            return [f"resume={self.address}"]
        return ["name=paced", f"output=s3://{self.bucket}/kept?{self.options}", *self.prepared()]

    def lose(self) -> None:
        """SIGKILL of the driver and all that it started, and the disk with it."""
        kill_all(self.process)
        shutil.rmtree(self.root / "outputs")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@needs_server
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sweep_killed_at_random_moments_goes_on_elsewhere(workers, options, tmp_path):
    """From the bucket alone; with two workers at ZeRO 3, each of which writes a file of every checkpoint."""
    settings = ("train.num_workers=2", "engine.zero_stage=3") if workers else ()
    whole, chance = Ended(tmp_path / "whole", settings), random.Random(f"{SEED} {workers}")
    whole.start()
    whole.finish()
    make(bucket := f"bucket-{workers}", options)
    sweep = Stored(tmp_path / "killed", settings, 20, bucket=bucket, options=options)
    sweep.start()
    try:
        for _ in range(2):
            sweep.until_steps(steps := chance.randint(20, 250))
            time.sleep(pause := chance.uniform(0, 3))
            there = opened("resume", sweep.address).names()
            print(
                f"killed after {steps} steps and {pause:.1f} s, with {len(there)} files there, {sum('COMPLETE' in each for each in there)} checkpoints"
            )
            sweep.lose()
            sweep.start()
        sweep.finish()
    finally:
        kill_all(sweep.process)
    shutil.rmtree(sweep.root / "outputs")
    pulled("resume", opened("resume", sweep.address), sweep.folder, ["settings.yaml"])
    sweep.assert_whole(whole)
    for name in ("report.html", "sweep.json", "best/best.safetensors", "baselines.json"):
        assert (sweep.folder / name).exists(), name


REFUSED = ["output=hdfs://name/x", "output=s3://nowhere/x?{options}", "resume=ftp://host/x", "resume=s3://bucket/nothing?{options}"]


@needs_server
@pytest.mark.parametrize("argument", REFUSED)
def test_what_can_not_be_used_is_refused_before_anything_is_written(argument, options, tmp_path):
    argument = argument.format(options=options)
    done = subprocess.run([sys.executable, str(ROOT / "workloads/sweep.py"), *(PRIMES[:2] if "output" in argument else []), argument], cwd=tmp_path,
                          env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=200)  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith(f"error: {argument[:20]}") and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())


@needs_server
def test_a_strangers_names_lead_nowhere_else(options, tmp_path):
    """A bucket may have any name of an object, and fetching one is writing a file."""
    text, place = f"s3://bucket/strange?{options}", options.partition("&")[0].partition("=")[2]
    opened("output", text).write("settings.yaml", b"seed: 0")
    request = urllib.request.Request(f"http://{place}/bucket/strange/%2e%2e/%2e%2e/evil", b"1", method="PUT")
    urllib.request.urlopen(request).close()
    with pytest.raises(ConfigError, match=r"^resume=s3://.*: can't be fetched \('\.\./\.\./evil' is no name of a file below a folder\)"):
        pulled("resume", opened("resume", text), tmp_path / "a/b", ["settings.yaml"])
    assert not list(tmp_path.rglob("evil*"))
