"""Wrong input meets one line that names field, value and mend, exit code 2, nothing written; help documents everything."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf

from meltr_ray.config import Config, ConfigError, to_flat
from meltr_ray.config.fields import fields
from meltr_ray.config.file import make, read
from meltr_ray.video.workload import Video
from tests.commands import ROOT, run
from tune_spaces.aid import SPACE
from tune_spaces.arms import all_arms, comparison, learning_rate_search
from tune_spaces.search import combinations
from workloads import cli

WRONG = [
    ("aid.iteratons=3", "did you mean aid.iterations"),
    ("aid.iterations=many", "aid.iterations=many"),
    ("aid.iterations=0", "use aid.solver=identity"),
    ("losses.set=[joint,foo]", "losses.set=foo: unknown"),
    ("losses.set=[caption]", "lacks the primary loss; add joint"),
    ("losses.set=[joint,joint]", "names a loss twice"),
    ("data=nowhere", "use one of digits, mosei, mosi, msrvtt"),
    ("aid.solver=newton", "use one of identity, neumann, cg"),
    ("backbone.num_heads=7", "must divide backbone.hidden_size=64"),
    ("combiner.name=fixed combiner.weights=[1,2]", "one number per loss"),
    ("engine.zero_stage=4", "use 0, 1, 2 or 3"),
    ("engine.precision=half", "use one of float32, bfloat16"),
    ("aid.product=magic", "use one of auto, one_sided"),
    ("aid.solver=nystrom aid.damping=0", "needs it positive"),
    ("aid.adam=precondition", "makes nothing of it; use aid.adam=ignore"),
    ("aid.warm_start=true", "only aid.solver=cg starts warm"),
    ("combiner.name=fixed combiner.weights=[0,0,0,0,0]", "all zero"),
    ("optimizer.learning_rate=-1", "must lie between 1e-30 and 10; raise it"),
    ("backbone=bert", "use one of univl, violet, allinone"),
    ("backbone=allinone backbone.swin_depths=[2,2]", "no setting of backbone=allinone"),
    ("backbone=violet backbone.image_size=30", "must be a multiple of a patch, 8"),
    ("backbone=violet backbone.num_frames=7", "more than backbone.max_frames=6"),
    ("backbone=allinone data.max_words=41", "longer than backbone.max_position_embeddings=40"),
    ("backbone=violet losses.primary=joint", "use one of matching"),
    ("just-a-word", "write key=value"),
    ("experiment=aid", "sets workload.width, which this workload lacks; name the one that it is for"),
    ("sweep.arms.meltr.seed=1", "write them into a file, experiment=<file>.yaml"),
]


def configured(arguments):
    request = cli.configure(arguments)
    return request.settings, request.config


@pytest.mark.parametrize("argument, mend", WRONG)
def test_wrong_settings_meet_one_line(argument, mend):
    with pytest.raises(ConfigError) as caught:
        cli.configure(argument.split())
    assert (
        mend in str(caught.value)
        and "\n" not in str(caught.value)
        and argument.split()[-1].split("=")[0].split(".arms")[0] in str(caught.value)
    )


@pytest.mark.parametrize("command", ["train", "sweep", "evaluate", "prepare"])
def test_help_comes_at_once(command):
    """From a Python started anew, without what takes seconds to import."""
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "workloads" / f"{command}.py", "--help"], capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert shown.returncode == 0 and "aid.solver" in shown.stdout and "omegaconf" in imported
    assert not imported & {"torch", "ray", "deepspeed", "pandas", "sklearn", "scipy", "matplotlib"}


@pytest.mark.parametrize("command, argument", [
    ("sweep", "data.folder=missing data=msrvtt"), ("sweep", "resume=missing"), ("sweep", "train.num_workers=4096"),
    ("sweep", "sweep.space=[foo]"), ("sweep", "sweep.space=[aid.damping]"), ("train", "combiner.name=fixed combiner.slopes=simplex"), ("train", "resume=missing"), ("evaluate", "checkpoint=missing"), ("prepare", "data=msrvtt"),
    ("prepare", "data=msrvtt source=missing"),
    ("train", "checkpoint=x resume=missing"),
])  # fmt: skip
def test_a_command_ends_with_code_2_and_writes_nothing(command, argument, tmp_path):
    code, output = run(command, *argument.split(), cwd=tmp_path)
    assert code == 2 and output.startswith("error: ") and output.count("\n") == 1, output
    assert [path.name for path in tmp_path.iterdir()] == [f"{command}.out"]


def test_defaults_follow_the_settings_that_they_derive_from():
    """Made from the settings as given, by a command and by an arm: nothing is derived too early."""
    settings, config = configured(["combiner.mode=paper", "backbone=violet"])
    assert config.combiner.dropout == 0.1 and config.workload.backbone.hidden_size == 64 and config.losses.primary == "matching"
    changed = make(settings, {"backbone.size": "base", "combiner.mode": "near_sum", "losses.set": "controlled"})
    assert changed.combiner.dropout == 0 and changed.workload.backbone.hidden_size == 768
    assert changed.losses.set == ["matching", "masked_language", "masked_patch", "constant", "shuffled"]


def test_older_names_of_settings_stand_for_the_present_ones(tmp_path):
    """On the command line, in an arm, in a saved file; and the present name wins over an older one in a file."""
    settings, config = configured(["task.primary=align", "task.loss_set=[align,caption]", "data.prefetch=5"])
    assert (config.losses.primary, config.losses.set, config.train.prefetch) == ("align", ["align", "caption"], 5)
    assert make(settings, {"task.loss_set": "primary"}).losses.set == ["align"]
    old = {key: value for key, value in OmegaConf.to_container(settings).items() if key not in ("workload", "losses")}
    OmegaConf.save(old | {"task": {"primary": "joint", "loss_set": ["joint"]}}, tmp_path / "config.yaml")
    assert read(tmp_path / "config.yaml").losses.set == ["joint"]
    assert read(tmp_path / "config.yaml", ["losses.set=[joint,caption]"]).losses.set == ["joint", "caption"]


def test_help_documents_every_setting(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(lambda request: 0, "What it does.", ["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and all(f"  {name}  (" in shown for name in to_flat(Config(workload=Video())))
    assert all(field.text.endswith(".") for field in fields(Video) if field.name not in Video.groups)


ENDING = """
import atexit, ctypes, sys, threading, time
libc = ctypes.CDLL(None)
libc.on_exit(libc.abort, None)  # what a thread of a library may do where the interpreter ends by itself
atexit.register(print, "put away")
def main():
    threading.Thread(target=lambda: (time.sleep(0.1), print("waited for"))).start()
    print("done")
    sys.exit(int(sys.argv[1]))
if len(sys.argv) > 2:
    main()
from workloads.ending import as_process
as_process(main)
"""


@pytest.mark.parametrize(
    "arguments, code, said", [(["0"], 0, 3), (["2"], 2, 3), (["143"], 143, 1), (["0", "by itself"], -signal.SIGABRT, None)]
)
def test_nothing_changes_the_exit_code_of_a_command_whose_work_is_done(arguments, code, said):
    ended = subprocess.run([sys.executable, "-u", "-c", ENDING, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.returncode == code
    assert said is None or ended.stdout.splitlines() == ["done", "waited for", "put away"][:said]


@pytest.mark.parametrize("command", ["train", "sweep", "evaluate", "prepare"])
def test_a_command_whose_reader_has_gone_ends_quietly(command):
    arguments = [sys.executable, ROOT / "workloads" / f"{command}.py", "--help"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 128 + signal.SIGPIPE


OWN = """\
defaults: [compare, _self_]
sweep:
  baselines: [uniform, doubled]
  arms:
    doubled: {combiner.name: fixed, combiner.weights: [1, 2]}
"""


def test_an_experiment_may_be_a_file_anywhere(tmp_path):
    """It inherits from shipped ones; one with a shipped name is still the user's."""
    primes = [f"workload={ROOT}/workloads/examples/primes.py:Primes", "losses.set=[prime,digit]"]
    for name, text in (("mine.yaml", OWN), ("screening.yaml", f"# @package _global_\n{OWN}")):
        (tmp_path / name).write_text(text)
        sweep = cli.configure([*primes, f"experiment={tmp_path / name}", "sweep.seeds=3"]).config.sweep
        assert list(sweep.arms) == ["primary_only", "uniform", "meltr", "doubled"] and sweep.seeds == 3
        assert sweep.arms["doubled"]["combiner.weights"] == [1, 2] and sweep.baselines == ["uniform", "doubled"]


@pytest.mark.parametrize("text, words", [
    (None, "no such file; correct the path"), ("a: [1", "is no YAML of settings (while parsing a flow sequence); correct it"),
    ("defaults: [nope]", "Could not load 'experiment/nope'; correct it"),
    ("sweep: {seedz: 3}", "sets sweep.seedz, which is no setting of this workload or of a run; correct it"),
    ("seed: ${oc.create:1}", "calls oc.create; correct it"), ("sweep: {seeds: -1}", "sweep.seeds=-1: must lie between"), ("- 1", "holds no settings by name; correct it"),
])  # fmt: skip
def test_a_wrong_file_of_an_experiment_meets_one_line(text, words, tmp_path):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as line:
        cli.configure([f"experiment={path}"])
    assert (
        words in str(line.value) and "\n" not in str(line.value) and (f"experiment={path}: " in str(line.value) or "sweep.seeds" in words)
    )


def test_the_default_sweep_compares_what_it_promises():
    settings, config = configured([])
    trials = comparison(settings, config, {"meltr": 1e-3, "uniform": 4e-3})
    count = {arm: sum(t.arm == arm for t in trials) for arm in {t.arm for t in trials}}
    assert {"primary_only", "uniform", "meltr", "meltr_neumann", "meltr_cg", "meltr_small_set"} <= count.keys()
    assert count["meltr"] == count["uniform"] == count["primary_only"] >= 6
    assert {t.config.optimizer.learning_rate for t in trials if t.arm == "uniform"} == {4e-3}
    assert {t.config.optimizer.learning_rate for t in trials if t.arm == "meltr_cg"} == {1e-3}  # that of `ours`
    assert {t.arm for t in trials if t.test} == {"meltr", "uniform", "primary_only"}
    for loss in ("shuffled", "constant", "caption"):
        (reduced,) = {tuple(t.config.losses.set) for t in trials if t.arm == f"meltr_without_{loss}"}
        assert set(reduced) == set(config.losses.set) - {loss}
    searched = {arm: sorted(t.config.optimizer.learning_rate for t in learning_rate_search(settings, config, {}) if t.arm == arm)
                for arm in ("meltr", "uniform", "primary_only")}  # fmt: skip
    assert searched["meltr"] == searched["uniform"] == searched["primary_only"]
    assert not {t.config.seed for t in trials} & {t.config.seed for t in learning_rate_search(settings, config, {})}


def test_draws_are_those_of_ray_tune():
    """From one generator, each kind after the other, with 500 draws of each: the bounds themselves come up."""
    tune = pytest.importorskip("ray.tune")
    domains = {
        "solver": tune.choice(["identity", "neumann", "cg", "nystrom", "loss_space"]),
        "iterations": tune.randint(1, 11),
        "rank": tune.randint(2, 21),
        "damping": tune.loguniform(1e-3, 1.0),
        "inner_steps": tune.choice([1, 3, 5, 10]),
        "learning_rate": tune.loguniform(1e-4, 1e-2),
        "gamma": tune.loguniform(1e-3, 1.0),
        "meta_batch": tune.choice(["recent", "next", "held_out"]),
        "num_meta_batches": tune.choice([1, 2, 4]),
    }
    generator = np.random.RandomState(3)
    wanted = [{f"aid.{name}": domain.sample(random_state=generator) for name, domain in domains.items()} for _ in range(500)]
    drawn = list(itertools.islice(combinations(SPACE, seed=3), 500))
    assert drawn == wanted and {type(value) for one in drawn for value in one.values()} == {str, int, float}
    assert {one["aid.iterations"] for one in drawn} == set(range(1, 11)) and {one["aid.rank"] for one in drawn} == set(range(2, 21))


def test_a_search_adds_arms_to_those_that_are_derived():
    settings, config = configured(["sweep.space=[gamma,inner_steps]", "sweep.samples=3", "sweep.add_one_in=true"])
    arms = all_arms(settings, config)
    assert {f"meltr_search_{i}" for i in range(3)} | {"meltr_only_caption"} <= arms.keys()


def test_what_a_sweep_says_of_its_files_is_read_at_once_and_in_its_log(tmp_path):
    """Chatter is in the log alone."""
    program = (
        "from pathlib import Path; from meltr_ray.storage.saying import say; from workloads import cli\n"
        "with cli.chatter_to(Path('log.txt')): print('chatter', flush=True); say('a table is set aside')\n"
        "say('after it')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (ended.stdout, ended.stderr) == ("", "a table is set aside\nafter it\n")
    assert (tmp_path / "log.txt").read_text() == "chatter\na table is set aside\n"
