"""A sweep's screening: its plan, what is refused, and what the report says of trials whose effects are known."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter

import numpy as np
import pytest

from analysis import agreement, report, screening, tables
from meltr_ray.config import SweepConfig, to_flat
from meltr_ray.config.file import make
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from meltr_ray.results.columns import Columns
from meltr_ray.workload import Metric
from tests.notebooks import printed_by
from tune_spaces import designs, plan
from tune_spaces import screening as trials_of
from workloads import cli, growing

PRIMES = "workload=workloads/examples/primes.py:Primes"


def planned(*settings):
    request = cli.configure([*settings])
    return request.settings, request.config


@pytest.mark.parametrize("best", [("masked_joint",), ("masked_joint", "caption"), ()])
def test_no_trial_is_trained_twice(best):
    """Whatever was chosen; the corners are the baselines, and controls stand beside them alone."""
    settings, config = planned("experiment=screening", "losses.set=[joint,masked_joint,caption,constant,shuffled]",
                               "sweep.learning_rates=[1e-3,2e-3]", "sweep.confirm=[primary_only,uniform]")  # fmt: skip
    trials = [trial for phase in plan.phases(settings, config) for trial in phase.trials(plan.Known({"uniform": 1e-3}, best))]
    same = Counter(json.dumps(to_flat(trial.config), default=str, sort_keys=True) for trial in trials)
    assert set(same.values()) == {1} and len({trial.name for trial in trials}) == len(trials)
    screened = {trial.arm: trial.config.losses.set for trial in trials if trial.phase == "screening"}
    assert screened == {
        "primary_only": ["joint"], "with_masked_joint": ["joint", "masked_joint"], "with_caption": ["joint", "caption"],
        "uniform": ["joint", "masked_joint", "caption"], "primary_only_with_shuffled": ["joint", "shuffled"],
        "uniform_with_shuffled": ["joint", "masked_joint", "caption", "shuffled"],
    }  # fmt: skip
    assert {trial.config.optimizer.learning_rate for trial in trials if trial.phase == "screening"} == {1e-3}
    confirmed = {trial.arm for trial in trials if trial.phase == "confirmation"}
    assert confirmed == ({"best", "primary_only", "uniform"} if len(best) == 1 else {"best", "primary_only"} if best else set())
    seeds = {phase: {trial.config.seed for trial in trials if trial.phase == phase} for phase in ("screening", "confirmation")}
    assert not seeds["screening"] & seeds["confirmation"]
    assert [trial for trial in trials if trial.test] == [trial for trial in trials if trial.phase == "confirmation"]


@pytest.mark.parametrize("settings, rule", [
    ("losses.set=primary", "losses.set=[]: no auxiliary loss to screen"),
    ("losses.set=[prime,permuted,constant]", "losses.set=[]: no auxiliary loss to screen"),
    ("losses.set=[prime,digit] sweep.design=half", "sweep.design=half: is made for four auxiliary losses"),
    ("sweep.design=quarter", "sweep.design=quarter: unknown; use one of none, full, half"),
    ("sweep.margin=0", "sweep.margin=0.0: must lie between"),
    ("sweep.confirm=[meltr]", "sweep.confirm=meltr: no such arm"),
    ("experiment=primes sweep.design=full", "changes the loss set, which the design does"),
    ("sweep.space=[damping]", "sweep.space=['damping']: has no part in a screening"),
    ("sweep.other_seeds=3", "sweep.other_seeds=3: has no part in a screening"),
    ("experiment=compare sweep.looks=[6,9]", "sweep.looks=[6, 9]: has no part in a comparison of arms"),
    ("seed=998", "seed=998: seeds from 1000 on are those of searches"),
])  # fmt: skip
def test_a_screening_that_cannot_be_is_refused(settings, rule):
    with pytest.raises(ConfigError) as caught:
        plan.phases(*planned(PRIMES, *settings.split()))
    assert rule in str(caught.value) and "\n" not in str(caught.value)


def test_further_seeds_are_read_at_planned_looks_alone():
    settings, config = planned(PRIMES, "experiment=screening", "sweep.looks=[6,9]")
    before = {trial.name for trial in plan.phases(settings, config)[1].trials(plan.Known({}))}
    growing.look(settings, 9)
    after = {trial.name for trial in plan.phases(settings, make(settings))[1].trials(plan.Known({}))}
    assert before < after and len(after) == 1.5 * len(before)
    for seeds, rule in ((10, "use one of 9"), (6, "use one of 9")):
        with pytest.raises(ConfigError, match=rule):
            growing.look(settings, seeds)
    with pytest.raises(ConfigError, match="planned no further look"):
        growing.look(planned(PRIMES, "experiment=screening")[0], 9)
    with pytest.raises(ConfigError, match="sweep.seeds=6: is no planned look"):
        planned(PRIMES, "experiment=screening", "sweep.looks=[3,9]")


def test_another_look_may_choose_another_set():
    """Whose confirmation then is one of its own; the fresh seeds are the same."""
    settings, config = planned(PRIMES, "experiment=screening")
    last = plan.phases(settings, config)[-1]
    one, other = (
        [trial for trial in last.trials(plan.Known({"best_with_digit": 2e-3}, best)) if trial.arm == "best"]
        for best in (("digit",), ("norm",))
    )
    assert not {trial.name for trial in one} & {trial.name for trial in other}
    assert {trial.config.optimizer.learning_rate for trial in one} == {2e-3} != {trial.config.optimizer.learning_rate for trial in other}


METRICS = {"accuracy": Metric("%")}
EFFECTS = {"a": 4.0, "b": 0.0, "c": -3.0}


def write_screening(folder, metric=METRICS["accuracy"], seeds=6, confirmed=6, noise=0.3, diverges=(), drop=(), slopes=None, examples=0.0):
    """Trials of three losses and a control with the effects above, times the metric's direction; the best set is 4 better on test.

    `examples`: by how much the score of each trial differs from resample to resample, each its own way.
    """
    random, losses = np.random.default_rng(1), tuple(EFFECTS)
    design, sign, rows = designs.of("full", losses), 1 if metric.higher else -1, {}
    for row in design.rows:
        rows[trials_of.arm_of(row, losses)] = list(row)
    rows |= {"primary_only_with_shuffled": ["shuffled"], "uniform_with_shuffled": [*losses, "shuffled"]}

    def write(arm, seed, phase, chosen, level, test=None, slopes=()):
        status = "diverged" if (arm, seed) in diverges else "finished"
        columns = Columns.of({"accuracy": metric}, ["main", *chosen], {"seed": seed, "losses.set": ["main", *chosen], "losses.primary": "main",
                                                                       "optimizer.learning_rate": 1e-2, "train.num_workers": 0})  # fmt: skip
        base = {"trial": f"{phase}-{arm}-{seed}", "arm": arm, "phase": phase, "seconds": 1.0, "elapsed": 6.0, "step": 10, "best_step": 10}
        score = None if status == "diverged" else sign * level
        base |= {"resampled": random.normal(50, examples, 400)} if examples else {}
        results.append(
            folder / "trials" / base["trial"],
            base | {"split": "validation", "status": status, "score": score, "metric.accuracy": level} | dict(slopes),
            columns,
        )
        if test is not None:
            results.append(
                folder / "trials" / base["trial"],
                base | {"split": "test", "status": status, "score": sign * test, "metric.accuracy": test},
                columns,
            )

    for seed in range(seeds):
        luck = random.normal(0, 2)
        for arm, chosen in rows.items():
            if (arm, seed) not in drop:
                effect = sum({**EFFECTS, "shuffled": -8.0}[loss] for loss in chosen)
                write(arm, seed, "screening", chosen, 50 + sign * effect + luck + random.normal(0, noise))
        if slopes:
            write("meltr", seed, "screening", [*losses, "shuffled"], 50 + luck, slopes={f"slope.{loss}": a for loss, a in slopes.items()})
    for seed in range(2000, 2000 + confirmed):
        for arm, level in {"best": 4.0, "primary_only": 0.0}.items():
            write(arm, seed, "confirmation", ["a"] if level else [], 50.0, 50 + sign * level + random.normal(0, noise))
    about = {
        "metrics": {"accuracy": dataclasses.asdict(metric)}, "losses": {"primary": "main", "set": ["main", *losses, "shuffled"], "controls": ["shuffled"]},
        "best": ["a"] if confirmed else None, "confirmation": ["best", "primary_only"] if confirmed else [],
        "screening": {"kind": design.kind, "losses": list(losses), "rows": rows, "controls": ["shuffled"]},
    }  # fmt: skip
    (folder / "sweep.json").write_text(
        json.dumps(dataclasses.asdict(SweepConfig(design="full", seeds=seeds, arms={"meltr": {}} if slopes else {})) | about)
    )
    (folder / "baselines.json").write_text("{}")
    results.gather(folder)
    return folder


@pytest.mark.parametrize("higher", [True, False])
def test_the_report_says_what_is_so(higher, tmp_path):
    folder = write_screening(tmp_path, Metric("%", higher=higher))
    assert screening.best_set_of(folder) == ("a",)
    said = report.headline(folder)
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert lines["a"].endswith("   helps") and lines["c"].endswith("   harms") and lines["b"].endswith("makes no difference of 1.5 or more")
    assert lines["shuffled"].startswith("shuffled (control)") and lines["shuffled"].endswith("   harms")
    found = screening.screened(tables.load(folder)).found.effects
    assert [effect.average.mean for effect in found[:3]] == pytest.approx(list(EFFECTS.values()), abs=0.4)
    assert f"   {'+' if higher else '-'}4." in lines["a"] or f"   {'+' if higher else '-'}3." in lines["a"]  # the metric's own sign
    assert said.splitlines()[0].startswith("accuracy, validation, weight 1, rate 0.01, 6 seeds, 60 trials, 6 device-minutes")
    assert f"Best set: primary + a: {'+' if higher else '−'}4." in said or f"Best set: primary + a: {'+' if higher else '−'}3." in said
    page = report.write_report(folder).read_text()
    assert "Confirmation on fresh seeds" in page and '<tr class="helps">' in page and "What it cost" in page
    assert ("above 0, the loss helps; below 0, it harms" if higher else "below 0, the loss helps; above 0, it harms") in page
    assert (folder / "plots/effects.png").exists() and (folder / "plots/interactions.png").exists()
    assert page.count("data:image/png;base64") == len(list((folder / "plots").glob("*.png")))  # no figure that no section shows


@pytest.mark.parametrize("higher", [True, False])
def test_what_a_set_gave_in_the_screening_stands_beside_it_where_nothing_confirms_it(higher, tmp_path, monkeypatch):
    sign = "+" if higher else "−"
    said = screening.best_sentence(
        screening.screened(tables.load(write_screening(tmp_path / "one", Metric("%", higher=higher), confirmed=0)))
    )
    assert re.search(
        rf"primary \+ a; not confirmed on fresh seeds\. In the screening's own trials: \{sign}[34]\.\d \[.*\] over the primary alone\.$",
        said,
    ), said
    for c, together in ((-3.0, True), (-9.0, False)):  # all three: +1.0, or -5.0
        monkeypatch.setitem(EFFECTS, "c", c)
        one = screening.screened(tables.load(write_screening(tmp_path / f"{c}", Metric("%", higher=higher), confirmed=0)))
        monkeypatch.setattr(screening, "best_set", lambda found: ())
        said = screening.best_sentence(one)
        monkeypatch.undo()
        assert (
            said.startswith("Best set: train the primary alone")
            and (f"All losses together: {sign}1." in said or f"All losses together: {sign}0." in said) is together
        ), said


def test_what_a_learned_combination_said_stands_beside_the_effects(tmp_path):
    """It weighs the helpful loss up and one that harms down, and the control as much as the primary times 3: two of three."""
    folder = write_screening(tmp_path, slopes={"main": 2.0, "a": 4.0, "b": 2.0, "c": 0.5, "shuffled": 6.0})
    one = screening.screened(tables.load(folder))
    found = agreement.agreement(one, "meltr")
    assert found.ratio.to_dict() == {"a": 2.0, "b": 1.0, "c": 0.25, "shuffled": 3.0} and set(found.seeds) == {6}
    assert found.says.to_dict() == {"a": "more", "b": "as much", "c": "less", "shuffled": "more"}
    assert found.agrees.to_dict() == {"a": True, "b": None, "c": True, "shuffled": False}
    page = report.write_report(folder).read_text()
    assert "What MELTR said of them" in page and "MELTR agrees with the verdict on 2 of 3 losses that surely help or harm." in page


def test_what_other_examples_would_change_is_said(tmp_path):
    """Each trial for itself here: an average effect over 8 rows and 6 seeds moves by 1.96 x 6 / sqrt(12), the best set's by 1.96 x 6 / sqrt(3)."""
    said = report.headline(write_screening(tmp_path, examples=6.0))
    found = {
        loss: float(half) for loss, half in re.findall(r"(\w+) ±(\d+\.\d)", said.split("would move the effects by: ")[1].split(" (95 %")[0])
    }
    assert found == pytest.approx({"a": 3.4, "b": 3.4, "c": 3.4, "shuffled": 6.8}, rel=0.15)
    moved = re.search(r"Other test examples would move the first by ±(\d+\.\d)", said)
    assert float(moved[1]) == pytest.approx(6.8, rel=0.15)


def test_what_is_missing_or_diverged_is_said(tmp_path):
    diverges = [("with_c", 0), ("with_a_and_c", 1), ("uniform", 2)]
    folder = write_screening(tmp_path, diverges=diverges, drop=[("with_b", 3)], confirmed=0)
    said = report.headline(folder)
    assert "Diverged: 3 trials, each counted as" in said and "Every one of them trained with c: it makes training diverge." in said
    assert "Trials without a score: 1" in said and "not confirmed on fresh seeds" in said
    page = report.write_report(folder).read_text()
    assert (
        "with_b: 5 of 6 planned trials finished (1 not evaluated yet)." in page
        and "uniform: 5 of 6 planned trials finished (1 diverged)." in page
    )


def test_a_sweep_under_way_has_a_report(tmp_path):
    folder = write_screening(tmp_path, seeds=1, confirmed=0)
    assert "undecided: too few trials" in report.headline(folder) and screening.best_set_of(folder) == ()
    page = report.write_report(folder).read_text()
    assert page.count("data:image/png;base64") == len(list((folder / "plots").glob("*.png")))
    for path in (tmp_path / "trials").glob("*with*"):
        (path / "results.parquet").unlink()
    results.gather(folder)
    assert report.headline(folder) == "No seed of the screening is done yet, so no finding."
    report.write_report(folder)


def test_no_set_is_called_best_before_the_screening_is_done(tmp_path):
    folder = write_screening(tmp_path, seeds=4, confirmed=0)
    about = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(about | {"seeds": 6}))
    assert report.headline(folder).splitlines()[-1] == "Best set: open, as 4 of 6 seeds are done."


@pytest.mark.whole
def test_the_notebook_runs_on_a_screening(tmp_path, monkeypatch):
    folder = write_screening(tmp_path)
    monkeypatch.setenv("MELTR_SWEEP", os.fspath(folder))
    printed = printed_by("which_losses_help.ipynb")
    assert report.headline(folder) in printed
    by_hand = re.search(r"by hand ([+-][\d.]+), in the table ([+-][\d.]+)", printed)
    assert by_hand and by_hand[1] == by_hand[2]


@pytest.mark.whole
def test_the_baseline_notebook_leads_with_the_confirmed_set(tmp_path, monkeypatch):
    """Then its own arm against its baselines; here the same sweep, as no comparison is named."""
    folder = write_screening(tmp_path)
    monkeypatch.setenv("MELTR_SCREENING", os.fspath(folder))
    monkeypatch.delenv("MELTR_SWEEP", raising=False)
    printed = printed_by("compare_baseline.ipynb")
    assert printed.startswith(report.headline(folder).splitlines()[-1]) and printed.startswith("Best set: primary + a: +")
    by_hand = re.search(r"by hand (.+), in the table (.+)", printed)
    assert by_hand and by_hand[1] == by_hand[2] and "2000: " in printed
    assert report.headline(folder) in printed and "p by hand 0.0312, p of the report 0.0312" in printed
