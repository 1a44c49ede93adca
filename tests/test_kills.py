"""SIGKILL at random moments of a sweep: of a trial's process, of one of two machines, of the only one, of the driver on a cluster that stays.

Nothing is lost and nothing doubled, and a minute later no process is left that nobody waits for. The moments hang on KILLS_SEED.

    KILLS_SEED=7 pytest -m slow -s tests/test_kills.py
"""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from meltr_ray.storage.writers import ATTEMPT
from tests.commands import kill_all
from tests.ends import Ended, Marked, machines

if TYPE_CHECKING:
    from ray._private.node import Node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
KILLS, CHECKPOINT_EVERY, AT_ONCE = 3, 20, 2
ON_TWO_WORKERS = ("train.num_workers=2", "engine.zero_stage=2", "sweep.max_concurrent=1")
SEED = int(os.environ.get("KILLS_SEED", "0"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Ended:
    return Ended.whole(tmp_path_factory.mktemp("whole"))


def moments(kind: str) -> list[int]:
    """Steps of all trials together between two kills."""
    chance = random.Random(f"{SEED} {kind}")
    found = [chance.randint(20, 100) for _ in range(KILLS)]
    print(f"{kind}: seed {SEED}, kills after {found} steps")
    return found


def under(node: Node) -> set[int]:
    """Numbers of the processes that a machine of the cluster runs."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return {process.pid for process in raylet.children(recursive=True)}


def check(sweep: Ended, whole: Ended) -> None:
    sweep.assert_whole(whole)
    again = sweep.steps() - whole.steps()
    attempts = {trial.name: (trial / ATTEMPT).read_text() for trial in (sweep.folder / "trials").iterdir()}
    print(f"steps done twice: {again}, attempts: {attempts}")
    assert 0 <= again <= KILLS * AT_ONCE * (CHECKPOINT_EVERY + 1)


def test_of_a_trial(whole, tmp_path, monkeypatch):
    sweep, marked = Ended(tmp_path, checkpoint_every=CHECKPOINT_EVERY), Marked(monkeypatch, str(tmp_path))
    sweep.start()
    try:
        for steps in moments("trial"):
            sweep.until_steps(steps)
            victim = random.Random(steps).choice(marked.workers("ray::Implicit"))
            victim.send_signal(signal.SIGKILL)
        sweep.finish()
    finally:
        kill_all(sweep.process)
    check(sweep, whole)
    print(f"nothing is left of the sweep after {marked.gone(marked.alive):.1f} s")


def test_of_a_trial_and_of_a_worker_where_it_has_two(tmp_path, monkeypatch):
    """The trial's process holds Ray Train's controller: its workers end with it, and what they held is free for the trial's next attempt."""
    whole, sweep = Ended(tmp_path / "whole", ON_TWO_WORKERS), Ended(tmp_path / "killed", ON_TWO_WORKERS, CHECKPOINT_EVERY)
    whole.start()
    whole.finish()
    marked = Marked(monkeypatch, str(sweep.root))
    sweep.start()
    victims = ("ray::Implicit", "ray::RayTrainWorker")
    try:
        for victim, steps in zip(victims, moments("workers")):
            sweep.until_steps(steps)
            random.Random(steps).choice(marked.workers(victim)).send_signal(signal.SIGKILL)
        sweep.finish()
    finally:
        kill_all(sweep.process)
    sweep.assert_whole(whole)
    assert 0 <= sweep.steps() - whole.steps() <= 2 * len(victims) * (CHECKPOINT_EVERY + 1)
    print(f"nothing is left of the sweep after {marked.gone(marked.alive):.1f} s")


def test_of_the_only_machine(whole, tmp_path, monkeypatch):
    """Of all that Ray's raylet runs: the command ends as if the machine were taken away, and goes on when it is started again."""
    sweep, marked = Ended(tmp_path, checkpoint_every=CHECKPOINT_EVERY), Marked(monkeypatch, str(tmp_path))
    sweep.start()
    try:
        sweep.until_steps(moments("only machine")[0])
        raylet = next(process for process in psutil.Process(sweep.process.pid).children() if process.name() == "raylet")
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()
        assert sweep.process.wait(180) == 143 and "the cluster has no machine left" in sweep.said, sweep.said
        sweep.start()
        sweep.finish()
    finally:
        kill_all(sweep.process)
    check(sweep, whole)
    print(f"nothing is left of the sweep after {marked.gone(marked.alive):.1f} s")


def test_of_one_of_two_machines(whole, tmp_path, monkeypatch):
    marked = Marked(monkeypatch, str(tmp_path))
    with machines(0, 1, 1) as cluster:
        sweep = Ended(tmp_path, (f"cluster={cluster.address}",), CHECKPOINT_EVERY)
        sweep.start()
        try:
            for steps in moments("machine"):
                before = {node: sweep.steps(under(node)) for node in cluster.worker_nodes}
                sweep.until_steps(steps)
                at_work = [node for node, done in before.items() if sweep.steps(under(node)) > done]
                cluster.remove_node(random.Random(steps).choice(at_work), allow_graceful=False)
                cluster.add_node(num_cpus=1)
            sweep.finish()
        finally:
            kill_all(sweep.process)
        check(sweep, whole)
        print(f"no worker is left after {marked.gone(marked.workers):.1f} s")


def test_of_the_driver_on_a_cluster_that_stays(whole, tmp_path, monkeypatch):
    marked = Marked(monkeypatch, str(tmp_path))
    with machines(2) as cluster:
        sweep = Ended(tmp_path, (f"cluster={cluster.address}",), CHECKPOINT_EVERY)
        sweep.start()
        try:
            for steps in moments("driver"):
                sweep.until_steps(steps)
                kill_all(sweep.process)
                print(f"no worker is left after {marked.gone(marked.workers):.1f} s")
                sweep.start(f"cluster={cluster.address}")
            sweep.finish()
        finally:
            kill_all(sweep.process)
        check(sweep, whole)
        print(f"no worker is left after {marked.gone(marked.workers):.1f} s")
