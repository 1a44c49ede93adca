"""What a trial takes of a cluster: refused where no machines could ever give it, and placed as Ray's strategies say."""

from __future__ import annotations

import pytest
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
from safetensors.torch import load_file

from meltr_ray.cluster.placement import check_fits, holds, may_grow_to, needs, of_trial, of_worker, trials_on
from meltr_ray.config import Config, ConfigError
from meltr_ray.config.training import PLACEMENTS
from tests.commands import kill_all, run
from tests.ends import EVERY, Ended, machines
from tests.engine_toy import toy_config
from tests.test_kills import under
from workloads import checks, cli
from workloads.train import train

BIG, SMALL = {"CPU": 8.0, "GPU": 2.0, "accelerator_type:A100": 1.0, "memory": 1e9, "licence": 1.0}, {"CPU": 4.0, "memory": 1e9}


def config_of(**given: object) -> Config:
    config = toy_config(0)
    for name, value in given.items():
        setattr(config.train, name, value)
    config.train.__post_init__()
    return config


@pytest.mark.parametrize("train, line", [
    ({"threads": 9}, "train.threads=9: no machine of the cluster has more than 8 CPUs; lower it, or join another cluster"),
    ({"cpus_per_worker": 9}, "train.cpus_per_worker=9: no machine of the cluster has more than 8 CPUs; lower it"),
    ({"use_gpu": True, "accelerator": "H100"}, "train.accelerator=H100: the machines of the cluster have A100; give one of those"),
    ({"resources": {"licence": 2.0}}, "train.resources.licence=2: no machine of the cluster has more than 1 of it; lower it"),
    ({"resources": {"memory": 2e9}}, "train.resources.memory=2e+09: no machine of the cluster has more than 1e+09 of it; lower it"),
    ({"num_workers": 4, "use_gpu": True}, "train.num_workers=4: the cluster holds 2 workers of 1 CPU, 1 GPU; lower it"),
    ({"num_workers": 13}, "train.num_workers=13: the cluster holds 12 workers of 1 CPU; lower it"),
    ({"num_workers": 3, "placement": "STRICT_PACK", "threads": 3}, "train.placement=STRICT_PACK: no machine holds 3 workers, the largest 2; lower"),
    ({"num_workers": 3, "placement": "STRICT_SPREAD"}, "train.placement=STRICT_SPREAD: 3 machines are needed, and 2 can hold a worker; lower"),
])  # fmt: skip
def test_what_no_machines_can_hold_is_one_line(train, line):
    with pytest.raises(ConfigError) as refused:
        check_fits(config_of(**train), [SMALL, BIG])
    assert str(refused.value).startswith(line)


def test_a_cluster_without_gpus():
    with pytest.raises(ConfigError, match="^train.use_gpu=True: no machine of the cluster has a GPU"):
        check_fits(config_of(use_gpu=True), [SMALL])


@pytest.mark.parametrize("train", [
    {"threads": 8}, {"num_workers": 12}, {"num_workers": 3, "threads": 4, "placement": "SPREAD"}, {"num_workers": 8, "placement": "STRICT_PACK"},
    {"num_workers": 2, "threads": 4, "placement": "STRICT_SPREAD"}, {"num_workers": 2, "use_gpu": True, "accelerator": "A100"},
    {"resources": {"licence": 0.5, "memory": 1e9}},
])  # fmt: skip
def test_what_they_can_hold_is_not(train):
    check_fits(config_of(**train), [SMALL, BIG])


def test_machines_that_a_cluster_may_start_count():
    grows = ClusterConfig(node_group_configs=[NodeGroupConfig(name="head", max_count=1, resources={"CPU": 1}),
                                              NodeGroupConfig(name="big", max_count=-1, resources={"CPU": 16})])  # fmt: skip
    found = may_grow_to(grows, 3)
    assert found == [{"CPU": 1}] + 3 * [{"CPU": 16}] and may_grow_to(None, 3) == []
    assert holds(config_of(num_workers=3, threads=16), found) and not holds(config_of(threads=17), found)


def test_as_many_trials_run_at_once_as_fit():
    assert [trials_on(config_of(**each), [SMALL, BIG]) for each in ({}, {"threads": 5}, {"num_workers": 3}, {"use_gpu": True})] == [
        12,
        2,
        4,
        2,
    ]
    assert trials_on(config_of(), []) == 0


def test_what_ray_is_asked_for():
    config = config_of(use_gpu=True, accelerator="A100", cpus_per_worker=4, resources={"licence": 0.5})
    assert needs(config) == of_trial(config) == {"CPU": 4, "GPU": 1, "accelerator_type:A100": 0.001, "licence": 0.5}
    config.train.num_workers = 2
    assert of_worker(config) == needs(config) | {"CPU": 3.98} and of_trial(config) == {"CPU": 0.01}


@pytest.mark.parametrize("settings, words", [
    (["train.placement=NEAR"], f"train.placement=NEAR: unknown; use one of {', '.join(PLACEMENTS)}"),
    (["train.placement=SPREAD"], "train.placement=SPREAD: is for workers of one trial, of which there is one; leave it out"),
    (["train.resources={GPU:1}"], "train.resources.GPU=1.0: has a setting of its own; use train.use_gpu"),
    (["train.resources={licence:1.5}"], "train.resources.licence=1.5: Ray gives parts of 1, or whole numbers; round it"),
    (["train.accelerator=A100"], "train.accelerator=A100: is of workers with a GPU, by a name such as A100; set train.use_gpu=true"),
    (["train.cpus_per_worker=1000"], "train.cpus_per_worker=1000: this machine has"),
])  # fmt: skip
def test_what_no_cluster_could_mean_is_refused_at_once(settings, words):
    with pytest.raises(ConfigError) as refused:
        checks.check_machine(cli.configure(settings).config)
    assert str(refused.value).startswith(words)


def test_one_run_without_workers_asks_ray_for_nothing():
    with pytest.raises(ConfigError, match="^train.resources={licence:1}: one run without workers asks Ray for nothing; leave it out"):
        train(cli.configure(["train.resources={licence:1}"]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_trial_on_two_machines_is_bit_identical_to_the_same_on_one(tmp_path):
    """Two workers at ZeRO 3: one on each of two machines of a CPU each, and both on one of two CPUs."""
    sweeps = {}
    for placement, cpus in (("STRICT_PACK", (0, 2)), ("STRICT_SPREAD", (0, 1, 1))):
        with machines(*cpus) as cluster:
            sweep = sweeps[placement] = Ended(tmp_path / placement, ("train.num_workers=2", "engine.zero_stage=3", f"train.placement={placement}",
                                              "sweep.max_concurrent=1", f"cluster={cluster.address}"), last=2 * EVERY)  # fmt: skip
            sweep.start()
            try:
                sweep.until_steps(EVERY)
                at_work = [node for node in cluster.worker_nodes if sweep.steps(under(node)) > 0]
                sweep.finish()
            finally:
                kill_all(sweep.process)
        assert len(at_work) == len(cpus) - 1
    spread, whole = sweeps["STRICT_SPREAD"], sweeps["STRICT_PACK"]
    spread.assert_rows(whole)
    for trial in (whole.folder / "trials").iterdir():
        a, b = (load_file(folder / "trials" / trial.name / "best.safetensors") for folder in (spread.folder, whole.folder))
        assert a and a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a), trial.name


@pytest.mark.slow
def test_a_cluster_that_can_never_hold_a_trial_is_one_line(tmp_path):
    with machines(1, 1) as cluster:
        code, output = run(
            "sweep", *Ended(tmp_path / "sweep").prepared(), f"cluster={cluster.address}", "train.num_workers=3", cwd=tmp_path
        )
    assert code == 2 and "error: train.num_workers=3: the cluster holds 2 workers of 1 CPU; lower it" in output.splitlines()[-1], output
    assert "Traceback" not in output
