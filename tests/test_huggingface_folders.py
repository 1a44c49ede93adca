"""Folders of weights, as `from_pretrained` reads and a run leaves them: refused where they are none or damaged."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from meltr_ray.config import Config, TuningConfig
from meltr_ray.errors import ConfigError
from meltr_ray.training.checkpoint import check_fingerprint
from meltr_ray.training.tuning import merge, prepare_for_tuning
from tests.huggingface_models import MODELS


@pytest.mark.parametrize("change, words", [
    (lambda x: (7 * x).to(torch.int8), r"layer_norm.weight in model.safetensors is of type I8, where a model has"),
    (lambda x: x.to(torch.complex64), r"layer_norm.weight in model.safetensors is of type C64, where a model has"),
    (None, "model.safetensors can't be read"), ("a pipe", "model.safetensors: is no file; move it away"),
])  # fmt: skip
def test_weights_of_a_folder_that_are_none_are_refused(change, words, tmp_path):
    workload = MODELS["luke"]()
    workload.module().model.save_pretrained(tmp_path / "pretrained")
    file = tmp_path / "pretrained" / "model.safetensors"
    if change is None:
        file.write_bytes(file.read_bytes()[:500])
    elif change == "a pipe":
        file.unlink()
        os.mkfifo(file)
    else:
        save_file(
            {name: change(x) if name.endswith("layer_norm.weight") else x for name, x in load_file(file).items()}, file, {"format": "pt"}
        )
    with pytest.raises(ConfigError, match=words):
        MODELS["luke"](pretrained=str(tmp_path / "pretrained")).module()


@pytest.mark.parametrize("damage, words", [
    (lambda folder: (folder / "config.json").write_text("{"), "config.json isn't that of a LukeForMaskedLM .*; restore it from a copy"),
    (lambda folder: (folder / "config.json").write_text("[1]"), "config.json isn't that of a LukeForMaskedLM .*; restore it from a copy"),
    (lambda folder: (folder / "config.json").write_text('{"vocab_size": "many"}'), "config.json isn't that of a LukeForMaskedLM .*; restore it from a copy"),
    (lambda folder: one_not_finite(folder / "model.safetensors"), "[a-z_.0-9]*layer_norm.weight has a number that is not finite; restore it from a copy"),
])  # fmt: skip
def test_a_damaged_folder_of_a_model_is_refused(damage, words, tmp_path):
    workload = MODELS["luke"]()
    workload.module().model.save_pretrained(tmp_path / "pretrained")
    damage(tmp_path / "pretrained")
    with pytest.raises(ConfigError, match=words) as refused:
        MODELS["luke"](pretrained=str(tmp_path / "pretrained")).module()
    assert "\n" not in str(refused.value)


def one_not_finite(file):
    weights = load_file(file)
    next(x for name, x in weights.items() if name.endswith("layer_norm.weight"))[0] = float("nan")
    save_file(weights, file, {"format": "pt"})


def test_a_run_knows_the_folder_that_its_weights_came_from(tmp_path):
    """One bit of a weight: the next trial of a resumed sweep would start from another model."""
    workload = MODELS["luke"]()
    workload.module().model.save_pretrained(tmp_path / "pretrained")
    assert workload.fingerprint() == {}
    loaded = MODELS["luke"](pretrained=str(tmp_path / "pretrained"))
    known = loaded.fingerprint()
    check_fingerprint(loaded, known)
    file = tmp_path / "pretrained" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"its data \(pretrained of the fingerprint\) aren't the run's any more"):
        check_fingerprint(loaded, known)


def test_what_a_run_leaves_for_from_pretrained_is_read_as_it_was_written(tmp_path):
    """Any bit of any of its files; a tokenizer that somebody puts beside them is none of them."""
    workload, folder = MODELS["luke"](), tmp_path / "pretrained"
    workload.keep(workload.module(), tmp_path)
    (folder / "vocab.txt").write_text("a")
    again = MODELS["luke"](pretrained=str(folder))
    assert again.module().drawn == []
    for file in (folder / "config.json", folder / "model.safetensors", folder / "SHA256"):
        whole = file.read_bytes()
        for position in (0, len(whole) // 3, len(whole) - 2):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            with pytest.raises(ConfigError, match="isn't as a run wrote it; restore it from a copy, or delete SHA256"):
                again.module()
        file.write_bytes(whole)
    (folder / "SHA256").write_text("")
    with pytest.raises(ConfigError, match="SHA256 isn't as a run wrote it"):
        again.module()
    (folder / "SHA256").unlink()
    one_not_finite(folder / "model.safetensors")
    workload.keep(workload.module(), tmp_path)  # the end of a run that was resumed
    assert again.module().drawn == []


def test_the_best_weights_of_a_run_with_lora_are_loaded_back_by_from_pretrained(tmp_path):
    """Merged: the folder holds a plain model, which computes what the trained one does, and from which a workload starts."""
    from transformers import LukeForMaskedLM

    class Lora(MODELS["luke"]):
        encoders = (("luke",),)

    workload = Lora()
    config = Config(workload=workload, tuning=TuningConfig(lora=["query", "value"], lora_rank=2))
    torch.manual_seed(0)
    module = workload.module()
    prepare_for_tuning(module, config)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in trained) and not any("luke.embeddings" in name for name in trained)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p)) if p.requires_grad else None
    batch = workload.batch([0, 1, 2], np.random.default_rng(0))
    expected = module.eval()(batch)
    merge(module)
    workload.keep(module, tmp_path)
    loaded = LukeForMaskedLM.from_pretrained(tmp_path / "pretrained", local_files_only=True).eval()
    again = Lora(pretrained=str(tmp_path / "pretrained"))
    assert again.found().drawn == ()
    for name in again.losses:
        assert torch.allclose(loaded(**batch)[name], expected[name], rtol=1e-4)
        assert torch.allclose(again.module().eval()(batch)[name], expected[name], rtol=1e-4)
