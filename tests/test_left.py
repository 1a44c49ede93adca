"""What an earlier start has left of a trial, damaged: the trial goes on or begins anew, and ends with the rows of one that nothing has touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from meltr_ray.cluster import sweep as phases
from meltr_ray.cluster.asking import places
from meltr_ray.cluster.left import check_settings
from meltr_ray.cluster.rungs import Rungs
from meltr_ray.cluster.sweep import check_tables, keep_best
from meltr_ray.cluster.trial import run_trial
from meltr_ray.cluster.tune import specification
from meltr_ray.config import own_file
from meltr_ray.config.workload_file import keep_text
from meltr_ray.results import table as results
from meltr_ray.storage import sealed
from meltr_ray.training import checkpoint
from tests.faults import attempt, written
from tune_spaces import plan
from tune_spaces.space_search import SpaceSearch
from workloads import beginning, cli

STEPS, KILLED = 10, 8
SMALL = ["workload=workloads/examples/primes.py:Primes", "experiment=compare", "losses.set=[prime,digit]", "workload.width=4", f"train.steps={STEPS}",
         "train.batch_size=8", "train.evaluate_every=2", "train.checkpoint_every=3", "sweep.leave_one_out=false", "sweep.learning_rates=[1e-3,1e-2]",
         "sweep.seeds=1", "sweep.other_seeds=1", "combiner.name=fixed"]  # fmt: skip
OF_TIME = ("time", "seconds", "meta_seconds", "elapsed", "peak_memory_bytes")
ONE, TWO = "uniform-lr0.001-seed1000", "uniform-lr0.01-seed1000"
TABLE, BEST, CHECKPOINTS = results.FILE, "best.safetensors", "checkpoints"


def asked(*more: str):
    request = cli.configure([*SMALL, *more])
    return request.settings, request.config, {trial.name: trial for trial in plan.all_trials(request.settings, request.config)}


def train(folder: Path, trial, config, until: int = STEPS) -> None:
    """Start `trial`, or go on with it, and kill it at an evaluation."""

    def report(row):
        if row["step"] == until < STEPS:
            raise KeyboardInterrupt

    try:
        run_trial(specification(trial, folder, config, {}), report)
    except KeyboardInterrupt:
        pass


def rows(trial: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in OF_TIME} for row in results.read_trial(trial)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A sweep of two trials, the first killed in the middle; the same of other settings; and the rows with which the first ends."""
    root, end = tmp_path_factory.mktemp("left"), {}
    for name, more in (("sweep", ()), ("other", ("workload.width=5",))):
        _, config, trials = asked(*more)
        for each, until in ((ONE, KILLED), (TWO, STEPS)):
            train(root / name, trials[each], config, until)
    shutil.copytree(root / "sweep", root / "whole")
    _, config, trials = asked()
    train(root / "whole", trials[ONE], config)
    end = rows(root / "whole/trials" / ONE)
    assert [row["step"] for row in end] == list(range(2, STEPS + 1, 2)) and end[-1]["status"] == "finished"
    return root, end


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(path: Path, by: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    (shutil.copytree if by.is_dir() else shutil.copy)(by, path)


DAMAGES = {  # -> what is done to the sweep, words of the line; None: nothing is lost, so nothing is said
    "nothing": (lambda sweep, one: None, None),
    "table cut off": (lambda sweep, one: cut(one / TABLE), f"set aside as {TABLE}.damaged, and its trial runs again"),
    "table gone": (lambda sweep, one: (one / TABLE).unlink(), f"{TABLE}: lacks the evaluation of step 2"),
    "older table": (lambda sweep, one: results.write(one / TABLE, results.load(one / TABLE).slice(0, 2)), f"{TABLE}: lacks the evaluation of step 6"),
    "table of another": (lambda sweep, one: replace(one / TABLE, sweep / "trials" / TWO / TABLE), f"is that of trial {TWO}"),
    "table of another sweep": (lambda sweep, one: replace(one / TABLE, sweep.parent / "other/trials" / ONE / TABLE),
                               f"{TABLE}: is of a trial with workload.width=5, where this one has 4"),
    "best cut off": (lambda sweep, one: cut(one / BEST), f"{BEST}: is gone or isn't as it was written"),
    "best of another": (lambda sweep, one: replace(one / BEST, sweep / "trials" / TWO / BEST), f"{BEST}: isn't of step"),
    "checkpoints of another": (lambda sweep, one: replace(one / CHECKPOINTS, sweep / "trials" / TWO / CHECKPOINTS), "optimizer.learning_rate=0.01, where"),
    "checkpoints gone": (lambda sweep, one: shutil.rmtree(one / CHECKPOINTS), "the checkpoints are gone; the trial begins anew"),
    "facts cut off": (lambda sweep, one: cut(one / CHECKPOINTS / "step-00000006/facts.json"), "step-00000006: facts.json isn't as it was written; an older one"),
    "settings of another": (lambda sweep, one: replace(one / "config.yaml", sweep / "trials" / TWO / "config.yaml"), None),
    "folder of another sweep": (lambda sweep, one: replace(one, sweep.parent / "other/trials" / ONE), "workload.width=5, where this one has 4"),
    "folder of another": (lambda sweep, one: replace(one, sweep / "trials" / TWO), "its trial runs again"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_trial_ends_as_if_nothing_had_been_damaged(name, killed, tmp_path, capfd):
    root, end = killed
    damage, words = DAMAGES[name]
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    _, config, trials = asked()
    sweep, one = tmp_path / "sweep", tmp_path / "sweep/trials" / ONE
    damage(sweep, one)
    check_tables(sweep, None)
    check_settings(sweep, [trials[ONE], trials[TWO]])
    train(sweep, trials[ONE], config)
    said = capfd.readouterr().err
    assert rows(one) == end and (words in said if words else str(one) not in said), said


def test_a_damaged_table_takes_its_rows_from_that_of_the_sweep(killed, tmp_path, capsys):
    """Unless that is of another sweep."""
    root, end = killed
    for gathered, words in (("whole", "what the sweep's own table has of it takes its place"), ("other", "its trial runs again")):
        results.gather(root / gathered)
        sweep = Path(shutil.copytree(root / "whole", tmp_path / gathered))
        shutil.copy(root / gathered / TABLE, sweep / TABLE)
        cut(sweep / "trials" / ONE / TABLE)
        check_tables(sweep, None)
        assert words in capsys.readouterr().err and rows(sweep / "trials" / ONE) == (end if gathered == "whole" else [])


def test_what_is_gone_is_named_with_what_becomes_of_it(killed, tmp_path, capsys):
    sweep = Path(shutil.copytree(killed[0] / "whole", tmp_path / "sweep"))
    results.gather(sweep)
    shutil.rmtree(sweep / "trials" / ONE)
    check_tables(sweep, None)
    assert capsys.readouterr().err == f"{sweep / 'trials' / ONE}: is gone; its trial runs again\n"
    settings, config, _ = asked("sweep.learning_rates=[]", "sweep.search=tpe", "sweep.space={workload.width: [4,8]}", "sweep.samples=2")
    search = SpaceSearch(settings, config, {})
    place = sweep / "trials" / search.names.replace("*", "0")
    place.mkdir()
    (place / TABLE).write_bytes(b"PAR1" + bytes(100))
    shutil.copytree(place, place.with_name(search.names.replace("*", "0 (copy)")))
    assert places(search, sweep) == [place]
    check_tables(sweep, search)
    assert f"set aside as {TABLE}.damaged, and another trial takes its place" in capsys.readouterr().err


def test_best_weights_or_settings_of_another_are_never_the_sweeps(killed, tmp_path, capsys):
    whole = killed[0] / "whole"
    best, other = sorted((ONE, TWO), key=lambda name: -max(row["score"] for row in rows(whole / "trials" / name)))
    for file in (BEST, "config.yaml"):
        sweep = Path(shutil.copytree(whole, tmp_path / file))
        replace(sweep / "trials" / best / file, sweep / "trials" / other / file)
        keep_best(sweep)
        assert checkpoint.weights_facts(sweep / "best" / BEST)["trial"] == other
        assert f"has those of {other}" in capsys.readouterr().err


def test_a_rung_that_was_passed_is_not_asked_again(killed, tmp_path):
    """From an older checkpoint a trial comes to it once more, and better ones have been there since."""
    sweep = Path(shutil.copytree(killed[0] / "whole", tmp_path / "sweep"))
    rungs, row = Rungs(sweep / "trials" / ONE, (2,), 2, "uniform-*"), {"split": "validation", "step": 2, "score": -1.0}
    assert rungs.why_stop(row) is None
    (sweep / "trials" / ONE / TABLE).unlink()
    assert rungs.why_stop(row).startswith("stopped at the rung of step 2: place 2 of 2")


def test_settings_and_facts_of_another_sweep_give_way_to_the_copies(tmp_path, capsys):
    for name, more in (("sweep", ()), ("other", ("sweep.seeds=3", "train.steps=20"))):
        settings, config, _ = asked(*more)
        phases.start(tmp_path / name, settings, config, name)
    for file in ("settings.yaml", "sweep.json"):
        shutil.copy(tmp_path / "other" / file, tmp_path / "sweep" / file)
    settings, config, folder = beginning.resumed(cli.configure([f"resume={tmp_path / 'sweep'}"]))
    assert (config.sweep.seeds, config.train.steps, own_file.facts(folder)["command"]) == (1, STEPS, "sweep")
    said = capsys.readouterr().err
    assert all(
        f"{file}: is that of another sweep, by config.yaml beside it; its copy is used" in said for file in ("settings.yaml", "sweep.json")
    )
    phases.start(folder, settings, config, "again")
    assert (
        own_file.facts(folder)["seeds"] == 1
        and (folder / "settings.yaml").read_bytes() == sealed.copy_of(folder / "settings.yaml").read_bytes()
    )


def test_the_kept_text_of_a_workload_has_a_copy(tmp_path, capsys):
    workload = attempt(written(tmp_path)).workload
    keep_text(workload, kept := tmp_path / "kept")
    for damage in (lambda path: path.write_text("flipped"), os.unlink):
        damage(kept / "mine.py")
        keep_text(workload, kept)
        assert (kept / "mine.py").read_bytes() == (tmp_path / "mine.py").read_bytes() and "it is written anew" in capsys.readouterr().err
