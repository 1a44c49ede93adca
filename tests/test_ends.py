"""SIGTERM, Ctrl-C: a sweep's trials save the step where they stop, and what goes on from there ends bit-identical, no step done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from meltr_ray.training import checkpoint
from tests.commands import kill_all
from tests.ends import EVERY, STEPS, Ended, machines
from tests.forks import ENVIRONMENT, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
WORKERS = {"in its own process": (), "on two workers": ("train.num_workers=2", "engine.zero_stage=2", "sweep.max_concurrent=1")}


@pytest.fixture(scope="module", params=WORKERS)
def whole(request, tmp_path_factory) -> Ended:
    sweep = Ended(tmp_path_factory.mktemp("whole"), WORKERS[request.param])
    sweep.start()
    sweep.finish()
    return sweep


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_sweep_stops_at_a_saved_step_and_goes_on_from_there(whole, number, tmp_path):
    sweep, cut = Ended(tmp_path, whole.settings), []
    sweep.start()
    try:
        for steps in (EVERY + 10, STEPS):
            sweep.until_steps(steps)
            sent = time.monotonic()
            sweep.process.send_signal(number)
            assert sweep.process.wait(60) == 128 + number, sweep.said
            print(f"{number.name}: ended after {time.monotonic() - sent:.1f} s")
            assert f"resume={sweep.folder}" in sweep.said and "Traceback" not in sweep.said
            assert (sweep.folder / "report.html").stat().st_mtime > time.time() - 60
            saved = [checkpoint.latest(trial / "checkpoints") for trial in (sweep.folder / "trials").iterdir()]
            cut += [int(found.name.split("-")[1]) for found in saved if found]
            sweep.start()
        sweep.finish()
    finally:
        kill_all(sweep.process)
    assert [step for step in cut if 0 < step < STEPS], cut
    sweep.assert_whole(whole)
    assert sweep.steps() == whole.steps()


def test_a_second_signal_ends_at_once_and_a_short_grace_is_kept(whole, tmp_path):
    sweep = Ended(tmp_path, (*whole.settings, "train.grace=2"))
    sweep.start()
    try:
        sweep.until_steps(10)
        sweep.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        sweep.process.send_signal(signal.SIGTERM)
        assert sweep.process.wait(20) == 143, sweep.said
        assert f"resume={sweep.folder}" in sweep.said and "Traceback" not in sweep.said
        assert "the report was not written; resuming the sweep writes it\n" in sweep.said
    finally:
        kill_all(sweep.process)


def test_a_machine_that_will_be_taken_away_is_left_at_a_saved_step(whole, tmp_path):
    """By `ray drain-node`, as the providers of spot machines have it done; it is no failure, of which none is allowed here."""
    with machines(1, 1) as cluster:
        sweep = Ended(tmp_path, (*whole.settings, f"cluster={cluster.address}", "train.max_failures=0"))
        sweep.start()
        try:
            sweep.until_steps(EVERY)
            leaving = next(iter(cluster.worker_nodes))
            cluster.add_node(num_cpus=1)
            drain(cluster.address, leaving.node_id)
            sweep.until_saved()
            time.sleep(10)  # a notice leaves more
            cluster.remove_node(leaving, allow_graceful=False)
            sweep.finish()
        finally:
            kill_all(sweep.process)
    sweep.assert_whole(whole)
    assert sweep.steps() == whole.steps()


def drain(address: str, node: str) -> None:
    """Tell the cluster that a machine of it will be gone in five minutes."""
    about = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "300"]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node, *about],
                   check=True, cwd=ROOT, env=os.environ | ENVIRONMENT)  # fmt: skip
