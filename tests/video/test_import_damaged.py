"""Imported weights and files of torch that are no weights or are damaged: refused, or read as they were."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from meltr_ray.config import ConfigError
from meltr_ray.video.checkpoints import official
from meltr_ray.video.checkpoints.exports import export_checkpoint
from meltr_ray.video.checkpoints.imports import import_checkpoint
from meltr_ray.video.checkpoints.start import check_start, load_start
from tests.video.importing import MODELS, WORDS, check_equal, drawn, message_of, write


@pytest.mark.parametrize("change, words", [
    (lambda w: (10 * w).to(torch.int8), "is int8 where the model has float32"), (lambda w: w.to(torch.complex64), "is complex64 where the model has float32"),
    (lambda w: w / 0, "has a number that is not finite"),
])  # fmt: skip
def test_entries_that_are_no_weights_stop_the_import(change, words, tmp_path):
    model = drawn(MODELS["univl"])
    name = "visual.embeddings.position_embeddings.weight"
    file = write(model.state_dict() | {name: change(model.state_dict()[name])}, tmp_path / "odd.bin")
    assert (
        f"{name} {words}" in message_of(lambda: import_checkpoint([file], tmp_path / "no", model.config)) and not (tmp_path / "no").exists()
    )


@pytest.mark.parametrize("position", [9, 40, 1000, -5], ids=["names", "shapes", "numbers", "the last"])
def test_imported_weights_that_are_damaged_are_neither_trained_nor_exported(position, tmp_path):
    model = drawn(MODELS["univl"])
    import_checkpoint([write(model.state_dict(), tmp_path / "whole.bin")], tmp_path / "imported", model.config)
    config = replace(model.config, weights=str(tmp_path / "imported"))
    load_start(model, config, WORDS)
    content = bytearray((tmp_path / "imported/weights.safetensors").read_bytes())
    content[position] ^= 1
    (tmp_path / "imported/weights.safetensors").write_bytes(content)
    words = "its weights.safetensors isn't as it was written; import it again"
    assert words in message_of(lambda: check_start(config, WORDS))  # before any worker starts
    assert words in message_of(lambda: load_start(model, config, WORDS))
    assert words in message_of(lambda: export_checkpoint(tmp_path / "imported", tmp_path / "no.bin"))
    assert not (tmp_path / "no.bin").exists()


def test_facts_of_an_import_that_are_damaged_are_told_from_missing_ones(tmp_path, capsys):
    """One is mended from its copy; of both, or of what no import wrote, one line says so; nothing waits for a pipe."""
    model, folder = drawn(MODELS["univl"]), tmp_path / "imported"
    import_checkpoint([write(model.state_dict(), tmp_path / "whole.bin")], folder, model.config)
    config, facts, copy = replace(model.config, weights=str(folder)), folder / "checkpoint.json", folder / ".checkpoint.json.copy"
    facts.unlink()
    check_start(config, WORDS)
    assert export_checkpoint(folder, tmp_path / "back.bin") == [] and "its copy is used" in capsys.readouterr().err
    for content, words in {"{": "its checkpoint.json isn't as it was written", '{"version": 1}': "lacks what an import writes"}.items():
        for file in (facts, copy):
            file.write_text(content)
        assert words in message_of(lambda: check_start(config, WORDS))
        assert words in message_of(lambda: export_checkpoint(folder, tmp_path / "no.bin"))
    import_checkpoint([tmp_path / "whole.bin"], tmp_path / "second", model.config)
    (tmp_path / "second/weights.safetensors").unlink()
    os.mkfifo(tmp_path / "second/weights.safetensors")
    for call in (lambda: check_start(replace(config, weights=str(tmp_path / "second")), WORDS),
                 lambda: export_checkpoint(tmp_path / "second", tmp_path / "no.bin")):  # fmt: skip
        assert "its weights.safetensors isn't as it was written" in message_of(call)


@pytest.mark.parametrize("name", ["univl", "violet", "allinone"])
def test_a_file_of_torch_that_is_damaged_anywhere_is_refused_or_read_as_it_was(name, tmp_path):
    """Its zip has a checksum of each record, at which torch doesn't look."""
    model = drawn(MODELS[name])
    file = write(model.state_dict(), tmp_path / "whole.pt", model.config.naming().wrapper)
    want, whole, refused = official.read(file), file.read_bytes(), 0
    want = {entry: x.clone() for entry, x in want.items()}
    for region in range(60):
        position = region * len(whole) // 60 + 7
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << region % 8]) + whole[position + 1 :])
        try:
            check_equal(official.read(file), want)  # between two records there are bytes that say nothing
        except ConfigError as error:
            assert "; fetch it again" in str(error), position
            refused += 1
    assert refused > 20


def test_a_file_of_torch_that_was_written_without_checksums_is_read(tmp_path):
    model = drawn(MODELS["univl"])
    torch.serialization.set_crc32_options(False)
    try:
        file = write(model.state_dict(), tmp_path / "plain.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    check_equal(official.read(file), model.state_dict())
