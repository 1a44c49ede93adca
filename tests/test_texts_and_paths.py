"""Texts stay as they were written, names stay inside their folder, and no path is written to before it was looked at."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from meltr_ray.config import ConfigError
from meltr_ray.config.file import load, make, read
from meltr_ray.config.file import write as write_config
from meltr_ray.config.paths import check_writable
from meltr_ray.config.yaml_file import read_yaml
from tests.commands import ROOT, run
from workloads import checks, cli
from workloads.prepare import PrepareConfig

TEXTS = ["2024_01", "1e3", "true", "0x10", "007", "1_000", "a b", "é", "naïve-Ω.v2", "a=b", "a,b", "x+y@z"]


@pytest.mark.parametrize("text", [*TEXTS, "null", "nan", "inf"])
def test_a_name_stays_as_it_was_written(text, tmp_path):
    config = cli.configure([f"name={text}"]).config
    assert config.name == text
    write_config(tmp_path / "config.yaml", config)
    assert read(tmp_path / "config.yaml").name == text and read(tmp_path / "config.yaml", [f"name={text}x"]).name == f"{text}x"


@pytest.mark.parametrize("text", [*TEXTS, "a#b", "C:\\x", "it's", 'say "x"', "[x]", "{x}", "a/b c/é", "back\\", "(x)", "%20", "*", "~/x"])
def test_a_path_stays_as_it_was_written(text):
    config = cli.configure([f"output={text}", f"data.folder={text}", f"data.vocabulary={text}"]).config
    assert (config.output, config.workload.data.folder, config.workload.data.vocabulary) == (text, text, text)
    own = cli.configure([f"source={text}", f"checkpoint={text}"], PrepareConfig).own
    assert own.source == text and (own.checkpoint == text or text == "[x]")


def test_quotes_are_taken_off_and_null_leaves_out():
    config = cli.configure(["name='a b'", 'data.vocabulary="null"', "sweep.budget=null"]).config
    assert (config.name, config.workload.data.vocabulary, config.sweep.budget) == ("a b", "null", None)
    own = cli.configure(["checkpoint=[a.bin,'b,é.bin']"], PrepareConfig).own
    assert own.checkpoint == ["a.bin", "b,é.bin"]


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "..",
        ".",
        "a/b",
        "/x",
        "a\\b",
        "-x",
        ".hidden",
        "a\nb",
        "a\tb",
        "a\x00b",
        "",
        " ",
        "a ",
        "x" * 141,
        "é" * 71,
        "a:b",
        "a*",
        "$HOME",
        "a;b",
    ],
)
def test_a_name_is_one_component_of_a_path(name):
    with pytest.raises(ConfigError, match=r"^name=.*; ") as caught:
        cli.configure([f"name={name}"])
    assert "\n" not in str(caught.value)


def test_an_arm_is_one_too():
    with pytest.raises(ConfigError, match="sweep.arms=../x: is no name of a folder"):
        from meltr_ray.config import SweepConfig

        SweepConfig(arms={"../x": {}}, ours="../x", baselines=[])


def test_what_can_not_be_read_shows_how_to_quote_it():
    with pytest.raises(ConfigError, match="losses.set=\\[a b,é\\]: can't be read; quote a text with such marks.*'a b'"):
        cli.configure(["losses.set=[a b,é]"])
    with pytest.raises(ConfigError, match="train.steps=é: can't be read; give a value of type int"):
        cli.configure(["train.steps=é"])


def test_a_folder_is_looked_at_before_it_is_made(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="file is a file, where a folder is needed"):
            check_writable("output", "file", folder)
    check_writable("output", "new", tmp_path / "new" / "er")
    assert not (tmp_path / "new").exists()
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(ConfigError, match="nothing can be written in"):
            check_writable("output", "locked", tmp_path / "locked" / "new")


@pytest.mark.parametrize("command, arguments, words", [
    ("train", ["output=taken"], "taken is a file"),
    ("sweep", ["output=taken/below", "plan_only=true"], "taken is a file"),
    ("prepare", ["data=digits", "data.folder=taken/d"], "taken is a file"),
    ("prepare", ["checkpoint=x", "export=taken/d"], "taken is a file"),
    ("train", ["name=../../victim"], "is no name of a folder"),
    ("train", ["resume=" + "r" * 5000], "is too long for a path"),
])  # fmt: skip
def test_commands_write_nothing_where_they_can_not(command, arguments, words, tmp_path):
    (tmp_path / "taken").write_text("x", encoding="utf-8")
    code, output = run(command, *arguments, cwd=tmp_path)
    assert code == 2 and words in output and output.count("\n") == 1, output
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{command}.out", "taken"])


def test_any_locale_will_do(tmp_path):
    """Names of other letters are written and shown, in ASCII's locale too."""
    (tmp_path / "vidéos").mkdir()
    ids = [f"fïlm{at}" for at in range(12)]
    rows = [{"video": name, "question": "où?", "answer": "là"} for name in ids]
    (tmp_path / "vidéos" / "captions.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(ROOT / "workloads" / "prepare.py"), "data=videos", "data.folder=données #1, x=y", "source=vidéos"],
                          cwd=tmp_path, env=environment, capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert "là" in (tmp_path / "données #1, x=y" / "answers.txt").read_text(encoding="utf-8")


FILES = [path for top in ("workloads", "tune_spaces", "analysis", "meltr_ray") for path in sorted((ROOT / top).rglob("*.py"))]


def test_every_text_file_is_opened_as_utf_8():
    """Else the locale decides: pathlib's and Python's own default."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                own = isinstance(node.func, ast.Name)
                mode = next((each.value for each in node.args[1:2] if isinstance(each, ast.Constant)), "r")
                is_text = (name in ("read_text", "write_text") and not own) or (name == "open" and own and "b" not in str(mode))
                assert not is_text or "encoding" in {each.arg for each in node.keywords}, f"{path}:{node.lineno}"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{here}: &{here} [{','.join([f'*{before}'] * 9)}]\n" for before, here in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize("content, words", [
    (BOMB, "by its aliases"),
    ("a: &a [*a]\n", "by its aliases"),
    ("a: " + "[" * 3000 + "]" * 3000, "is no YAML of settings"),
    ("a: {b: 1\n", "is no YAML of settings"),
    ("a: !!python/object/apply:os.system [true]\n", "is no YAML of settings"),
    ("- 1\n- 2\n", "holds no settings by name"),
    ("a: \udcff", "is no YAML of settings"),
    ("x: " + "y" * 5_000_000, "has more than 4 MiB"),
])  # fmt: skip
def test_settings_files_are_bounded(content, words, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match="^settings=") as caught:
        read_yaml(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_settings_files_are_read_as_before(tmp_path):
    shared = tmp_path / "a.yaml"
    shared.write_text("a: &x {b: 1}\nc: *x\nd: ${a.b}\n", encoding="utf-8")
    assert OmegaConf.to_container(read_yaml(shared), resolve=True) == {"a": {"b": 1}, "c": {"b": 1}, "d": 1}
    assert Path(shared).exists()


def chain(count: int, width: int) -> str:
    """Settings, each `width` times the one before, beginning with ten letters."""
    return "a0: xxxxxxxxxx\n" + "".join(f"a{n}: '" + f"${{a{n - 1}}}" * width + "'\n" for n in range(1, count))


def ref(number: int, count: int) -> str:
    """The same reference, `count` times in a list."""
    return ", ".join([f"'${{a{number}}}'"] * count)


REFERENCES = [
    (chain(12, 10), "stand for more than"),
    (chain(30, 1), "through more than"),
    ("a: x\nb: ${c}\nc: ${b}", "refers to itself"),
    ("a: {b: '${a}'}", "refers to itself"),
    ("a0: [1, 2, 3, 4, 5, 6, 7, 8]\n" + "".join(f"a{n}: [{ref(n - 1, 8)}]\n" for n in range(1, 8)), "stand for more than"),
    ("a: {b: xxxxxxxxxx, c: '" + "${.b}" * 100 + "', d: '" + "${..a.c}" * 100 + "'}", "stand for more than"),
    ("a: '" + "${b}" * 600 + "'\nb: x", "more than 2000 letters"),
    ("a: b\nb: x\nc: ${${a}}", "within a reference"),
    ("a: '${oc.decode:[1]}'", "calls oc.decode"),
    ("a: '${oc.create:[1]}'", "calls oc.create"),
    ("a: '${oc.create:{b: 1}}'", "within a reference"),
]  # fmt: skip


@pytest.mark.parametrize("content, words", REFERENCES, ids=range(len(REFERENCES)))
def test_references_are_counted_before_they_are_followed(content, words, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(content, encoding="utf-8")
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert words in str(caught.value) and "\n" not in str(caught.value) and ";" in str(caught.value) and len(str(caught.value)) < 400
    assert time.process_time() - started < 1


def test_references_that_are_meant_are_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", "there")
    path = tmp_path / "config.yaml"
    path.write_text(
        "a: {b: x, c: '${.b}/1', d: ['${a.b}', '${..c}']}\ne: '${a.d[1]}'\nf: '${oc.env:PLACE}/\\${a}'\ng: '${a}'\n", encoding="utf-8"
    )
    a = {"b": "x", "c": "x/1", "d": ["x", "x/1"]}
    assert OmegaConf.to_container(read_yaml(path), resolve=True) == {"a": a, "e": "x/1", "f": "there/${a}", "g": a}


def test_a_command_line_cannot_stand_for_more_than_settings_are():
    """Ten settings of text, each ten times the one before."""
    chained = [
        "output=" + "x" * 100,
        "name=" + "${output}" * 50,
        "data.vocabulary=" + "${name}" * 50,
        "data.folder=" + "${data.vocabulary}" * 50,
    ]
    for given in (chained, ["name=" + "${output}" * 30_000], ["name=${name}"], ["sweep.learning_rates=[${oc.create:'[1,2]'}]"]):
        started = time.process_time()
        with pytest.raises(ConfigError) as caught:
            cli.configure(given)
        assert "\n" not in str(caught.value) and ";" in str(caught.value) and time.process_time() - started < 3


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "1.2.3.4:99999", "somewhere", ":6379", "a:６３７９", "a..b:6379", "http://x"],
)
def test_a_cluster_that_is_not_there_is_told_before_anything_is_written(address):
    config = cli.configure([f"cluster={address}"]).config
    with pytest.raises(ConfigError, match="^cluster=.*; ") as caught:
        checks.check_cluster(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "sweep: 3\n",
        "train: [1]\n",
        "workload: 3\n",
        "train: {steps: {a: 1}}\n",
        "backbone: {name: [univl]}\n",
        "data: x\n",
        "losses: null\n",
    ],
)
@pytest.mark.parametrize("name", ["settings.yaml", "config.yaml"])
def test_a_folder_of_other_settings_is_refused(content, name, tmp_path):
    """As resume= and checkpoint= read it."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    for action in (lambda: cli.configure([f"resume={tmp_path}"]), lambda: make(load(tmp_path / name))):
        with pytest.raises(ConfigError) as caught:
            action()
        assert "\n" not in str(caught.value) and ";" in str(caught.value), caught.value
