"""A user's workload with a fault planted in it meets one line that says what, where and how to mend it, before a trial starts."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import meltr_ray
from meltr_ray.config.workload_file import find, keep_text, source_of
from meltr_ray.errors import ConfigError
from meltr_ray.results import table as results
from meltr_ray.training import checkpoint, splits
from meltr_ray.training.batches import Batches, MetaBatches
from meltr_ray.training.loader import Loader
from meltr_ray.training.loss_vector import LossVector, WithControl
from meltr_ray.training.overlap import overlap
from meltr_ray.training.tuning import prepare_for_tuning
from tests.commands import run
from tests.faults import DETACHED, DOC, EVALUATE, FAULTS, HEAD, METRIC, MINE, PREDICTED, attempt, written
from workloads import cli


@pytest.mark.parametrize("old, new, settings, words", FAULTS, ids=[re.sub(r"\W+", "_", f"{words}")[:60] for *_, words in FAULTS])
def test_a_fault_meets_one_line(old, new, settings, words, tmp_path):
    source = written(tmp_path, old, new)
    with pytest.raises(ConfigError) as caught:
        attempt(source, *settings.split())
    line = str(caught.value)
    assert words in line and "\n" not in line and re.match(r"[\w.]+=", line) and ";" in line, line


def test_what_a_module_has_frozen_stays_so_unless_it_is_named(tmp_path):
    frozen = "net = Net(self.width)\n        net.requires_grad_(False).head.weight.requires_grad_(True)\n        return net"
    source = written(tmp_path, "return Net(self.width)", frozen)
    for settings, trained in [((), {"head.weight"}), (("tuning.frozen=[head]", "tuning.trained=[body.bias]"), {"body.bias"})]:
        config = cli.configure([f"workload={source}", *settings]).config
        prepare_for_tuning(module := config.workload.module(), config)
        assert {name for name, p in module.named_parameters() if p.requires_grad} == trained


def test_a_layer_whose_passes_move_its_buffers_is_no_fault(tmp_path):
    """Spectral normalisation takes a step of its power iteration in each; a parameter that a pass moves is one."""
    spectral = "self.body, self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(3, width)), nn.Linear(width, 2)"
    for solver in ("identity", "cg"):
        attempt(written(tmp_path, "self.body, self.head = nn.Linear(3, width), nn.Linear(width, 2)", spectral), f"aid.solver={solver}")
    clamped = written(
        tmp_path, '        x = batch["x"]\n', '        x = batch["x"]\n        self.head.weight.data.clamp_(-0.01, 0.01)\n', "clamped.py"
    )
    with pytest.raises(ConfigError, match="changes the module's weights"):
        attempt(clamped)


CONTROL = "    def control(self, batch, generator): return batch | {'y': torch.tensor(generator.permutation(batch['y'].numpy()))}\n"
TARGETS = [
    (
        '{"x": torch.tensor(x + 0.1 * generator.standard_normal(x.shape).astype(np.float32))}',
        "{kind}(x=torch.tensor(x), y=torch.tensor(x.sum(1)))",
    ),
    ('(out[:, 0] - x.sum(1)).square().mean(), "size"', '(out[:, 0] - batch["y"]).square().mean(), "size"'),
    ("import torch\nfrom torch import nn\n", "import torch\nfrom torch import nn\nfrom collections import UserDict\n"),
]


@pytest.mark.parametrize("kind", ["dict", "UserDict"])
@pytest.mark.parametrize("start", ["", "; nn.init.zeros_(self.head.weight)"], ids=["drawn", "constant"])
def test_a_control_that_permutes_targets_is_one_whatever_the_batch_and_the_first_predictions(kind, start, tmp_path):
    """A head of zeros predicts the same for all, so permuted targets have the same loss."""
    text = MINE.replace(DOC, DOC + CONTROL).replace("nn.Linear(width, 2)\n", f"nn.Linear(width, 2){start}\n")
    for old, new in TARGETS:
        assert text.count(old) == 1, old
        text = text.replace(old, new.replace("{kind}", kind))
    (tmp_path / "mine.py").write_text(text)
    attempt(f"{tmp_path}/mine.py:Mine", "losses.set=controlled")
    (tmp_path / "same.py").write_text(text.replace("generator.permutation(batch['y'].numpy())", "batch['y'].numpy()"))
    with pytest.raises(ConfigError, match="control gave the batch as it is"):
        attempt(f"{tmp_path}/same.py:Mine", "losses.set=controlled")


def test_without_a_fault_there_is_no_line(tmp_path):
    config = attempt(written(tmp_path), "workload.width=8", "losses.set=controlled", "engine.zero_stage=3")
    assert config.workload.width == 8 and config.losses.set == ["total", "size", "constant"]


@pytest.mark.parametrize("settings", [
    "aid.solver=cg aid.adam=fixed_point aid.iterations=1000 aid.warm_start=true", "aid.solver=nystrom aid.rank=1000", "aid.product=double_backward", "aid.solver=cg engine.zero_stage=3",
    "aid.solver=neumann aid.hessian_product=gauss_newton combiner.slopes=non_negative", "aid.solver=cg engine.zero_stage=3 aid.hessian_product=central",
])  # fmt: skip
def test_products_that_are_right_are_rehearsed_and_pass(settings, tmp_path):
    attempt(written(tmp_path), *settings.split())


SOURCES = [  # the source setting, words of the line
    ("nowhere.py:Mine", "no such file; correct the path"),
    ("nowhere:Mine", "doesn't import: ModuleNotFoundError"),
    ("my-own.py:Mine", "my-own can't be the name of a Python module; rename the file"),
    ("numbers.py:Mine", "numbers is the name of another module"),
    ("two.py", "holds 2 workloads (Mine, Other); name one, as in"),
    ("none.py", "holds 0 workloads (none)"),
    ("two.py:np", "np is no workload"),
    ("two.py:Workload", "Workload is no workload"),
    ("just words", "no workload; give file.py:Class, or one of video"),
]


@pytest.mark.parametrize("source, words", SOURCES)
def test_a_source_that_leads_nowhere_meets_one_line(source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my-own.py", "numbers.py", "two.py"):
        written(tmp_path, name=name)
    (tmp_path / "none.py").write_text("import numpy as np\n")
    with open(tmp_path / "two.py", "a") as file:
        file.write("\n\nclass Other(Mine):\n    pass\n")
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        find(source)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"workload={source}")


def test_a_class_may_import_what_lies_beside_it_and_be_part_of_a_package(tmp_path, monkeypatch):
    package = tmp_path / "parcel"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "net.py").write_text(MINE)
    (package / "inside.py").write_text("from .net import Mine as Base\n\n\nclass Inside(Base):\n    depth: int = 1\n    '''Layers.'''\n")
    written(tmp_path, name="beside.py")
    (tmp_path / "mine.py").write_text("from beside import Mine as Base\n\n\nclass Mine(Base):\n    pass\n")
    assert attempt(f"{tmp_path}/mine.py").losses.set == ["total", "size", "constant"]
    monkeypatch.syspath_prepend(tmp_path)
    config = attempt("parcel.inside:Inside", "workload.depth=2", "workload.width=3")
    assert (config.workload.depth, config.workload.width, source_of(type(config.workload))) == (2, 3, "parcel.inside:Inside")


def test_splits_that_are_not_there_are_split_off_and_the_report_says_so(tmp_path):
    workload = attempt(written(tmp_path)).workload
    parts = {split: [tuple(x) for x in splits.examples(workload, split)] for split in splits.SPLITS}
    assert [len(parts[split]) for split in splits.SPLITS] == [160, 20, 12, 20]
    assert len({x for part in parts.values() for x in part}) == 212  # none is in two of them
    assert [line.split()[4] for line in splits.said(workload)] == ["meta", "test"]


def test_a_workload_comes_out_of_a_pickle_as_it_was(tmp_path):
    workload = attempt(written(tmp_path), "workload.width=7", "losses.set=[total]").workload
    workload.held = lambda: "what an instance holds stays behind"
    again = pickle.loads(pickle.dumps(workload))
    assert again == workload and (again.loss_set, again.primary) == (["total"], "total") and not hasattr(again, "held")


def test_worker_processes_make_the_same_batches(tmp_path):
    """Found by the file's name in a process that has never seen it."""
    source, command = written(tmp_path), ["train.batch_size=8", "train.steps=4", "train.evaluate_every=2"]
    weights = []
    for workers in (0, 1):
        code, output = run("train", f"workload={source}", *command, f"train.loader_workers={workers}", f"name=w{workers}", cwd=tmp_path)
        assert code == 0 and "best validation error" in output, output
        weights.append(load_file(tmp_path / f"outputs/runs/w{workers}/best.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    (tmp_path / "mine.py").write_text(MINE.replace("0.1, self.training", "0.2, self.training"))
    code, output = run("train", "resume=outputs/runs/w0", cwd=tmp_path)
    assert code == 2 and output.splitlines()[-1].startswith("error: workload=") and "the file has changed since" in output
    assert (tmp_path / "outputs/runs/w0/workload/mine.py").read_text() == MINE


def test_batches_and_their_controls_reach_the_module_as_they_were_made(tmp_path):
    """A tuple with an array, and the same with targets of other examples: torch's loader would make lists and tensors of them."""
    batch = "x = np.stack(examples)\n        return (x, {'x': torch.tensor(x)})\n\n    def unused(self, x, generator):"
    text = MINE.replace(DOC, DOC + "    def control(self, batch, generator): return batch[0][::-1], {'x': 2 * batch[1]['x']}\n")
    text = text.replace("x = np.stack(examples)", batch).replace('batch["x"]', 'batch[1]["x"]')
    (tmp_path / "mine.py").write_text(text)
    config = attempt(f"{tmp_path}/mine.py:Mine", "losses.set=controlled")
    train = Batches(config.workload, "train", 8, 0)
    ((micro, _),) = Loader(MetaBatches("next", train, None), lambda step: None, 0, 1)
    (batch, control), (same, _) = micro[0], train[0]
    assert isinstance(micro[0], WithControl) and isinstance(batch, tuple) and isinstance(batch[0], np.ndarray)
    assert np.array_equal(batch[0], same[0]) and np.array_equal(control[0], batch[0][::-1])


def test_an_evaluation_may_go_by_slices_of_what_it_is_given(tmp_path):
    """More validation examples than the rehearsal takes, and a test split that is split off: neither is the workload's own sequence."""
    by_parts = "examples = [one for k in range(0, len(examples), 5) for one in examples[k : k + 5]]\n        "
    text = MINE.replace('"validation": 12', '"validation": 90').replace(METRIC, by_parts + METRIC)
    (tmp_path / "mine.py").write_text(text)
    workload = attempt(f"{tmp_path}/mine.py:Mine").workload
    part = splits.examples(workload, "test")
    assert np.array_equal(np.stack(list(part[3:7])), np.stack([part[k] for k in range(3, 7)])) and len(part[::2]) == (len(part) + 1) // 2


def test_what_prepare_keeps_on_the_workload_is_not_there_in_a_worker_and_so_not_here(tmp_path):
    source = written(tmp_path, "sizes = {", "sizes = self.table and {")
    text = (tmp_path / "mine.py").read_text().replace(DOC, DOC + "    def prepare(self, report): self.table = 1\n")
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=r"examples failed \(line 25\): AttributeError"):
        attempt(source)


@pytest.mark.parametrize("drawn, alike", [("len(split)", 0), ("0", 8), ("len(split) if split == 'train' else 3", 0)])
def test_a_split_that_repeats_train_is_said_at_the_start_and_in_the_report(drawn, alike, tmp_path, capsys):
    source = written(tmp_path, "default_rng(len(split))", f"default_rng({drawn})")
    workload = attempt(source).workload
    line = f"Of 12 validation examples tried, {alike} stand in train, too: what is measured on validation says little of new data."
    assert overlap(workload) == [line] * (alike > 0) and (f"note: {line}" in capsys.readouterr().err) == (alike > 0)


def test_python_meets_the_same_lines(tmp_path):
    cls = find(written(tmp_path))
    with pytest.raises(ConfigError, match="did you mean workload.width"):
        meltr_ray.sweep(cls, {"workload.widht": 8})
    with pytest.raises(ConfigError, match="losses.set=sise: unknown"):
        meltr_ray.sweep(cls, {"losses.set": ["total", "sise"]})

    class Inner(cls):
        pass

    with pytest.raises(ConfigError, match="is defined inside another class or a function, where workers can't find it; move it out"):
        meltr_ray.sweep(Inner)


@pytest.mark.parametrize("text, words", [
    ("{'a': 1}", "give a JSON file of DeepSpeed's settings"), ("[]", "holds a list; give a JSON object"),
    ('{"train_batch_size": 8}', "has train_batch_size, which train.batch_size decides"),
    ('{"zero_optimization": {"stage": 3}}', "has zero_optimization.stage, which engine.zero_stage decides"),
    ('{"zero_optimization": 3}', "zero_optimization must be an object"),
    ('{"bf16": {"enabled": true}}', "which engine.precision decides"),
])  # fmt: skip
def test_settings_of_deepspeed_that_contradict_ours_meet_one_line(text, words, tmp_path):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)):
        attempt(written(tmp_path), f"engine.deepspeed={tmp_path}/ds.json")


def test_other_settings_of_deepspeed_reach_it(tmp_path):
    from meltr_ray.training.engine import Engine

    (tmp_path / "ds.json").write_text('{"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": true}')
    config = attempt(written(tmp_path), f"engine.deepspeed={tmp_path}/ds.json", "engine.zero_stage=2")
    engine = Engine(LossVector(config.workload.module(), config.workload), config, torch.device("cpu")).deepspeed
    assert (engine.zero_reduce_bucket_size(), engine.zero_optimization_stage(), engine.wall_clock_breakdown()) == (1000, 2, True)


def test_other_data_are_refused_on_resuming(tmp_path):
    config = attempt(written(tmp_path, DOC, DOC + "    def fingerprint(self): return {'data': 'of today'}\n"))
    checkpoint.check_fingerprint(config.workload, {"data": "of today"})
    with pytest.raises(ConfigError, match=r"its data \(data of the fingerprint\) aren't the run's any more"):
        checkpoint.check_fingerprint(config.workload, {"data": "of yesterday"})


def test_a_file_that_was_edited_since_python_read_it_is_not_kept_for_what_is_trained(tmp_path):
    """In a notebook: the class is that of before."""
    workload = attempt(written(tmp_path)).workload
    (tmp_path / "mine.py").write_text(MINE.replace("0.1, self.training", "0.5, self.training"))
    with pytest.raises(ConfigError, match="the file has changed since Python read it; restart Python"):
        keep_text(workload, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_changed_file_is_refused_on_resuming(tmp_path):
    source = written(tmp_path)
    workload = attempt(source).workload
    keep_text(workload, tmp_path / "kept")
    keep_text(workload, tmp_path / "kept")
    written(tmp_path, "width: int = 4", "width: int = 5")
    with pytest.raises(ConfigError, match="the file has changed since this was started; put it back"):
        keep_text(workload, tmp_path / "kept")


@pytest.mark.parametrize("command, old, new, words", [
    ("sweep", HEAD, "class Mime(Workload):", "did you mean Mime"),
    ("train", "x = np.stack(examples)", "x = np.stack(self.stored)", "batch failed (line 30): AttributeError"),
])  # fmt: skip
def test_a_command_ends_with_that_line_and_writes_nothing(command, old, new, words, tmp_path):
    code, output = run(command, f"workload={written(tmp_path, old, new)}", "train.batch_size=8", cwd=tmp_path)
    assert code == 2 and output.startswith("error: workload=") and output.count("\n") == 1 and words in output, output
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == sorted([f"{command}.out", "mine.py"])


@pytest.mark.parametrize("settings, words", [
    ("aid.product=one_sided", "error: aid.product=one_sided: one_sided is wrong here, it is off by"),
    ("aid.solver=cg", "error: aid.hessian_product=auto: the gradient of the losses isn't that of their values"),
])  # fmt: skip
def test_a_run_whose_products_are_refused_ends_in_one_line(settings, words, tmp_path):
    """Of a workload that isn't rehearsed, so that the first meta step meets it."""
    text = MINE.replace(DETACHED, DETACHED + " * (1 + out.square().mean().detach())").replace("bounds =", "rehearsed = False\n    bounds =")
    (tmp_path / "mine.py").write_text(text)
    code, output = run(
        "train", f"workload={tmp_path}/mine.py:Mine", "train.batch_size=8", "train.steps=4", "name=refused", settings, cwd=tmp_path
    )
    assert code == 1 and "Traceback" not in output and output.splitlines()[-1].startswith(words) and "; use aid." in output, output
    (row,) = results.read_trial(tmp_path / "outputs/runs/refused")
    assert row["status"] == "failed" and row["error"].startswith(words.removeprefix("error: "))


def test_evaluation_meets_its_own_lines_and_says_that_the_file_has_changed(tmp_path):
    change = 'prediction_settings = ("chunk",)\n    chunk: int = 8\n    bounds ='
    text = MINE.replace("bounds =", change).replace(
        EVALUATE, PREDICTED.format(rows="examples", change="pass") + EVALUATE.replace("evaluate", "unused")
    )
    mine = tmp_path / "mine.py"
    mine.write_text(text)
    code, output = run("train", f"workload={mine}:Mine", "train.batch_size=8", "train.steps=2", "name=mine", cwd=tmp_path)
    assert code == 0, output
    (tmp_path / "train.out").unlink()
    faults = [
        (text, ["workload.chunk=4"], 0, "With workload.chunk=4."),
        (text.replace("for x in examples]", "for x in examples[:5]]"), [], 2, "predict gave 5 rows for 12 examples; return one for each"),
        (text.replace(".abs())}", " * float('nan'))}"), [], 2, "error is nan on 12 validation examples; mend these examples"),
    ]
    for changed, settings, expected, words in faults:
        mine.write_text(changed)
        code, output = run("evaluate", f"checkpoint={tmp_path}/outputs/runs/mine", *(settings or ["split=validation"]), cwd=tmp_path)
        assert code == expected and words in output and "Traceback" not in output, output
        assert (f"note: {mine}:Mine has changed since this run was trained" in output) == (changed != text), output
        (tmp_path / "evaluate.out").unlink()
