"""No setting, whatever its value, ends otherwise than in one line or in a run that trains: drawn for every field there is."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import re
import typing

import pytest

from meltr_ray.bounds import bounds_of, numbers
from meltr_ray.config import Config, ConfigError
from meltr_ray.config.fields import fields
from meltr_ray.config.file import make
from meltr_ray.config.workload_file import find
from meltr_ray.training.rehearsal import check_all
from meltr_ray.training.run import run
from meltr_ray.video.settings import PrepareConfig
from meltr_ray.video.workload import Video
from meltr_ray.workload import Workload
from tests.commands import ROOT
from tests.commands import run as run_command
from tune_spaces import plan
from workloads import checks, cli

SOURCES = {
    "video": "video",
    "primes": f"{ROOT}/workloads/examples/primes.py:Primes",
    "noisy": f"{ROOT}/workloads/examples/noisy_labels.py:NoisyLabels",
}
WITHOUT_NUMBERS = ("losses.set", "task.loss_set", "checkpoint", "sweep.space")
"""Settings of any type that take names alone, or numbers of other settings, whose bounds they have."""
EXTREMES = [
    -1,
    0,
    1,
    10**6,
    2**31,
    2**64,
    10**30,
    -(2**63),
    1e-300,
    1e9,
    1e300,
    -1e300,
    math.inf,
    -math.inf,
    math.nan,
    "",
    "x\ny",
    "../x",
    "é #,=",
    True,
    [],
    {},
]
TINY = {"backbone.hidden_size": 16, "backbone.num_heads": 2, "backbone.feed_forward_size": 32, "train.batch_size": 4, "train.steps": 2, "train.evaluate_every": 2,
        "combiner.embedding_size": 16, "combiner.loss_encoder_size": 8, "combiner.feed_forward_size": 16}  # fmt: skip


def classes() -> list[type]:
    """Every class of settings."""
    found = [Config, PrepareConfig, *Video.groups.values(), *(kind for kind in Video.choices["backbone"].values())]
    for hint in typing.get_type_hints(Config).values():
        if dataclasses.is_dataclass(hint) and hint is not Workload:
            found.append(hint)
    return found


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_every_number_has_bounds(cls):
    """Or a new setting would take any: also those of any type, of which numbers may be a part."""
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        kind = str(hints[item.name])
        if re.search(r"\bint\b|\bfloat\b|^typing.Any$", kind) and not any(name.rpartition(".")[2] == item.name for name in WITHOUT_NUMBERS):
            bounds = bounds_of(item)
            assert bounds is not None, f"{cls.__name__}.{item.name}: declare it by bounded(default, low, high)"
            assert math.isfinite(bounds.low) and math.isfinite(bounds.high)
            for _, number in numbers(item.name, item.default if item.default is not dataclasses.MISSING else item.default_factory()):
                assert isinstance(number, bool) or bounds.low <= number <= bounds.high


def test_help_shows_them():
    assert "train.threads  (int, 1 to 1024, default 1)" in cli.help_text("", [])
    assert "workload.width  (int, 1 to 4096, default 64)" in cli.help_text("", [f"workload={SOURCES['primes']}"])
    assert "frames_per_second  (float, 0.001 to 1000, default 1.0)" in cli.help_text("", [], PrepareConfig)


@functools.cache
def settings_of(source: str, backbone: str = "univl"):
    more = {"video": [f"backbone={backbone}"], "primes": [], "noisy": ["experiment=noisy_labels"]}
    return cli.configure([f"workload={SOURCES[source]}", *more[source]]).settings


def cases() -> list[tuple[str, str, str]]:
    """(workload, backbone, field) of every setting, each once."""
    found = []
    for field in fields(Video):
        found.append(("video", field.choice or "univl", field.name))
    for source in ("primes", "noisy"):
        found += [
            (source, "", field.name)
            for field in fields(find(SOURCES[source]))
            if field.name.startswith("workload.") and field.name != "workload.source"
        ]
    return found


def values_of(name: str, choice: str) -> list[object]:
    """Extremes, and the ends of its bounds and what lies just beyond them."""
    bounds = next((field.bounds for field in fields(Video) if field.name == name and field.choice in ("", choice)), None)
    ends = [bounds.low, bounds.high, bounds.low - 1, bounds.high * 2 + 1] if bounds else []
    return [*EXTREMES, *ends, *([value] for value in (math.inf, 10**30, -1)), {"bert": math.nan}]


def attempt(source: str, backbone: str, changes: dict[str, object]) -> Config | str:
    """The configuration, or its one line; whatever else is raised fails the test."""
    try:
        config = make(settings_of(source, backbone), changes)
    except ConfigError as error:
        line = str(error)
        assert "\n" not in line and len(line) < 900 and re.match(r"[\w.]+=", line) and ";" in line, line
        return line
    return config


@pytest.mark.parametrize("source, backbone, name", cases())
def test_a_setting_is_refused_in_one_line_or_means_what_it_says(source, backbone, name):
    """Some of the extremes; the whole of them in the test below."""
    refused_or_meant(source, backbone, name, random.Random(name).sample(values_of(name, backbone), 6))


@pytest.mark.slow
@pytest.mark.parametrize("source, backbone, name", cases())
def test_a_setting_is_refused_whatever_extreme_it_takes(source, backbone, name):
    refused_or_meant(source, backbone, name, values_of(name, backbone))


def refused_or_meant(source, backbone, name, values):
    """In process, as an arm or a command sets it."""
    for value in values:
        config = attempt(source, backbone, {name: value})
        if isinstance(config, str):
            continue
        found = functools.reduce(getattr, (name if hasattr(config, name.partition(".")[0]) else f"workload.{name}").split("."), config)
        for _, number in numbers(name, found):
            assert math.isfinite(number) and abs(number) < 2**63, (value, number)


def tried(source: str, backbone: str, name: str, value: object, folder, digits_folder) -> str:
    """Two tiny steps, or the line that refuses them."""
    small = TINY if source == "video" else {key: value for key, value in TINY.items() if not key.startswith("backbone.")}
    if backbone in ("violet", "allinone"):
        small = {key: value for key, value in small.items() if not key.startswith("backbone.")}
    changes = small | ({"data.folder": str(digits_folder)} if source == "video" else {}) | {name: value}
    config = attempt(source, backbone, changes)
    if isinstance(config, str):
        return config
    config.train.use_gpu, config.train.num_workers, config.engine.zero_stage = False, 0, 0
    config.train.steps = min(config.train.steps, 2)
    try:
        checks.check_machine(config)
        checks.prepare(config)
        check_all([config])
    except ConfigError as error:
        return str(error)
    rows = []
    try:
        run(config, folder, rows.append)
    except ConfigError as error:  # a product by differences of such a length is wrong, which only a meta step can tell
        assert name == "aid.radius" and re.fullmatch(r"aid\.product=\w+: .*; use aid\.product=auto", str(error)), error
        return str(error)
    assert rows and rows[-1]["status"] == "finished" and math.isfinite(rows[-1]["score"])
    return "trained"


LONG = {"train.steps", "data.folder", "train.batch_size", "engine.deepspeed", "data.name", "output", "name"}
ENDS = [(source, backbone, name, end) for source, backbone, name in cases() for end in ("low", "high")
        if name not in LONG and (bounds := next((f.bounds for f in fields(Video) if f.name == name), None)) is not None]  # fmt: skip


DEAR = {(name, "high") for name in ("engine.gradient_accumulation", "backbone.num_layers", "aid.num_meta_batches", "aid.iterations")}
"""Half a minute each: among the slow ones below."""


@pytest.mark.parametrize("source, backbone, name, end", random.Random(5).sample([case for case in ENDS if case[2:] not in DEAR], 10))
def test_the_ends_of_bounds_train(source, backbone, name, end, tmp_path, digits_folder):
    bounds = next(field.bounds for field in fields(Video) if field.name == name)
    print(name, tried(source, backbone, name, getattr(bounds, end), tmp_path, digits_folder))


@pytest.mark.slow
@pytest.mark.parametrize("source, backbone, name, end", ENDS)
def test_all_ends_of_bounds_train(source, backbone, name, end, tmp_path, digits_folder):
    bounds = next(field.bounds for field in fields(Video) if field.name == name)
    print(name, tried(source, backbone, name, getattr(bounds, end), tmp_path, digits_folder))


@pytest.mark.parametrize("command, arguments, words", [
    ("train", ["optimizer.power=1e999"], "optimizer.power=inf: must lie between 0.001 and 100; lower it"),
    ("train", ["combiner.window=2000000000", "combiner.name=dwa"], "combiner.window=2000000000: must lie between"),
    ("train", ["name=a/b"], "is no name of a folder"),
    ("train", ["checkpoint=x"], "train.py makes nothing of it"),
    ("sweep", ["cluster="], "cluster=: is empty"),
    ("sweep", ["cluster=ray://head:10001"], "is an address of Ray Client"),
    ("train", ["cluster=127.0.0.1:1", "train.num_workers=2"], "nothing answers at"),
    ("sweep", ["output=hdfs://bucket/x"], "output=hdfs://bucket/x: hdfs isn't supported; give a folder, or s3://bucket/path or gs://"),
    ("prepare", ["output=s3://bucket/x", "checkpoint=x.pt"], "output=s3://bucket/x: prepare.py writes weights here alone; give a folder"),
    ("train", ["working_folder=x"], "working_folder=x: is of outputs in object storage, and output=outputs is a folder; leave it out"),
    ("train", ["data.folder=gs://bucket/x"], "data.folder=gs://bucket/x: gs isn't supported"),
    ("prepare", ["source=s3://bucket/x"], "source=s3://bucket/x: s3 isn't supported"),
    ("sweep", ["experiment=digits", "sweep.seeds=400", "seed=601"], "the last would be 1000"),
    ("sweep", ["sweep.baselines=[uniform,uniform]", "experiment=digits"], "has uniform twice"),
    ("sweep", ["experiment=digits", "sweep.other_seeds=1000"], "makes"),
    ("sweep", ["experiment=digits", "sweep.space=[solver,damping,gamma,rank,iterations,inner_steps,learning_rate]", "sweep.search=grid"], "and a sweep has 5000 at most"),
    ("prepare", ["split=test"], "prepare.py makes nothing of it"),
    ("train", ["resume=outputs/runs/x", "name=y"], "name=y: a resumed run stays in its folder; leave it out"),
    ("train", [f"workload={SOURCES['primes']}", "experiment=digits"], "experiment=digits: sets data, which this workload lacks; name the one that it is for"),
    ("prepare", ["source=[a]"], "source=[a]: data=digits, which is made and not imported, makes nothing of it; leave it out, or name the data set"),
    ("prepare", ["train.steps=5", "data=videos"], "train.steps=5: prepare.py makes nothing of it; leave it out"),
    ("train", ["data.held_out=0.2"], "data.held_out=0.2: train.py makes nothing of it; leave it out"),
    ("prepare", ["frames_per_second=1e-9"], "frames_per_second=1e-09: must lie between 0.001 and 1000"),
    ("train", ["seed=1", "seed=2"], "is given twice"),
])  # fmt: skip
def test_a_command_refuses_what_can_not_be_meant(command, arguments, words, tmp_path):
    code, output = run_command(command, *arguments, cwd=tmp_path)
    assert code == 2 and words in output and output.count("\n") == 1, output
    assert [path.name for path in tmp_path.iterdir()] == [f"{command}.out"]


def test_the_number_of_trials_is_bounded_before_they_are_made(monkeypatch):
    """And is no less than what is made."""
    from tune_spaces.size import most_trials

    for arguments in (
        ["experiment=digits"],
        ["experiment=digits", "sweep.add_one_in=true", "sweep.space=[damping]"],
        ["experiment=which_losses"],
    ):
        request = cli.configure(arguments)
        made = len(plan.all_trials(request.settings, request.config))
        assert made <= most_trials(request.config) <= 2 * made
    monkeypatch.setattr("tune_spaces.arms.make", None)
    request = cli.configure(["experiment=digits", "sweep.other_seeds=1000"])
    with pytest.raises(ConfigError, match="sweep.other_seeds=1000: makes"):
        plan.all_trials(request.settings, request.config)


@pytest.mark.parametrize("settings, words", [
    ({"workload.width": 2**70}, "must be a finite number of 64 bits"),
    ({"workload.noise": math.nan}, "must be a finite number"),
    ({"workload.noise": math.inf}, "must be a finite number"),
])  # fmt: skip
def test_settings_of_a_users_workload_are_finite(settings, words):
    with pytest.raises(ConfigError, match=words):
        make(settings_of("primes"), settings)
