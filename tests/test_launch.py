"""What stands in launch/ and docs/cluster.md is taken by those who read it: our command line, Ray, bash, SLURM."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests import slurm
from tests.ends import EVERY, STEPS, Ended, machines
from tests.forks import ENVIRONMENT, ROOT
from workloads import cli
from workloads.growing import GROWS, HOW_IT_RUNS

LAUNCH = ROOT / "launch"
SLURM, MACHINES, RAYJOB = (LAUNCH / name for name in ("slurm.sh", "machines.yaml", "rayjob.yaml"))
COMMAND = re.compile(r"(?:meltr-sweep|workloads/sweep\.py|launch/slurm\.sh)((?: +[\w.]+=[^\s;'\"`]+)+)")
"""And its settings."""


def lines() -> list[list[str]]:
    """Settings of every sweep that the files and the page start, with an address where an example stands."""
    text = " ".join(RAYJOB.read_text().split()) + "".join(path.read_text() for path in (SLURM, MACHINES, ROOT / "docs/cluster.md"))
    found = [re.sub(r"<[\w ]+>|\$\w+|\"", "there", each) for each in COMMAND.findall(re.sub(r"<[\w ]+>", "there", text))]
    return [shlex.split(each) for each in dict.fromkeys(found)]


@pytest.mark.parametrize("settings", lines(), ids=" ".join)
def test_our_command_line_takes_it(settings):
    request = cli.configure(settings)
    for key in request.given if request.config.resume else []:
        assert key in ("resume", *GROWS, *HOW_IT_RUNS)


def test_every_file_starts_a_sweep():
    assert all(COMMAND.search(" ".join(path.read_text().split())) for path in (SLURM, MACHINES, RAYJOB))
    assert len(lines()) >= 8


def test_ray_takes_the_file_of_machines():
    """By the schema of the Ray that is installed."""
    (ray,) = importlib.util.find_spec("ray").submodule_search_locations
    schema = json.loads((Path(ray) / "autoscaler/ray-schema.json").read_text())
    machines = yaml.safe_load(MACHINES.read_text())
    jsonschema.validate(machines, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(machines | {"head_start": []}, schema)
    used = machines["head_start_ray_commands"] + machines["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in each for each in used if " start " in each) and set(machines["file_mounts"]) == {
        "~/.ray/auth_token"
    }


def test_kubernetes_leaves_the_time_that_a_sweep_takes_to_stop():
    """And the image has the Ray that the manifest names."""
    job = yaml.safe_load(RAYJOB.read_text())["spec"]
    graces = {float(each) for each in re.findall(r"train\.grace=(\S+?);? ", job["entrypoint"])}
    cluster, (workers,) = job["rayClusterSpec"], job["rayClusterSpec"]["workerGroupSpecs"]
    (head,), (worker,) = ((pod["template"]["spec"]["containers"]) for pod in (cluster["headGroupSpec"], workers))
    waits = int({each["name"]: each["value"] for each in head["env"]}["RAY_JOB_STOP_WAIT_TIME_S"])
    stays = int(worker["lifecycle"]["preStop"]["exec"]["command"][1])
    assert len(graces) == 1 and max(graces) < min(waits, stays)
    for pod in (cluster["headGroupSpec"], workers):
        assert pod["template"]["spec"]["terminationGracePeriodSeconds"] > max(waits, stays)
    assert head["lifecycle"]["preStop"]["exec"]["command"][-1] == job["jobId"]
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_slurm_leaves_the_time_that_a_sweep_takes_to_stop():
    text = SLURM.read_text()
    (grace,), (before,) = re.findall(r"^grace=(\d+)", text, re.MULTILINE), re.findall(r"--signal=B:TERM@(\d+)", text)
    assert int(grace) < int(before) and "train.grace=$grace" in text
    subprocess.run(["bash", "-n", SLURM], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SLURM], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Ended:
    return Ended.whole(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not slurm.is_here(), reason="no slurm-wlm")
def test_slurm_starts_a_sweep_again_where_it_was_signalled(whole, tmp_path):
    """On two nodes; what goes on after the queue is bit-identical."""
    sweep = Ended(tmp_path)
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **ENVIRONMENT}
    with slurm.slurm(tmp_path) as queue:
        job = queue.call("sbatch", "--parsable", "--job-name=paced", "--nodes=2", "--cpus-per-task=1", SLURM, *sweep.prepared(),
                         **environment).strip()  # fmt: skip
        try:
            sweep.until_steps(EVERY + 10)
            queue.call("scancel", "--batch", "--signal=TERM", job)
            assert queue.until(job, "PENDING", "FAILED", "COMPLETED") == "PENDING"
            cut = [int(path.name.split("-")[1]) for path in sweep.folder.glob("trials/*/checkpoints/step-*")]
            queue.call("scontrol", "update", f"JobId={job}", "StartTime=now+15")  # which SLURM puts off by two minutes
            assert queue.until(job, "COMPLETED", "FAILED") == "COMPLETED"
        finally:
            print((tmp_path / f"slurm-{job}.out").read_text())
    assert [step for step in cut if 0 < step < STEPS], cut
    sweep.assert_whole(whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_of_ray_is_stopped_as_the_manifest_stops_it_and_goes_on(whole, tmp_path, monkeypatch):
    """The entrypoint and the hook of the manifest, on a cluster whose dashboard takes jobs."""
    sweep, job = Ended(tmp_path), yaml.safe_load(RAYJOB.read_text())["spec"]
    (head,) = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name, value in {**ENVIRONMENT, **{each["name"]: each["value"] for each in head["env"]}}.items():
        monkeypatch.setenv(name, value)
    begin = job["entrypoint"].replace("/shared/outputs", str(tmp_path / "outputs")).replace("big", "paced")
    own = re.compile(r"experiment=\S+( train\.(num_workers|use_gpu)=\S+| engine\.\S+)+")
    assert own.search(begin)
    begin = own.sub(lambda found: " ".join(each if "[" not in each else f"'{each}'" for each in sweep.prepared()), begin)
    with machines(1, 1, takes_jobs=True) as cluster:
        address = f"http://{cluster.webui_url}"
        stop = [each.replace("http://127.0.0.1:8265", address) for each in head["lifecycle"]["preStop"]["exec"]["command"]]

        def submit(*more: str) -> subprocess.CompletedProcess:
            return subprocess.run(
                ["ray", "job", "submit", f"--address={address}", *more, "--", *shlex.split(begin)], capture_output=True, text=True
            )

        deadline = time.monotonic() + 120
        while submit("--no-wait", f"--submission-id={job['jobId']}").returncode != 0:  # the agent that takes jobs isn't up yet
            assert time.monotonic() < deadline
            time.sleep(1)
        sweep.until_steps(EVERY + 10)
        subprocess.run(stop, check=True, capture_output=True)
        logs = subprocess.run(["ray", "job", "logs", f"--address={address}", job["jobId"]], capture_output=True, text=True).stdout
        assert f"interrupted; go on with: meltr-sweep resume={sweep.folder}" in logs and (sweep.folder / "report.html").exists(), logs
        cut = [int(path.name.split("-")[1]) for path in sweep.folder.glob("trials/*/checkpoints/step-*")]
        assert [step for step in cut if 0 < step < STEPS], cut
        again = submit()
    assert again.returncode == 0, again.stdout
    sweep.assert_whole(whole)
