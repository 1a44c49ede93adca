"""A user's workload, and the faults that a careless user plants in it."""

from __future__ import annotations

from pathlib import Path

from meltr_ray.training.rehearsal import check_all
from workloads import checks, cli

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

ROWS = """\
    def predict(self, module, examples, device):
        return {rows}

    def measure(self, rows): return {{'error': 1.0}}

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
    (RETURN, "        return {name: loss.double() for name, loss in losses.items()}", "", "is float64; compute it in float32, as the weights are"),
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
    ("self.body(x), 0.1", "self.body(x + np.random.rand()), 0.1", "", "two passes over one batch with the same generators and buffers differ"),
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
    (METRIC, "return None", "", "evaluate gave None; return a value for each metric, by name"),
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
    (DOC, DOC + "    def prepare(self, report): 1 / 0\n", "", "prepare failed (line 12): ZeroDivisionError"),
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
    # kinds that a new user met
    (HEAD, HEAD + "\n    def __init__(self, **settings): self.width = 4\n", "", "Mine has an __init__ of its own"),
    (DOC, DOC + "    caveat = ('few examples',)\n", "", "caveat is no part of a workload; did you mean caveats"),
    (DOC, DOC + "    def predicts(self): pass\n    bound = {'width': (1, 2)}\n", "", "predicts is no part of a workload; did you mean predict"),
    (DOC, DOC + "    loss_sets = {'all': ('size',)}\n", "", "loss_sets names all, which losses.set=all has already"),
    (DOC, DOC + "    paths = ('width',)\n", "", "paths names width, which is 4; make it a text, or take it out"),
    (DOC, DOC + "    prediction_settings = 'width'\n", "", "prediction_settings is 'width'; give a tuple of names, such as ('width',)"),
    ('losses = ("total", "size")', "losses = (each for each in ('total', 'size'))", "", "give a tuple of names, such as ('one', 'another')"),
    ("return Net(self.width)", "net = Net(self.width)\n        net.more = nn.LazyLinear(2)\n        return net", "", "more.weight has no shape before a first forward"),
    ("return np.random.default_rng(len(split))", LISTED.format("def __getitem__(self, i): raise KeyError(i)"), "losses.set=primary combiner.name=fixed", "examples failed (line 28): KeyError"),
    ("return np.random.default_rng(len(split))", LISTED.format("def __getitem__(self, i): raise KeyError(i)").replace("return Listed", "self.control = None\n        return Listed"),
     "", "examples failed (line 28): KeyError"),
    ('return {"x": torch', 'return None and {"x": torch', "", "batch gave None; return what forward takes"),
    ('return {"x": torch', 'return {"m": torch.ones(2, device="meta"), "x": torch', "", "batch gave a tensor on the meta device in ['m']"),
    ('return {"x": torch', 'return {"g": [torch.ones(2, requires_grad=True) * 2], "x": torch', "", "batch gave a tensor that asks for a gradient in ['g'][0]"),
    ('x = np.stack(examples)', 'examples[0][:] += 1\n        x = np.stack(examples)', "", "and leave the examples as they are"),
    ('        x = batch["x"]\n', '        x = batch["x"].add_(1)\n', "", "forward changes its batch, in ['x']; change a copy"),
    ('        x = batch["x"]\n', '        self.head.weight.data.clamp_(-0.01, 0.01)\n        x = batch["x"]\n', "", "changes the module's weights (head.weight)"),
    (RETURN, "        if torch.is_grad_enabled():\n            losses['size'].backward(retain_graph=True)\n" + RETURN, "", "leaves a gradient on"),
    (RETURN, "        losses['size'].backward(retain_graph=True)\n" + RETURN, "", "module failed (line 47): RuntimeError"),
    (RETURN, "        losses['size'] = losses['size'].double()\n" + RETURN, "", "losses.set=size: is float64; compute it in float32"),
    (RETURN, "        losses['size'] = 0 * losses['size']\n" + RETURN, "", "losses.set=size: has the gradient 0 for every weight on each of the first 5 batches"),
    (METRIC, "module.train()\n        " + METRIC, "", "an evaluation puts the module into training mode"),
    (EVALUATE, PREDICTED.format(rows="examples", change="error += 1") + EVALUATE, "", "let both measure the same, or leave one out"),
    (EVALUATE, PREDICTED.format(rows="examples", change="return None") + EVALUATE.replace("evaluate", "unused"), "", "measure gave None; return a value for each metric"),
    (EVALUATE, ROWS.format(rows="None") + EVALUATE.replace("evaluate", "unused"), "",
     "predict gave None; return a list of dictionaries"),
    (EVALUATE, ROWS.format(rows="[(0, each) for each in examples]") + EVALUATE.replace("evaluate", "unused"), "", "predict gave a tuple; return a list of dictionaries"),
    (EVALUATE, ROWS.format(rows="[{'correct': 'yes'} for each in examples]") + EVALUATE.replace("evaluate", "unused"), "", "predict gave a row with correct = 'yes'; give True or False"),
    (EVALUATE, ROWS.format(rows="[{'quality': 'good'} for each in examples]") + EVALUATE.replace("evaluate", "unused"), "", "predict gave a row with quality = 'good'; give a number"),
    (DOC, DOC + "    def control(self, batch, generator): return None\n", "losses.set=controlled", "control gave a batch of another form, in its type"),
    (DOC, DOC + "    def control(self, batch, generator): return {}\n", "losses.set=controlled", "control gave a batch of another form, in its keys"),
    (DOC, DOC + "    def caveats(self): return ['one', None]\n", "", "caveats gave None; return a list of sentences"),
    (DOC, DOC + "    def fingerprint(self): return {'data': b'1'}\n", "", "fingerprint gave a bytes for 'data'; return a dictionary, name -> text"),
    (DOC, DOC + "    def baselines(self): return {'test': {'mean': {'error': float('nan')}}}\n", "", "baselines gave nan for ['test']['mean']['error'], where a finite number"),
    (DOC, DOC + "    def baselines(self): return {'test': {'mean': {'error': torch.ones(())}}}\n", "", "baselines gave tensor(1.) for ['test']['mean']['error'], where a finite"),
    (DOC, DOC + """    def combiner(self):
        class Plain(nn.Module):
            def __init__(self):
                super().__init__()
                self.phi = nn.Parameter(torch.ones(2))

            def forward(self, losses):
                return losses.sum() + self.phi.sum()
        return Plain()
""", "combiner.name=own", "has slopes that don't depend on its parameters"),
    (DOC, DOC + "    def prepare(self): pass\n", "", "prepare takes (self); write def prepare(self, report)"),
    (EVALUATE, "    def evaluate(self, module, examples):\n", "", "evaluate takes (self, module, examples); write def evaluate(self, module, examples, device)"),
    (DOC, DOC + "    control = ('size',)\n", "", "control is ('size',), where a method is asked for; did you mean controls"),
    (DOC, DOC + "    baselines = {}\n", "", "baselines is {}, where a method is asked for; write def baselines(self)"),
    ("bounds =", "def losses(self): return ('total',)\n    bounds =", "", "losses is a method; give it as a class attribute, or write @property"),
    ('losses = ("total", "size")', 'losses = ("total", "sise")', "", "losses.set=sise: forward knows no such loss (KeyError: 'sise'); compute it there"),
    ("return Net(self.width)", "net = Net(self.width)\n        net.__dict__['loose'] = nn.Linear(2, 2)\n        net.head.register_forward_hook(lambda m, x, y: net.loose(y))\n        return net", "",
     "a loss depends on a parameter of shape (2, 2) that the module doesn't have, so it would never train"),
    ("x = np.stack(examples)", "examples.pop()\n        x = np.stack(examples)", "", "batch changes the list of examples that it is given"),
    (RETURN, "        losses['size'] = losses['size'] / (x[0, 0] < 0.3)\n" + RETURN, "", "losses.set=size: is inf on batch"),
    (DOC, DOC + "    def control(self, batch, generator): return {'x': batch['x'][:, :2]}\n", "losses.set=controlled", "control gave a batch that forward fails on (RuntimeError"),
    (DOC, DOC + "    def control(self, batch, generator): return {'x': batch['x'].flip(0)}\n", "losses.set=controlled", "control's batch has the same total as the batch that it is made of"),
    (DOC, DOC + """    def combiner(self):
        class Cut(nn.Module):
            def __init__(self):
                super().__init__()
                self.phi = nn.Parameter(torch.ones(()))

            def forward(self, losses):
                return losses.detach().sum() * self.phi
        return Cut()
""", "combiner.name=own", "gave what doesn't depend on the losses; combine them, without detach"),
    ("width: int = 4", "width: int = 4\n    source: str = 'mine'", "", "source is no setting but a part of every workload"),
    ("sizes = {", "sizes = self.table and {", "", "examples failed (line 24): AttributeError"),
    # a product that the model doesn't admit, or that is wrong for it
    (DETACHED, "(out[:, 0] - x.sum(1)).square().mean() * (1 + out.square().mean().detach())", "aid.product=one_sided",
     "aid.product=one_sided: one_sided is wrong here, it is off by"),
    (DETACHED, "(out[:, 0] - x.sum(1)).square().mean() * (1 + out.square().mean().detach())", "aid.solver=cg",
     "aid.hessian_product=auto: the gradient of the losses isn't that of their values"),
    (DETACHED, "Once.apply(out[:, 0] - x.sum(1)).mean()", "aid.product=double_backward", "aid.product=double_backward: double_backward is wrong here, it is off by"),
    (DETACHED, "Once.apply(out[:, 0] - x.sum(1)).mean()", "aid.solver=cg aid.hessian_product=double_backward", "; use aid.hessian_product=auto"),
    (DETACHED, "(out[:, 0] - x.sum(1)).square().mean() + 1e-5 * (3e3 * out).sin().mean()", "aid.solver=cg engine.zero_stage=3",
     "differences of two lengths are"),
]  # fmt: skip


def written(folder: Path, old: str = "", new: str = "", name: str = "mine.py") -> str:
    """The source setting of a workload written to `folder`, `old` in its text replaced."""
    assert MINE.count(old) == 1 or not old, f"{MINE.count(old)} times: {old}"
    (folder / name).write_text(MINE.replace(old, new) if old else MINE)
    return f"{folder / name}:Mine"


def attempt(source: str, *settings: str):
    """What a command does before it starts a trial."""
    request = cli.configure([f"workload={source}", "train.batch_size=8", *settings])
    checks.prepare(request.config)
    check_all([request.config])
    return request.config
