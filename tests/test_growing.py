"""What a sweep that goes on may have otherwise: each row of docs/growing.md. No trial is run."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from analysis.report import _grown
from analysis.tables import load
from meltr_ray.cluster import sweep as phases
from meltr_ray.cluster.trial import columns_of
from meltr_ray.config import to_flat
from meltr_ray.config.file import make
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from tune_spaces import plan
from workloads import beginning, cli
from workloads.growing import GROWS, HOW_IT_RUNS, grow

PRIMES = ["workload=workloads/examples/primes.py:Primes", "losses.set=[prime,digit]", "sweep.learning_rates=[]"]
COMPARED = [*PRIMES, "experiment=compare", "sweep.leave_one_out=false", "sweep.seeds=2", "sweep.other_seeds=1"]
KINDS = {
    "compared": COMPARED,
    "searched": [*COMPARED, "sweep.space={workload.width: [8,16,24,32]}", "sweep.samples=2"],
    "grid": [*COMPARED, "sweep.space={workload.width: [8,16]}", "sweep.search=grid"],
    "leaders": [*COMPARED, "sweep.leaders=1"],
    "screened": [*PRIMES, "experiment=screening", "sweep.looks=[2,3]", "sweep.seeds=2", "sweep.confirm=[]"],
}
ARMS = """# @package _global_
sweep:
  baselines: [{baselines}]
  arms:
    primary_only: {{combiner.name: fixed, combiner.weights: uniform, losses.set: primary}}
    uniform: {{combiner.name: fixed, combiner.weights: uniform}}
    meltr: {{aid.solver: {solver}}}
{more}
"""


@pytest.fixture(scope="module")
def asked() -> dict[str, cli.Request]:
    """Kind -> what it was started with."""
    return {kind: cli.configure(settings) for kind, settings in KINDS.items()}


def grown(request: cli.Request, given: str):
    """Its settings after `resume=... <given>`; those of the command line are read elsewhere."""
    name, _, text = given.partition("=")
    settings, config, value = request.settings.copy(), copy.deepcopy(request.config), yaml.safe_load(text)
    if name != "losses.set":
        OmegaConf.update(settings, name, value, merge=False)
    if name.startswith("sweep."):
        setattr(config.sweep, name.removeprefix("sweep."), value)
    old = request.settings.copy()
    grow(old, cli.Request(settings, config, {"resume": "folder", name: text}))
    return old


def started(request: cli.Request, folder: Path) -> Path:
    """A sweep that has a result."""
    phases.start(folder, request.settings, request.config, "")
    row = {"trial": "one", "arm": "meltr", "phase": "comparison", "split": "validation", "status": "finished", "step": 1, "score": 1.0}
    results.append(folder / "trials/one", row, columns_of(request.config))
    results.gather(folder)
    return folder


def names(settings, config) -> set[str]:
    return {trial.name for trial in plan.all_trials(settings, config)}


@pytest.mark.parametrize("kind, given, more", [
    ("compared", "sweep.seeds=3", {"meltr-seed2", "uniform-seed2", "primary_only-seed2"}),
    ("searched", "sweep.other_seeds=2", {"meltr_search_0-seed1", "meltr_search_1-seed1"}),
    ("searched", "sweep.samples=3", {"meltr_search_2-seed0"}),
    ("screened", "sweep.seeds=3", {"primary_only-seed2", "uniform-seed2"}),
])  # fmt: skip
def test_what_may_grow_does_and_nothing_else_changes(kind, given, more, asked):
    before, settings = asked[kind], grown(asked[kind], given)
    config = make(settings)
    assert names(settings, config) == names(before.settings, before.config) | more
    assert changed(before.config, config) == {given.partition("=")[0]}


def changed(before, after) -> set[str]:
    was, now = to_flat(before), to_flat(after)
    return {name for name in now if now[name] != was[name]}


@pytest.mark.parametrize("given", ["sweep.budget=9h", "sweep.max_concurrent=3", "sweep.progress_every=7", "train.grace=40", "cluster=auto"])
@pytest.mark.parametrize("kind", ["compared", "screened"])
def test_how_it_runs_may_be_anything(kind, given, asked):
    assert changed(asked[kind].config, make(grown(asked[kind], given))) == {given.partition("=")[0]}


@pytest.mark.parametrize("kind, given, words", [
    ("compared", "sweep.seeds=1", "sweep.seeds=1: this sweep has 2, and what it has trained stays; give more"),
    ("leaders", "sweep.seeds=9", "sweep.seeds=9: would choose the leaders anew"),
    ("screened", "sweep.seeds=8", "sweep.seeds=8: was no look that this sweep planned; use one of 2, 3"),
    ("screened", "sweep.other_seeds=4", "sweep.other_seeds=4: has no part in a screening"),
    ("searched", "sweep.samples=1", "sweep.samples=1: this sweep has 2"),
    ("grid", "sweep.samples=20", "sweep.samples=20: this sweep searches a grid, which has all of its configurations"),
    ("compared", "sweep.samples=20", "sweep.samples=20: this sweep searches no space"),
    *(("searched", f"{name}={value}", f"{name}={value}: a resumed sweep keeps its settings; leave it out or start a new sweep") for name, value in (
        ("sweep.learning_rates", "[1e-3]"), ("sweep.tuned_weights", "8"), ("sweep.budget_each", "5m"), ("sweep.space", "[aid.gamma]"), ("sweep.asha", "3"),
        ("sweep.confirmation_seeds", "9"), ("losses.set", "primary"), ("train.steps", "400"), ("workload.width", "8"))),
])  # fmt: skip
def test_what_would_make_it_another_sweep_is_refused(kind, given, words, asked):
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}"):
        grown(asked[kind], given)


def experiment(monkeypatch, tmp_path, baselines="uniform, primary_only", solver="identity", more=""):
    conf = tmp_path / "conf"
    conf.mkdir()
    for entry in Path(cli.CONF).iterdir():
        if entry.name != "experiment":
            (conf / entry.name).symlink_to(entry)
    (conf / "experiment").mkdir()
    for entry in (Path(cli.CONF) / "experiment").iterdir():
        (conf / "experiment" / entry.name).symlink_to(entry)
    (conf / "experiment/more.yaml").write_text(ARMS.format(baselines=baselines, solver=solver, more=more))
    monkeypatch.setattr(cli, "CONF", conf)


def test_an_experiment_brings_arms_that_the_sweep_lacks(monkeypatch, tmp_path, asked):
    before, folder = asked["compared"], started(asked["compared"], tmp_path / "sweep")
    experiment(
        monkeypatch, tmp_path, "decay, uniform, primary_only", more="    decay: {combiner.name: dwa}\n    slow: {aid.inner_steps: 9}"
    )
    settings, config, _ = beginning.resumed(cli.configure([f"resume={folder}", "experiment=more"]))
    assert config.sweep.baselines == ["uniform", "primary_only", "decay"]  # tested after those that were there
    assert names(settings, config) - names(before.settings, before.config) == {"decay-seed0", "decay-seed1", "slow-seed0"}


@pytest.mark.parametrize("kind, arms, words", [
    ("compared", {}, "experiment=more: has no arm that this sweep lacks"),
    ("compared", {"meltr": {"aid.solver": "cg"}}, "experiment=more: has the arm meltr otherwise than this sweep"),
    ("leaders", {"decay": {"combiner.name": "dwa"}}, "experiment=more: would choose the leaders anew"),
])  # fmt: skip
def test_an_experiment_that_changes_arms_is_refused(kind, arms, words, asked):
    request = asked[kind]
    config = copy.deepcopy(request.config)
    config.sweep.arms |= arms
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}"):
        grow(request.settings.copy(), cli.Request(request.settings, config, {"resume": "folder", "experiment": "more"}))


def test_the_report_says_what_was_added_after_results_were_there(tmp_path, asked):
    folder = started(asked["compared"], tmp_path)
    settings, config, _ = beginning.resumed(cli.configure([f"resume={folder}", "sweep.seeds=4"]))
    phases.start(folder, settings, config, "")
    phases.start(folder, settings, config, "")  # again, with nothing new
    (said,) = _grown(load(folder))
    assert said.startswith("The sweep was extended after results were known: sweep.seeds from 2 to 4 on ") and said.endswith(
        "intervals too short."
    )
    assert OmegaConf.load(folder / "settings.yaml").sweep.seeds == 4


def test_the_page_has_a_row_for_each_setting_that_grows():
    page = (Path(__file__).parents[1] / "docs/growing.md").read_text()
    assert all(f"`{name}" in page for name in (*GROWS, *HOW_IT_RUNS))
