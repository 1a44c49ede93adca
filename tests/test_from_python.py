"""`meltr_ray.sweep`: what it is given comes out as it was meant, or is refused in one line before anything is written."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import meltr_ray
from meltr_ray.errors import ConfigError
from workloads import from_python
from workloads.examples import primes
from workloads.examples.primes import Primes


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Settings -> the configuration that the command would be given."""
    found = []

    def record(request):
        found.append(request)
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(from_python.command, "sweep", record)

    def ask(settings, workload=Primes):
        meltr_ray.sweep(workload, settings)
        return found[-1].config

    return ask


@pytest.mark.parametrize("given", [["a,b"], ["a]", "b"], ["a'b"], ["it's, 'so'"], ["a: b"], [""], ["1"], ["true"], ["null"], ["a b", "c"], ["{d}"],
                                   ["body.0", "é"], ["a#b"]])  # fmt: skip
def test_texts_in_a_list_stay_as_they_are(asked, given):
    assert asked({"tuning.frozen": given}).tuning.frozen == given


def test_numbers_of_numpy_and_torch_lists_of_any_kind_and_paths_are_taken(asked):
    config = asked({"train.steps": np.int64(7), "sweep.seeds": torch.tensor(3), "sweep.learning_rates": np.array([1e-3, 1e-2]),
                    "losses.set": ("prime", "digit"), "tuning.rates": {"body.0": 2.0}, "output": Path("a b, c"), "name": "2024_01", "cluster": None})  # fmt: skip
    assert (config.train.steps, config.sweep.seeds, config.sweep.learning_rates) == (7, 3, [1e-3, 1e-2])
    assert (config.losses.set, config.tuning.rates, config.name) == (["prime", "digit"], {"body.0": 2.0}, "2024_01")
    assert Path(config.output).name == "a b, c"


class InItself(list):
    def __init__(self):
        super().__init__()
        self.append(self)


@pytest.mark.parametrize("workload, settings, line", [
    (Primes(), {}, "workload=Primes: is a workload that is made; give the class itself"),
    ("primes.py:Primes", {}, "workload=primes.py:Primes: is a str; give a class"),
    (None, {}, "workload=None: is a NoneType; give a class"),
    (primes, {}, "workload=<module .*>: is a module; give a class"),
    (dict, {}, "workload=<class 'dict'>: is no workload; give a class"),
    (Primes, ["train.steps=3"], "settings=.*: is no dictionary; give such as"),
    (Primes, "train.steps=3", "settings=train.steps=3: is no dictionary; give such as"),
    (Primes, {3: 4}, "settings=3: is no name of a setting; "),
    (Primes, {"workload": "video"}, "workload=video: the class was given already; leave it out"),
    (Primes, {"losses.set": {"prime", "digit"}}, "losses.set=set: can't be written; "),
    (Primes, {"losses.set": InItself()}, "losses.set=InItself: can't be written; "),
    (Primes, {"train.steps": 10**5000}, "train.steps=int: can't be written; "),
    (Primes, {"name": b"a"}, "name=bytes: can't be written; "),
    (Primes, {"tuning.rates": {"a, b": 1.0}}, "tuning.rates=dict: can't be written; "),
    (Primes, {"name": "x" * 10**6}, "name=x+...: has 1000000 letters, where a command line takes 131072; shorten it"),
    (Primes, {"train": {"steps": 3}}, "train={steps:3}: unknown setting; did you mean train.steps"),
])  # fmt: skip
def test_what_is_no_workload_or_no_setting_is_refused_in_one_line(asked, workload, settings, line):
    with pytest.raises(ConfigError, match=f"^{line}") as refusal:
        asked(settings, workload)
    assert "\n" not in str(refusal.value)


def test_a_script_that_sweeps_when_it_is_imported_is_told_so(asked, tmp_path):
    """The file is imported again to find its class; without the line it would call sweep, and so on."""
    script = "import meltr_ray\nfrom workloads.examples.primes import Primes\n\n\nclass Mine(Primes):\n    pass\n\n\n"
    (tmp_path / "unguarded.py").write_text(script + "meltr_ray.sweep(Mine, {'train.steps': 5})\n")
    with pytest.raises(ConfigError, match="its file calls sweep\\(\\) when it is imported; call it under if __name__"):
        runpy.run_path(str(tmp_path / "unguarded.py"), run_name="__main__")
    (tmp_path / "guarded.py").write_text(script + "if __name__ == '__main__':\n    meltr_ray.sweep(Mine, {'train.steps': 5})\n")
    runpy.run_path(str(tmp_path / "guarded.py"), run_name="__main__")
