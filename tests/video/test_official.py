"""Reading, matching and writing the authors' checkpoints, with real files: hostile, damaged and foreign ones too."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from meltr_ray.config import ConfigError
from meltr_ray.video.backbones.allinone.model import AllInOne
from meltr_ray.video.checkpoints import official
from tests.video import test_allinone, test_univl

MODELS = {
    "allinone": (lambda: AllInOne(test_allinone.toy_config(), 31), "state_dict"),
    "univl": (lambda: test_univl.toy_univl(test_univl.toy_config()), None),
}
FORMATS = {"current": {}, "older": {"_use_new_zipfile_serialization": False}}


def message_of(call) -> str:
    """The one line that `call` must fail with."""
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert re.fullmatch(r"checkpoint=[^\n]+: [^\n]+; [^\n]+", message)
    return message


def check_equal(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert list(got) == list(want)
    assert all(torch.equal(got[name], x) and got[name].dtype == x.dtype for name, x in want.items())


@pytest.mark.parametrize("backbone", MODELS)
def test_export_and_read_give_the_same_weights(backbone, tmp_path):
    make, wrapper = MODELS[backbone]
    model = make()
    official.save(model.state_dict(), tmp_path / "out.bin", wrapper)
    state = official.read(tmp_path / "out.bin")
    official.match(state, model)
    check_equal(state, model.state_dict())
    assert os.listdir(tmp_path) == ["out.bin"]
    other = make()
    other.load_state_dict(state)
    check_equal(other.state_dict(), model.state_dict())


@pytest.mark.parametrize("saved_as", FORMATS)
def test_both_formats_and_data_parallel_names_are_read(saved_as, tmp_path):
    state = test_univl.toy_univl(test_univl.toy_config()).state_dict()
    torch.save({f"module.{name}": x for name, x in state.items()}, tmp_path / "old.bin", **FORMATS[saved_as])
    check_equal(official.read(tmp_path / "old.bin"), state)


@pytest.fixture
def lightning(monkeypatch) -> dict[str, type]:
    """Classes that pickle under the names of Lightning's and sacred's, which aren't installed."""
    classes = {}
    for path in official.STAND_INS:
        module, name = path.rsplit(".", 1)
        base = {"AttributeDict": dict, "ReadOnlyDict": dict, "ReadOnlyList": list}.get(name, object)
        classes[name] = type(name, (base,), {"__module__": module})
        found = sys.modules.get(module) or types.ModuleType(module)
        setattr(found, name, classes[name])
        for depth in range(1, module.count(".") + 1):  # pickle imports the parents, too
            parent = module.rsplit(".", depth)[0]
            monkeypatch.setitem(sys.modules, parent, sys.modules.get(parent) or types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, module, found)
    return classes


@pytest.mark.parametrize("saved_as", FORMATS)
def test_a_lightning_checkpoint_is_read_without_what_is_no_tensor(saved_as, lightning, tmp_path, monkeypatch):
    """As Lightning 1.3 writes it: callbacks under their class, sacred's settings, scores of numpy, optimiser state."""
    model = AllInOne(test_allinone.toy_config(), 31)
    callback = lightning["EarlyStopping"]()
    callback.patience = 3
    settings = lightning["ReadOnlyDict"](vit="vit_base_patch16_224", datasets=lightning["ReadOnlyList"](["msrvtt"]))
    content = {
        "epoch": 3, "global_step": 100, "pytorch-lightning_version": "1.3.2", "state_dict": model.state_dict(),
        "callbacks": {lightning["ModelCheckpoint"]: {"best_model_score": torch.tensor(1.0), "monitor": "val/the_metric"}},
        "other": callback, "hyper_parameters": lightning["AttributeDict"](config=settings),
        "scores": {"recall": np.float64(0.5), "curve": np.arange(3), "name": np.str_("val")},
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}],
    }  # fmt: skip
    torch.save(content, tmp_path / "last.ckpt", **FORMATS[saved_as])
    for name in [name for name in sys.modules if name.split(".")[0] in ("pytorch_lightning", "sacred")]:
        monkeypatch.delitem(sys.modules, name)
    check_equal(official.read(tmp_path / "last.ckpt"), model.state_dict())
    assert not any(name.startswith(("pytorch_lightning", "sacred")) for name in sys.modules)


def test_numpy_arrays_are_weights_too(tmp_path):
    torch.save({"a": np.arange(6.0).reshape(2, 3), "step": 3}, tmp_path / "arrays.bin")
    check_equal(official.read(tmp_path / "arrays.bin"), {"a": torch.arange(6.0, dtype=torch.float64).view(2, 3)})


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("saved_as", FORMATS)
@pytest.mark.parametrize("name", ["posix.system", "exec", "torch.load", "argparse.Namespace"])
def test_a_pickle_that_would_run_code_is_refused_by_name_and_runs_nothing(name, saved_as, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "evil.ckpt"
    call = {
        "posix.system": Calls(os.system, f"touch {trace}"),
        "exec": Calls(exec, f"open({str(trace)!r}, 'w')"),
        "torch.load": Calls(torch.load, str(trace)),
        "argparse.Namespace": argparse.Namespace(lr=1),  # harmless, but nobody has listed it
    }[name]
    weights = test_univl.toy_univl(test_univl.toy_config()).state_dict()
    torch.save({"state_dict": weights, "hyper_parameters": {"config": [call]}}, path, **FORMATS[saved_as])
    message = message_of(lambda: official.read(path))
    assert re.search(rf" names (\w+\.)*{re.escape(name.split('.')[-1])}, ", message)
    assert not trace.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_bare_pickle_runs_nothing(protocol, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps({"a": Calls(os.system, f"touch {trace}")}, protocol))
    message_of(lambda: official.read(path))
    assert not trace.exists()


def test_arrays_of_objects_are_refused(tmp_path):
    torch.save({"a": np.array([{}, None], dtype=object)}, tmp_path / "objects.bin")
    message_of(lambda: official.read(tmp_path / "objects.bin"))


@pytest.mark.parametrize("saved_as", FORMATS)
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, saved_as, tmp_path):
    whole, cut = tmp_path / "whole.bin", tmp_path / "cut.bin"
    torch.save(test_univl.toy_univl(test_univl.toy_config()).state_dict(), whole, **FORMATS[saved_as])
    content = whole.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    assert "can't be read as a checkpoint" in message_of(lambda: official.read(cut))


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_safetensors_file_is_refused(share, tmp_path):
    save_file({"a": torch.zeros(4000), "b": torch.zeros(3)}, tmp_path / "whole")
    check_equal(official.read(tmp_path / "whole"), {"a": torch.zeros(4000), "b": torch.zeros(3)})
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    assert "can't be read as a checkpoint" in message_of(lambda: official.read(tmp_path / "cut"))


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.bin").write_text("<html>Google Drive: quota exceeded</html>")
    torch.save({"epoch": 3}, tmp_path / "empty.bin")
    torch.save([torch.zeros(2)], tmp_path / "list.bin")
    assert "no such file" in message_of(lambda: official.read(tmp_path / "missing.bin"))
    assert "can't be read" in message_of(lambda: official.read(tmp_path / "text.bin"))
    assert "holds no weights by name" in message_of(lambda: official.read(tmp_path / "empty.bin"))
    assert "holds no weights by name" in message_of(lambda: official.read(tmp_path / "list.bin"))


def test_a_checkpoint_of_another_backbone_size_or_vocabulary_is_refused():
    model = AllInOne(test_allinone.toy_config(), 31)
    names = model.config.naming()
    lists = (names.may_be_missing, names.may_be_unexpected)
    univl = test_univl.toy_univl(test_univl.toy_config()).state_dict()
    wide = AllInOne(test_allinone.toy_config(hidden_size=32), 31).state_dict()
    deep = AllInOne(test_allinone.toy_config(num_layers=4), 31).state_dict()
    words = AllInOne(test_allinone.toy_config(), 40).state_dict()
    distilled = AllInOne(test_allinone.toy_config("distilled"), 31).state_dict()
    frames = AllInOne(test_allinone.toy_config(num_frames=2), 31).state_dict()
    assert "none of which belongs to AllInOne" in message_of(lambda: official.match(univl, model, *lists))
    assert "text_embeddings.LayerNorm.weight (32,) for (16,)" in message_of(lambda: official.match(wide, model, *lists))
    assert "unexpected transformer.blocks.3.norm1.weight" in message_of(lambda: official.match(deep, model, *lists))
    assert "transformer.dist_token" in message_of(lambda: official.match(distilled, model, *lists))
    assert "holds 40 words and the model's vocabulary 31" in message_of(lambda: official.match(words, model, *lists))
    assert "temporal_embed (1, 2, 16) for (1, 3, 16)" in message_of(lambda: official.match(frames, model, *lists))
    official.match(names.fit_start(frames, model), model, *lists)


def test_only_listed_entries_may_be_missing_or_unexpected():
    model = AllInOne(test_allinone.toy_config(), 31)
    state = model.state_dict()
    pretrained = OrderedDict((name, x) for name, x in state.items() if not name.startswith(("txt_proj.", "rank_output.")))
    pretrained |= {"text_embeddings.position_ids": torch.arange(9)[None], "aux_model.fc1.weight": torch.zeros(1, 128)}
    names = model.config.naming()
    official.match(pretrained, model, names.may_be_missing, names.may_be_unexpected)
    message = message_of(lambda: official.match(pretrained, model))
    for name in ("txt_proj.weight", "rank_output.bias", "text_embeddings.position_ids", "aux_model.fc1.weight"):
        assert name in message
    del pretrained["transformer.norm.weight"]
    missing = message_of(lambda: official.match(pretrained, model, names.may_be_missing, names.may_be_unexpected))
    assert missing.startswith("checkpoint=weights: 1 entries don't fit AllInOne: missing transformer.norm.weight;")


def test_reading_peaks_at_less_than_a_third_above_the_file(tmp_path):
    """In a process of its own: 96 MB in 4 MB tensors, every one of them used."""
    state = {f"layer{i}": torch.full((2**20,), float(i)) for i in range(24)}
    for saved_as, options in FORMATS.items():
        torch.save(state, tmp_path / saved_as, **options)
    torch.save({"a": torch.zeros(2)}, tmp_path / "small")
    program = """
import re, sys
from meltr_ray.video.checkpoints import official
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
official.read(sys.argv[1] + "/small")
before = peak()
for name in ("current", "older"):
    state = official.read(f"{sys.argv[1]}/{name}")
    assert sum(x.sum().item() for x in state.values()) == 2**20 * 276
    del state
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert int(done.stdout) <= 1.3 * (tmp_path / "current").stat().st_size
