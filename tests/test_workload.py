"""A user's workload with a fault planted in it meets one line that says what, where and how to mend it, before a trial starts."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

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
from meltr_ray.training.rehearsal import check_all
from meltr_ray.training.tuning import prepare_for_tuning
from tests.commands import run
from workloads import cli

MINE = '''\
from __future__ import annotations

import numpy as np
import torch
from torch import nn

from meltr_ray import Metric, Workload


class Mine(Workload):
    """Is the sum of three numbers what it seems?"""

    losses = ("total", "size")
    metrics = {"error": Metric(higher=False, digits=3)}
    bounds = {"width": (1, 64)}

    width: int = 4
    """Hidden units."""

    def module(self):
        return Net(self.width)

    def examples(self, split):
        sizes = {"train": 200, "validation": 12}
        if split not in sizes:
            return None
        return np.random.default_rng(len(split)).standard_normal((sizes[split], 3)).astype(np.float32)

    def batch(self, examples, generator):
        x = np.stack(examples)
        return {"x": torch.tensor(x + 0.1 * generator.standard_normal(x.shape).astype(np.float32))}

    def evaluate(self, module, examples, device):
        x = torch.tensor(np.stack(list(examples))).to(device)
        return {"error": float((module.head(module.body(x))[:, 0] - x.sum(1)).abs().mean())}


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body, self.head = nn.Linear(3, width), nn.Linear(width, 2)

    def forward(self, batch, names=None):
        x = batch["x"]
        out = self.head(torch.dropout(self.body(x), 0.1, self.training))
        losses = {"total": (out[:, 0] - x.sum(1)).square().mean(), "size": (out[:, 1] - x.norm(dim=1)).square().mean()}
        return {name: losses[name] for name in names or losses}


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g
'''

HEAD = "class Mine(Workload):"
DOC = '    """Is the sum of three numbers what it seems?"""\n'
RETURN = "        return {name: losses[name] for name in names or losses}"
METRIC = 'return {"error": float((module.head(module.body(x))[:, 0] - x.sum(1)).abs().mean())}'
EVALUATE = "    def evaluate(self, module, examples, device):\n"
PREDICTED = """\
    def predict(self, module, examples, device):
        examples = list(examples)
        return [{{"off": float((module.head(module.body(torch.tensor(x)))[0] - x.sum()).abs())}} for x in {rows}]

    def measure(self, rows):
        error = float(np.mean([row["off"] for row in rows]))
        {change}
        return {{"error": error}}

"""

STRUCTURE = (
    "return Net(self.width)",
    """net = Net(self.width)
        {}
        return net

    def structure(self):
        net = Net(self.width)
        {}
        return net""",
)
LISTED = """class Listed(list):
            {}
        return Listed(np.random.default_rng(0).standard_normal((sizes[split], 3)).astype(np.float32))
        np.random.default_rng(len(split))"""
DETACHED = "(out[:, 0] - x.sum(1)).square().mean()"
FAULTS = [  # text, what a careless user writes in its place, settings, words of the line
    # the file
    ("import numpy as np", "import nunpy as np", "", "doesn't import (line 3): ModuleNotFoundError: No module named 'nunpy'"),
    (HEAD, "class Mine(Workload)", "", "doesn't import (line 10): SyntaxError: expected ':'"),
    (HEAD, "1 / 0\n" + HEAD, "", "doesn't import (line 10): ZeroDivisionError"),
    (HEAD, "class Mime(Workload):", "", "has no class Mine; did you mean Mime"),
    (HEAD, "class Mine:", "", "Mine is no workload; derive it from meltr_ray.Workload"),
    # settings
    ("", "", "workload.widht=8", "workload.widht=8: unknown setting; did you mean workload.width"),
    ("", "", "width=8", "width=8: unknown setting; did you mean workload.width"),
    ("", "", "workload.width=many", "workload.width=many: value 'many' of type 'str' could not be converted to Integer"),
    ("", "", "workload.width=65", "workload.width=65: must lie between 1 and 64"),
    ("width: int = 4", "width: np.ndarray = None", "", "a setting is a bool, int, float, str"),
    ("width: int = 4", "width: int", "", "width has no default; give it one"),
    ("width: int = 4", "width: list = []", "", "doesn't import (line 10): ValueError: mutable default"),
    ("width: int = 4", "width: Integer = 4", "", "a setting is a bool, int, float, str"),
    ('"width": (1', '"widht": (1', "", "bounds names widht, which is no setting; did you mean width"),
    ('(1, 64)', '64', "", "bounds of width are 64; give (least, greatest)"),
    ('losses = ("total"', 'losses: tuple = ("total"', "", "losses is no setting but a part of every workload"),
    ("width: int = 4", "width: int = 4\n    def __post_init__(self): raise ValueError('no')", "", "ValueError: no"),
    # losses and metrics
    ('losses = ("total", "size")', "losses = ()", "", "names no losses"),
    ('losses = ("total", "size")', 'losses = "total"', "", "losses is 'total'; give a tuple of names, such as ('total',)"),
    ('losses = ("total", "size")', 'losses = ("total", "total")', "", "losses names total twice"),
    ('losses = ("total", "size")', 'losses = ("total", "si/ze")', "", "si/ze"),
    ('losses = ("total", "size")', "losses = property(lambda self: self.names)", "", "losses failed (line 13): AttributeError"),
    ("bounds =", 'controls = ("sise",)\n    bounds =', "", "controls names sise, which is no loss; did you mean size"),
    ("bounds =", 'primaries = ("sise",)\n    bounds =', "", "primaries names sise, which is no loss; did you mean size"),
    ("bounds =", 'default_losses = ("sise",)\n    bounds =', "", "default_losses names sise, which is no loss; did you mean size"),
    ("metrics = {", "metrics = {} and {", "", "names no metrics"),
    ("Metric(higher=False, digits=3)", "'%'", "", "metrics['error'] is a str; give a Metric"),
    ("Metric(higher=False, digits=3)", "Metric(higher='no')", "", "metrics['error'] has higher='no'; give True or False"),
    ("Metric(higher=False, digits=3)", "Metric(digits='two')", "", "metrics['error'] has digits='two'; give a whole number"),
    ("Metric(higher=False, digits=3)", "Metric(margin=0)", "", "metrics['error'] has margin=0; give a number above 0"),
    ("bounds =", 'controls = ("total",)\n    bounds =', "", "controls names total, which is the primary loss; take it out"),
    ("bounds =", 'loss_sets = ["size"]\n    bounds =', "", "loss_sets is a list; give a dictionary, name -> auxiliary losses"),
    ("bounds =", 'paths = ("folder",)\n    bounds =', "", "paths names folder, which is no setting"),
    ("bounds =", 'loader_workers = "two"\n    bounds =', "", "loader_workers is 'two'; give a number of processes"),
    ("bounds =", 'rehearsed = "no"\n    bounds =', "", "rehearsed is 'no'; give True or False"),
    ('(1, 64)', '(64, 1)', "", "bounds of width are (64, 1); give (least, greatest)"),
    ("", "", "losses.primary=totl", "losses.primary=totl: unknown; use one of total, size"),
    ("", "", "losses.set=[]", "lacks the primary loss; add total"),
    ("", "", "losses.set=[total,sise]", "losses.set=sise: unknown; use one of total, size, constant"),
    # module
    ("return Net(self.width)", "return torch.eye(2)", "", "module() gave a Tensor; return a torch.nn.Module"),
    ("return Net(self.width)", "Mine.kept = vars(Mine).get('kept') or Net(self.width)\n        return Mine.kept", "", "module() gave one object twice; make a new one at each call"),
    ("return Net(self.width)", "net = Net(self.width)\n        nn.init.constant_(net.head.weight, np.random.rand())\n        return net", "",
     "give other weights in head.weight; draw them from torch's own generator"),
    ("return Net(self.width)", "torch.manual_seed(0)\n        return Net(self.width)", "", "module sets the seed of torch's generator, so every seed of a sweep would draw the same"),
    ('        x = batch["x"]\n', "        torch.manual_seed(0)\n        x = batch['x']\n", "", "forward sets the seed of torch's generator"),
    ("return Net(self.width)", "return Net(self.width)\n\n    def structure(self):\n        return Net(self.width + 1)", "", "structure() and module() differ in body.bias; give both the same"),
    ("return Net(self.width)", "raise SystemExit(0)", "", "module failed (line 21): SystemExit: 0"),
    (HEAD, "import argparse\nargparse.ArgumentParser().parse_args(['--no'])\n" + HEAD, "", "doesn't import (line 11): SystemExit: 2"),
    (RETURN, "        return {name: loss.double() for name, loss in losses.items()}", "", "are float64; compute them in float32"),
    ("return Net(self.width)", "return Net(self.breadth)", "", "module failed (line 21): AttributeError"),
    ("return Net(self.width)", "return Net(self.width).requires_grad_(False)", "", "none of the module's parameters requires a gradient"),
    ("return Net(self.width)", "return Net(self.width).double()", "", "body.weight is float64; make it float32"),
    ("def forward(self, batch, names=None)", "def forward(self, batch)", "", "forward takes (batch); write forward(self, batch, names=None)"),
    (RETURN, "        return {'totl': losses['total'], 'size': losses['size']}", "", "losses.set=total: the module returned totl, size"),
    (RETURN, "        return sum(losses.values())", "", "forward gave a Tensor; return a dictionary, loss name -> scalar"),
    (RETURN, "        return {name: loss.item() for name, loss in losses.items()}", "", "losses.set=total: is a float; return a tensor"),
    (RETURN, "        return {name: loss.expand(1) for name, loss in losses.items()}", "", "losses.set=total: has the shape (1,); return a scalar"),
    ("out[:, 1] - x.norm", "(out[:, 1] - 99).sqrt() - x.norm", "", "losses.set=size: is nan on the first batch"),
    (RETURN, "        losses['size'] = losses['size'] - 50\n" + RETURN, "combiner.name=famo",
     "and this way to combine losses needs positive ones"),
    (RETURN, "        losses['size'] = losses['size'].detach()\n" + RETURN, "", "losses.set=size: doesn't depend on the module's weights"),
    ("self.body(x), 0.1", "self.body(x + np.random.rand()), 0.1", "", "two passes over one batch with the same generators differ"),
    (RETURN, "        return losses if names is None else {name: losses[name] for name in names if name != 'total' or 'size' in names}", "",
     "losses.set=total: the module returned nothing"),
    ("self.head(torch", "nn.functional.linear(torch", "", "forward failed (line 45): TypeError"),
    ("self.body(x), 0.1", "nn.functional.linear(x, self.body.weight), 0.1", "engine.zero_stage=3",
     "engine.zero_stage=3: body.weight is used outside the forward of the module that owns it, Linear"),
    ("module.head(module.body(x))[:, 0]", "(module.body(x) @ module.head.weight.T)[:, 0]", "engine.zero_stage=3",
     "engine.zero_stage=3: head.weight is used outside the forward of the module that owns it, Linear"),
    ("return Net(self.width)", "net = Net(self.width)\n        nn.init.constant_(net.head.bias, np.inf)\n        return net", "", "head.bias has a number that is not finite"),
    ("return Net(self.width)", "torch.set_default_dtype(torch.float64)\n        return Net(self.width).float()", "", "module changes torch's default type for the whole process"),
    ("return Net(self.width)", "torch.set_grad_enabled(False)\n        return Net(self.width)", "", "module changes torch's gradients for the whole process"),
    # examples
    ("return np.random.default_rng(len(split))", "return dict(enumerate('ab' * 100))\n        np.random.default_rng(len(split))", "", "gave a dict; return a sequence, with len() and [i]"),
    ("return np.random.default_rng(len(split))", LISTED.format("def __len__(self): return -1"), "", "examples failed: ValueError: __len__() should return >= 0"),
    ("return np.random.default_rng(len(split))", LISTED.format("def __getitem__(self, i): return [self.gone if i == 77 else super(Listed, self).__getitem__(i)][0]"), "",
     "examples failed (line 28): AttributeError"),
    ("return np.random.default_rng(len(split))", LISTED.format("def __getitem__(self, i): return super(Listed, self).__getitem__(i)[: 2 if len(self) == 90 and i == 89 else 3]")
     .replace("(sizes[split]", "(90 if split == 'validation' else 200"), "", "evaluate failed"),
    ('"train": 200, ', "", "", "has no train examples"),
    (', "validation": 12', "", "", "has no validation examples"),
    ('"validation": 12', '"validation": 0', "", "has no validation example"),
    ('"train": 200', '"train": 0', "", "has 0; no batch is that small"),
    ("return np.random.default_rng(len(split))", "return map(list, [])\n        np.random.default_rng(len(split))", "", "gave a map; return a sequence, with len() and [i]"),
    ("return np.random.default_rng(len(split))", "return np.random.default_rng()", "", "examples that differ from call to call"),
    ("sizes = {", "sizes = self.sizes or {", "", "examples failed (line 24): AttributeError"),
    ("", "", "train.batch_size=100 train.num_workers=2", "all workers together take 200 examples at once and the train split has"),
    ("", "", "train.batch_size=20 train.num_workers=2 aid.meta_batch=held_out", "and the meta split has 20; lower it"),
    # batch
    ("x = np.stack(examples)", "x = np.stack([each[:2] if each[0] > 1.85 else each for each in examples])", "",
     "batch failed (line 30): ValueError: all input arrays must have the same shape"),
    ("x = np.stack(examples)", "x = np.stack(self.stored)", "", "batch failed (line 30): AttributeError"),
    ("generator.standard_normal(x.shape)", "np.random.standard_normal(x.shape)", "", "differ in ['x']; draw all that is random from `generator`"),
    ('return {"x": torch', 'return {"f": lambda: 0, "x": torch', "train.loader_workers=1", "a batch can't be sent to the training process"),
    # evaluate
    ('{"error": float(', '{"eror": float(', "", "evaluate gave no error, but eror; return every declared metric"),
    (METRIC, METRIC[:-1] + " / 0 * 0 }".replace("/ 0", "* float('nan')"), "", "evaluate gave error = nan on 12 validation examples"),
    (METRIC, "return 0.5", "", "evaluate gave a float; return a value for each metric, by name"),
    (METRIC, "return {'error': np.random.rand()}", "", "two evaluations of the same weights give error ="),
    (METRIC, "module.body.weight.data.mul_(0.9)\n        " + METRIC, "", "two evaluations of the same weights give error"),
    (METRIC, "module.head.bias.data[1].add_(1)\n        " + METRIC, "", "an evaluation or a forward changes the module's weights (head.bias) or which of them train; leave them as they are"),
    (METRIC, "module.head.requires_grad_(False)\n        " + METRIC, "", "an evaluation or a forward changes the module's weights (head.bias) or which of them train"),
    (EVALUATE, PREDICTED.format(rows="examples[:3]", change="pass") + EVALUATE.replace("evaluate", "unused"), "", "predict gave 3 rows for 12 examples; return one for each"),
    (EVALUATE, PREDICTED.format(rows="examples", change="rows.pop()") + EVALUATE.replace("evaluate", "unused"), "", "measure changes its rows"),
    (METRIC, "return {'error': 'large'}", "", "evaluate gave error = 'large'; return a number"),
    (METRIC, "return {'error': self.right / len(x)}", "", "evaluate failed (line 35): AttributeError"),
    ("def evaluate", "def evaluation", "", "has no method evaluate, nor predict and measure in its place"),
    ("def evaluate", "def predict", "", "has no method evaluate, nor predict and measure in its place"),
    ("def batch", "def batches", "", "has no method batch; write it"),
    (STRUCTURE[0], STRUCTURE[1].format("net.register_buffer('mean', torch.zeros(3))", ""), "", "structure() and module() differ in mean; give both the same"),
    (STRUCTURE[0], STRUCTURE[1].format("", "net.half()"), "", "structure() and module() differ in body.bias; give both the same names, shapes and types"),
    (STRUCTURE[0], STRUCTURE[1].format("", "net.body.register_forward_hook(lambda m, x, y: y + 1)"), "", "for error, where module() gives"),
    (STRUCTURE[0], STRUCTURE[1].format("", "net.register_forward_hook(lambda m, x, y: {name: 1.1 * loss for name, loss in y.items()})"), "",
     "for its losses, where module() gives"),
    # what may be there
    (DOC, DOC + "    within = {'head.scale': (0, 1)}\n", "", "within names head.scale, which is no weight of the module"),
    (DOC, DOC + "    within = {'head.bias': (1, 0)}\n", "", "within of head.bias is (1, 0); give (least, greatest)"),
    (DOC, DOC + "    within = {'head.bias': float('nan')}\n", "", "within of head.bias is nan; give (least, greatest)"),
    (DOC, DOC + "    encoders = (('body', 'neck'),)\n", "tuning.layer_decay=0.5", "encoders names neck, which is no submodule"),
    (DOC, DOC + "    encoders = ('body',)\n", "", "encoders is ('body',); give a tuple of tuples of names"),
    (DOC, DOC + "    root = 'trunk'\n", "", "root names trunk, which is no submodule"),
    (DOC, DOC + "    resamples = 'many'\n", "", "resamples is 'many'; give a number from 0 to 100000"),
    (DOC, DOC + "    def resolve(self, primary, loss_set): self.mine = primary\n", "", "resolve doesn't keep what it is told; call super().resolve"),
    (DOC, DOC + "    groups = {'width': int}\n", "", "groups has width; give fields of the workload, each with its class of settings"),
    (DOC, DOC + "    aliases = {'breadth': 'width'}\n", "", "aliases has breadth, which is no setting of a group"),
    (DOC, DOC + "    conf = 'mine'\n", "", "conf names mine, and there is no such file"),
    (DOC, DOC + "    def control(self, batch, generator): return {'x': batch['y']}\n", "losses.set=controlled", "control failed (line 12): KeyError"),
    (DOC, DOC + "    def prepare(self): pass\n", "", "prepare failed"),
    (DOC, DOC + "    def control(self, batch, generator):\n        batch['x'][:] = 0\n        return batch\n", "losses.set=controlled",
     "control changes ['x'] of the batch that it is given, whose own targets are trained on; change a copy"),
    (DOC, DOC + "    def control(self, batch, generator): return dict(batch)\n", "losses.set=controlled", "control gave the batch as it is; permute its targets"),
    (DOC, DOC + "    def baselines(self): return {'tset': {'chance': {'error': 1.0}}}\n", "", "baselines has the split tset; use train, meta, validation, test"),
    (DOC, DOC + "    def baselines(self): return {'test': {'chance': {'eror': 1.0}}}\n", "", "baselines gives eror for chance, which is no metric; use one of error"),
    (DOC, DOC + "    def baselines(self): return None\n", "", "baselines gave None; return {split: {name: {metric: number}}}"),
    (DOC, DOC + "    def fingerprint(self): return {'data': str(np.random.rand())}\n", "", "return the same at every call, as it tells whether data are the same"),
    (DOC, DOC + "    def baselines(self): return {'chance': 0.5}\n", "", "baselines"),
    (DOC, DOC + "    def caveats(self): return 'few examples'\n", "", "caveats gave 'few examples'; return a list of sentences"),
    (DOC, DOC + "    def fingerprint(self): return {'data': 1 / 0}\n", "", "fingerprint failed (line 12): ZeroDivisionError"),
    (DOC, DOC + "    def title(self): return 'a/b'\n", "", "title gave 'a/b'"),
    # a combiner of one's own
    ("", "", "combiner.name=own", "Mine defines no combiner; write the method, or use combiner.name=meltr"),
    (DOC, DOC + "    def combiner(self): return nn.Identity()\n", "combiner.name=own", "has no parameter to learn"),
    (DOC, DOC + "    def combiner(self): return 1\n", "combiner.name=own", "combiner() gave a int; return a torch.nn.Module"),
    (DOC, DOC + "    def combiner(self): return nn.Linear(3, 2)\n", "combiner.name=own", "gave the shape (2,); return a scalar"),
    (DOC, DOC + "    def combiner(self): return nn.Linear(2, 1)\n", "combiner.name=own", "combiner failed: RuntimeError"),
    (DOC, DOC + "    per_example = True\n", "losses.set=primary combiner.name=fixed", "losses.set=total: has the shape (); return a number for each example, (B,)"),
    (DOC, DOC + "    per_example = True\n", "losses.set=primary", "use combiner.name=own or fixed"),
    # a product that the model doesn't admit, or that is wrong for it
    (DETACHED, "(out[:, 0] - x.sum(1)).square().mean() * (1 + out.square().mean().detach())", "aid.product=one_sided",
     "aid.product=one_sided: one_sided is wrong here, it is off by"),
    (DETACHED, "(out[:, 0] - x.sum(1)).square().mean() * (1 + out.square().mean().detach())", "aid.solver=cg",
     "aid.hessian_product=auto: the gradient of the losses isn't that of their values"),
    (DETACHED, "Once.apply(out[:, 0] - x.sum(1)).mean()", "aid.product=double_backward", "aid.product=double_backward: double_backward is wrong here, it is off by"),
    (DETACHED, "Once.apply(out[:, 0] - x.sum(1)).mean()", "aid.solver=cg aid.hessian_product=double_backward", "; use aid.hessian_product=auto"),
]  # fmt: skip


def written(folder: Path, old: str = "", new: str = "", name: str = "mine.py") -> str:
    """The source setting of a workload written to `folder`, `old` in its text replaced."""
    assert MINE.count(old) == 1 or not old, f"{MINE.count(old)} times: {old}"
    (folder / name).write_text(MINE.replace(old, new) if old else MINE)
    return f"{folder / name}:Mine"


def attempt(source: str, *settings: str):
    """What a command does before it starts a trial."""
    request = cli.configure([f"workload={source}", "train.batch_size=8", *settings])
    cli.prepare(request.config)
    check_all([request.config])
    return request.config


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


def test_without_a_fault_there_is_no_line(tmp_path):
    config = attempt(written(tmp_path), "workload.width=8", "losses.set=controlled", "engine.zero_stage=3")
    assert config.workload.width == 8 and config.losses.set == ["total", "size", "constant"]


@pytest.mark.parametrize("settings", [
    "aid.solver=cg aid.adam=fixed_point aid.iterations=1000 aid.warm_start=true", "aid.solver=nystrom aid.rank=1000", "aid.product=double_backward",
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
    text = MINE.replace(DOC, DOC + "    def control(self, batch, generator): return batch[0][::-1], batch[1]\n")
    text = text.replace("x = np.stack(examples)", batch).replace('batch["x"]', 'batch[1]["x"]')
    (tmp_path / "mine.py").write_text(text)
    config = attempt(f"{tmp_path}/mine.py:Mine", "losses.set=controlled")
    train = Batches(config.workload, "train", 8, 0)
    ((micro, _),) = Loader(MetaBatches("next", train, None), lambda step: None, 0, 1)
    (batch, control), (same, _) = micro[0], train[0]
    assert isinstance(micro[0], WithControl) and isinstance(batch, tuple) and isinstance(batch[0], np.ndarray)
    assert np.array_equal(batch[0], same[0]) and np.array_equal(control[0], batch[0][::-1])


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
    with pytest.raises(ConfigError, match="its data isn't the run's any more"):
        checkpoint.check_fingerprint(config.workload, {"data": "of yesterday"})


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
