"""Importing, starting from and exporting checkpoints: files of every kind, made here, since no released one is at hand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from meltr_ray.config import TuningConfig
from meltr_ray.config import file as config_file
from meltr_ray.training import checkpoint
from meltr_ray.training.tuning import merge, prepare_for_tuning
from meltr_ray.video.backbones.allinone.model import HEADS, AllInOne
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UniVLConfig
from meltr_ray.video.backbones.violet.losses import VioletLosses
from meltr_ray.video.backbones.violet.model import Violet
from meltr_ray.video.backbones.violet.settings import VioletConfig
from meltr_ray.video.checkpoints import official
from meltr_ray.video.checkpoints.exports import export_checkpoint
from meltr_ray.video.checkpoints.imports import import_checkpoint
from meltr_ray.video.checkpoints.start import check_start, load_start
from tests.commands import run
from tests.video import test_allinone, test_univl, test_violet
from tests.video.importing import CONFIGS, MODELS, WORDS, check_equal, drawn, message_of, write
from tests.video.settings import video_config
from workloads import cli, prepare


@pytest.mark.parametrize("name", MODELS)
def test_imported_started_from_and_exported_weights_are_those_of_the_file(name, tmp_path):
    theirs, ours = drawn(MODELS[name]), drawn(MODELS[name], seed=1)
    wrapper = theirs.config.naming().wrapper
    file = write(theirs.state_dict(), tmp_path / "theirs.bin", wrapper)
    facts = import_checkpoint([file], tmp_path / "imported", theirs.config)
    assert facts["missing"] == facts["not_used"] == facts["fitted"] == []
    config = replace(theirs.config, weights=str(tmp_path / "imported"))
    check_start(config, WORDS)
    assert load_start(ours, config, WORDS) == []
    check_equal(ours.state_dict(), theirs.state_dict())
    assert export_checkpoint(tmp_path / "imported", tmp_path / "back.bin") == []
    check_equal(official.read(tmp_path / "back.bin"), theirs.state_dict())
    assert set(torch.load(tmp_path / "back.bin")) == ({wrapper} if wrapper else set(theirs.state_dict()))
    import_checkpoint([tmp_path / "back.bin"], tmp_path / "again", theirs.config)
    check_equal(load_file(tmp_path / "again/weights.safetensors"), load_file(tmp_path / "imported/weights.safetensors"))
    assert sorted(os.listdir(tmp_path)) == ["again", "back.bin", "imported", "theirs.bin"]


def test_what_is_written_says_where_it_comes_from(tmp_path):
    """Read back by tools that know nothing of this project: sha256sum, and JSON."""
    model = drawn(MODELS["univl"])
    file = write(model.state_dict() | {"global_step": 3}, tmp_path / "univl.pretrained.bin")
    import_checkpoint([file], tmp_path / "imported", model.config)
    facts = json.loads((tmp_path / "imported/checkpoint.json").read_text())
    digest = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
    assert facts["sources"] == [{"file": file.name, "kind": "univl", "bytes": file.stat().st_size, "sha256": digest}]
    assert (facts["backbone"], facts["vocabulary_size"], facts["settings"]["text_layers"]) == ("univl", WORDS, 2)
    assert sum(x.numel() for x in load_file(tmp_path / "imported/weights.safetensors").values()) == sum(
        x.numel() for x in model.parameters()
    )


def test_a_part_of_the_list_is_missing_wholly_or_the_import_stops(tmp_path):
    """UniVL's fine-tuning of the joint similarity alone saves neither cross encoder nor decoder nor heads."""
    model = drawn(MODELS["univl"])
    parts = ("bert.", "visual.", "normalize_video.")
    state = {name: x for name, x in model.state_dict().items() if name.startswith(parts)}
    facts = import_checkpoint([write(state, tmp_path / "joint.bin")], tmp_path / "imported", model.config)
    assert {name.split(".")[0] for name in facts["missing"]} == {"cross", "decoder", "cls", "cls_visual", "similarity_dense"}
    ours = drawn(MODELS["univl"], seed=1)
    before = {name: x.clone() for name, x in ours.state_dict().items()}
    left = load_start(ours, replace(model.config, weights=str(tmp_path / "imported")), WORDS)
    assert left == facts["missing"]
    for name, x in ours.named_parameters():
        assert torch.equal(x, before[name] if name in left else model.state_dict()[name])
    del state["visual.encoder.layer.1.output.dense.bias"]
    state |= {name: x for name, x in model.state_dict().items() if name.startswith("cross.encoder")}
    broken = write(state, tmp_path / "broken.bin")
    message = message_of(lambda: import_checkpoint([broken], tmp_path / "no", model.config))
    assert "missing visual.encoder.layer.1.output.dense.bias, cross.embeddings.position_embeddings.weight, " in message
    assert not (tmp_path / "no").exists()


def test_tied_weights_that_differ_stop_the_import(tmp_path):
    model = drawn(MODELS["univl"])
    state = model.state_dict() | {"decoder.embeddings.word_embeddings.weight": torch.zeros(WORDS, 16)}
    file = write(state, tmp_path / "untied.bin")
    assert "are one weight" in message_of(lambda: import_checkpoint([file], tmp_path / "no", model.config))


def test_what_fine_tuning_makes_anew_stays_as_drawn(tmp_path):
    """Published: questions rename VIOLET's matching head, so theirs is new; other answers have another head."""
    pretrained, answers = drawn(MODELS["violet"]), drawn(MODELS["violet, answers"])
    state = pretrained.state_dict() | {"enc_txt.emb_txt.position_ids": torch.arange(12)[None]}
    facts = import_checkpoint([write(state, tmp_path / "pretrained.pt")], tmp_path / "pretrained", pretrained.config)
    assert facts["not_used"] == ["enc_txt.emb_txt.position_ids"]
    config = replace(pretrained.config, weights=str(tmp_path / "pretrained"))
    left = load_start(answers, config, WORDS)
    assert {name.split(".")[0] for name in left} == {"fc_vtm", "fc_oe"}
    export_checkpoint(tmp_path / "pretrained", tmp_path / "back.pt")
    assert torch.equal(official.read(tmp_path / "back.pt")["enc_txt.emb_txt.position_ids"], state["enc_txt.emb_txt.position_ids"])
    import_checkpoint([write(answers.state_dict(), tmp_path / "nine.pt")], tmp_path / "nine", answers.config)
    other = drawn(lambda: Violet(test_violet.toy_config(), WORDS, "open_ended", 5))
    assert {name.split(".")[0] for name in load_start(other, replace(config, weights=str(tmp_path / "nine")), WORDS)} == {"fc_oe"}
    state = {re.sub(r"^fc_oe\.", "fc.", name): x for name, x in answers.state_dict().items() if not name.startswith("fc_vtm.")}
    facts = import_checkpoint([write(state, tmp_path / "own.pt")], tmp_path / "own", answers.config)
    assert {name.split(".")[0] for name in facts["missing"]} == {"fc_vtm"}


def test_all_in_one_starts_with_other_frames_and_texts_and_ranks_as_it_matches(tmp_path):
    theirs = drawn(MODELS["allinone"])
    state = {name: x for name, x in theirs.state_dict().items() if not name.startswith(("rank_output.", "vqa_classifier."))}
    state |= {"aux_model.fc1.weight": torch.zeros(1, 128)}
    facts = import_checkpoint([write(state, tmp_path / "last.ckpt", "state_dict")], tmp_path / "imported", theirs.config)
    assert facts["not_used"] == ["aux_model.fc1.weight"]
    config = test_allinone.toy_config(num_frames=5, max_position_embeddings=20, weights=str(tmp_path / "imported"))
    ours = drawn(lambda: AllInOne(config, WORDS, tuple(head for head in HEADS if head != "vqa_classifier")))
    positions = ours.text_embeddings.position_embeddings.weight.clone()
    check_start(config, WORDS)
    assert load_start(ours, config, WORDS) == ["text_embeddings.position_embeddings.weight"]
    assert torch.equal(ours.text_embeddings.position_embeddings.weight, positions)
    frames = ours.transformer.temporal_embed
    assert torch.equal(frames[:, :3], theirs.transformer.temporal_embed) and not frames[:, 3:].any()
    assert torch.equal(ours.rank_output.weight, theirs.itm_score["fc"].weight[1:])


def hugging_face(module: nn.Module, folder: Path) -> Path:
    """`module` of transformers in the files that they write, whose names are those of the hub's older files."""
    module.save_pretrained(folder)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def transformers():
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


@pytest.fixture
def bert(transformers):
    torch.manual_seed(2)
    config = transformers.BertConfig(vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=32, max_position_embeddings=12, initializer_range=0.5)  # fmt: skip
    return transformers.BertForPreTraining(config).eval()


def started(name: str, files: list[Path], folder: Path, **settings) -> tuple[nn.Module, list[str]]:
    """A backbone that starts from the imported files, in evaluation mode, and the names that it drew."""
    config = replace(CONFIGS[name], **settings)
    import_checkpoint(files, folder, config)
    model = {"univl": lambda: UniVL(config, WORDS, 10), "violet": lambda: Violet(config, WORDS),
             "allinone": lambda: AllInOne(config, WORDS)}[name]()  # fmt: skip
    return model.eval(), load_start(model, replace(config, weights=str(folder)), WORDS)


def test_bert_is_the_text_encoder_of_univl_and_scores_its_words(bert, tmp_path):
    ids, mask = torch.tensor([[2, 7, 9, 30, 3], [2, 5, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    want = bert.bert(ids, mask).last_hidden_state
    older = {re.sub("LayerNorm.bias", "LayerNorm.beta", re.sub("LayerNorm.weight", "LayerNorm.gamma", name)): x
             for name, x in bert.state_dict().items()}  # fmt: skip
    bare = dict(bert.bert.state_dict())
    files = {"hub": hugging_face(bert, tmp_path), "older": write(older, tmp_path / "older.bin"),
             "bare": write(bare, tmp_path / "bare.bin")}  # fmt: skip
    for name, file in files.items():
        model, left = started("univl", [file], tmp_path / name)
        got = model.encode_text(ids, mask.bool())
        torch.testing.assert_close(got[mask.bool()], want[mask.bool()], rtol=1e-4, atol=1e-5)
        assert {name.split(".")[0] for name in left} >= {"visual", "cross", "decoder", "similarity_dense"}
        assert ("cls" in {name.split(".")[0] for name in left}) == (name == "bare")
    model, _ = started("univl", [files["hub"]], tmp_path / "words")
    torch.testing.assert_close(model.predict_words(want), bert.cls.predictions(want), rtol=1e-4, atol=1e-5)


def test_bert_and_an_image_swin_make_most_of_violet(transformers, bert, tmp_path):
    """One frame is followed by a frame of zeros, so half of the inflated patch remains, which its LayerNorm scales back."""
    torch.manual_seed(3)
    sizes = transformers.SwinConfig(image_size=32, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4)
    swin = transformers.SwinModel(sizes).eval()
    for name, p in swin.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name and name.endswith("weight")), std=0.3)
    torch.nn.init.zeros_(swin.embeddings.patch_embeddings.projection.bias)
    files = [hugging_face(bert, tmp_path / "bert"), hugging_face(swin, tmp_path / "swin")]
    model, left = started("violet", files, tmp_path / "imported")
    assert {name.split(".")[0] for name in left} == {"enc_img", "fc", "fc_mvm"}
    assert not any(name.startswith("enc_img.swin.") for name in left)
    image = torch.randn(2, 3, 32, 32)
    got = model.enc_img.swin(image[:, None])[:, 0].flatten(1, 2)
    torch.testing.assert_close(got, swin(image).last_hidden_state, rtol=1e-3, atol=1e-3)
    ids = torch.tensor([[2, 7, 9, 30, 3]])
    torch.testing.assert_close(model.embed_text(ids), bert.bert.embeddings(ids), rtol=1e-4, atol=1e-5)
    x, no_video, mask = torch.randn(1, 5, 16), torch.zeros(1, 0, 16), torch.ones(1, 5, dtype=torch.bool)
    want = bert.bert.encoder(x).last_hidden_state
    torch.testing.assert_close(model.encode_cross(x, mask, no_video), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.predict_words(want), bert.cls.predictions(want), rtol=1e-4, atol=1e-5)


def test_a_vit_is_the_transformer_of_all_in_one(transformers, bert, tmp_path):
    torch.manual_seed(4)
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                                    image_size=32, patch_size=8, layer_norm_eps=1e-6, initializer_range=0.3)  # fmt: skip
    vit = transformers.ViTModel(config).eval()
    files = [hugging_face(vit, tmp_path / "vit"), hugging_face(bert, tmp_path / "bert")]
    model, left = started("allinone", files, tmp_path / "imported", max_position_embeddings=9, num_frames=1)
    assert "transformer.temporal_embed" in left and not any(name.startswith(("transformer.blocks", "mlm_score")) for name in left)
    image = torch.randn(2, 3, 32, 32)
    tokens = model.transformer(image[:, None])  # without the token type, which a ViT doesn't have
    torch.testing.assert_close(model.encode_video(tokens, None), vit(image).last_hidden_state, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.text_embeddings.position_embeddings.weight, bert.bert.embeddings.position_embeddings.weight[:9])
    x = torch.randn(3, 16)
    torch.testing.assert_close(model.predict_words(x), bert.cls.predictions(x), rtol=1e-4, atol=1e-5)


def test_initialisations_in_original_names(tmp_path):
    """A Video Swin as its authors save it, a DeiT as its authors do; a ViT's positions for another size, bilinear."""
    swin = drawn(lambda: Violet(CONFIGS["violet"], WORDS)).enc_img.swin
    state = {f"backbone.{name}": x for name, x in swin.state_dict().items()} | {"cls_head.fc_cls.weight": torch.zeros(4, 16)}
    torch.save({"meta": {"epoch": 30}, "state_dict": state}, tmp_path / "swin_patch244.pth")
    model, _ = started("violet", [tmp_path / "swin_patch244.pth"], tmp_path / "swin")
    check_equal(model.enc_img.swin.state_dict(), swin.state_dict())

    theirs = drawn(lambda: AllInOne(CONFIGS["allinone"], WORDS)).transformer
    state = {name: x for name, x in theirs.state_dict().items() if name != "temporal_embed"} | {"head.weight": torch.zeros(5, 16)}
    file = write(state, tmp_path / "deit_tiny_patch8_32.pth", "model")
    model, left = started("allinone", [file], tmp_path / "deit")
    assert all(torch.equal(x, state[name]) for name, x in model.transformer.state_dict().items() if name in state)
    assert not model.transformer.temporal_embed.any() and "pooler.dense.weight" in left
    ramp = torch.linspace(0, 3, 4)[:, None] + torch.linspace(0, 30, 4)[None, :]  # bilinear: exact inside, flat at the edges
    state["pos_embed"] = torch.cat((torch.full((1, 1, 16), 7.0), ramp.view(1, 16, 1).expand(-1, -1, 16)), dim=1)
    write(state, file, "model")
    model, _ = started("allinone", [file], tmp_path / "wide", image_size=64)
    first, grid = model.transformer.pos_embed[0, :, 3].split([1, 64])
    finer = torch.arange(6) / 2 + 0.25
    assert first == 7 and torch.allclose(grid.view(8, 8)[1:-1, 1:-1], finer[:, None] + 10 * finer)


def small_files(folder: Path) -> dict[str, Path]:
    univl, violet = drawn(MODELS["univl"]), drawn(MODELS["violet"])
    files = {"univl": write(univl.state_dict(), folder / "univl.bin"), "violet": write(violet.state_dict(), folder / "violet.pt")}
    files["strange"] = write({"conv1.weight": torch.zeros(2)}, folder / "resnet.pth")
    swin = {name.removeprefix("enc_img.swin."): x for name, x in violet.state_dict().items() if name.startswith("enc_img.swin.")}
    files["swin"] = write(swin, folder / "swin.pt")
    return files


def test_files_that_do_not_belong_are_refused_and_nothing_is_written(tmp_path):
    files, univl, violet = small_files(tmp_path), test_univl.toy_config(), test_violet.toy_config()
    before = sorted(os.listdir(tmp_path))

    def refused(config, *names: str, **arguments) -> str:
        return message_of(lambda: import_checkpoint([files[name] for name in names], tmp_path / "no", config, **arguments))

    assert "is a checkpoint of VIOLET, not for backbone=univl; set backbone=violet" in refused(univl, "violet")
    assert "is a checkpoint of Swin, not for backbone=univl; use a checkpoint of UniVL, BERT" in refused(univl, "swin")
    assert "names are those of no known model; use a checkpoint of VIOLET, BERT, Swin" in refused(violet, "strange")
    assert "an earlier file has enc_img.swin." in refused(violet, "violet", "swin")
    assert "has 31 words, the vocabulary 30; set data.vocabulary" in refused(univl, "univl", vocabulary_size=30)
    deeper, wider = test_univl.toy_config(text_layers=3), test_univl.toy_config(hidden_size=32)
    assert "missing bert.encoder.layer.2.attention.self.query.weight" in refused(deeper, "univl")
    assert "of another shape bert.embeddings.word_embeddings.weight (31, 16) for (31, 32)" in refused(wider, "univl")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_start_that_does_not_fit_is_refused_before_any_weight_is_made(tmp_path):
    file, folder = small_files(tmp_path)["univl"], tmp_path / "imported"
    import_checkpoint([file], folder, test_univl.toy_config())
    config = test_univl.toy_config(weights=str(folder))

    def refused(vocabulary_size: int = WORDS, feature_size: int | None = 10, weights: Path = folder, **settings) -> str:
        return message_of(lambda: check_start(replace(config, weights=str(weights), **settings), vocabulary_size, feature_size))

    content = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(content[:-1000])
    assert "isn't as it was written" in refused()
    (folder / "weights.safetensors").write_bytes(content)
    assert "has 31 words, the vocabulary 30522; set data.vocabulary" in refused(30522)
    assert "takes 10 features a frame, the data set has 512" in refused(feature_size=512)
    assert "hidden_size=16 instead of 64, num_heads=2 instead of 4" in message_of(
        lambda: check_start(UniVLConfig(size="tiny", weights=str(folder)), WORDS)
    )
    assert "num_heads=2 instead of 4" in refused(num_heads=4)  # which no shape tells
    assert "no imported checkpoint is there; make one" in refused(feature_size=None, weights=tmp_path)
    violet = replace(CONFIGS["violet"], weights=str(folder))
    assert "holds univl, not violet; set backbone=univl" in message_of(lambda: check_start(violet, WORDS))


def test_the_best_weights_of_a_run_are_exported(tmp_path):
    config = video_config(backbone=VioletConfig(cross_layers=1, swin_depths=[1, 1]))
    model = VioletLosses(drawn(lambda: Violet(config.workload.backbone, WORDS)), config.workload.task)
    config_file.write(tmp_path / "run/config.yaml", config)
    checkpoint.save_weights(tmp_path / "run/best.safetensors", dict(model.named_parameters()) | dict(model.named_buffers()), {})
    assert export_checkpoint(tmp_path / "run", tmp_path / "ours.pt") == []
    check_equal(official.read(tmp_path / "ours.pt"), model.backbone.state_dict())
    assert "exists; choose" in message_of(lambda: export_checkpoint(tmp_path / "run", tmp_path / "ours.pt"))
    assert "holds neither" in message_of(lambda: export_checkpoint(tmp_path, tmp_path / "other.pt"))
    content = bytearray((tmp_path / "run/best.safetensors").read_bytes())
    content[-5] ^= 1
    (tmp_path / "run/best.safetensors").write_bytes(content)
    assert "best.safetensors: isn't as it was written" in message_of(lambda: export_checkpoint(tmp_path / "run", tmp_path / "other.pt"))
    save_file({"backbone.fc.1.gate": torch.zeros(2)}, tmp_path / "run/best.safetensors")
    assert "holds fc.1.gate, which" in message_of(lambda: export_checkpoint(tmp_path / "run", tmp_path / "other.pt"))


def test_weights_trained_by_lora_are_exported_as_those_of_their_layers(tmp_path):
    """Against peft's own merging."""
    tuning = TuningConfig(lora=["query", "value"], lora_rank=3, lora_alpha=5.0)
    config = video_config(backbone=VioletConfig(cross_layers=1), tuning=tuning)
    model = VioletLosses(drawn(lambda: Violet(config.workload.backbone, WORDS)), config.workload.task)
    prepare_for_tuning(model, config)
    for name, p in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(p)
    config_file.write(tmp_path / "config.yaml", config)
    checkpoint.save_weights(tmp_path / "best.safetensors", dict(model.named_parameters()) | dict(model.named_buffers()), {})
    assert export_checkpoint(tmp_path, tmp_path / "merged.pt") == []
    merge(model)
    got = official.read(tmp_path / "merged.pt")
    assert list(got) == list(model.backbone.state_dict())
    for name, x in model.backbone.state_dict().items():
        torch.testing.assert_close(got[name], x, rtol=1e-5, atol=1e-6)


def test_the_command_finds_the_size_and_ends_errors_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = drawn(lambda: UniVL(UniVLConfig(size="small"), WORDS, 10))
    write(model.state_dict(), tmp_path / "univl.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "univl.bin").read_bytes()[:100_000])
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main(prepare.prepare, prepare.__doc__, own=prepare.PrepareConfig)
        out = capsys.readouterr()
        assert not out.err or re.fullmatch(r"error: [\w.]+=[^\n]+: [^\n]+; [^\n]+\n", out.err)
        return ended.value.code, out.out + out.err

    for arguments, rule in {
        ("checkpoint=cut.bin",): "can't be read as a checkpoint",
        ("checkpoint=nowhere.bin",): "no such file",
        ("checkpoint=.",): "is a folder",
        ("checkpoint=[]",): "names no file",
        ("backbone=violet", "checkpoint=univl.bin"): "set backbone=univl",
        ("backbone.size=tiny", "checkpoint=univl.bin"): "entries don't fit UniVL",
        ("data.vocabulary=vocab.txt", "checkpoint=univl.bin"): "has 31 words, the vocabulary 6",
    }.items():
        code, text = command(*arguments)
        assert code == 2 and rule in text
    assert sorted(os.listdir()) == ["cut.bin", "univl.bin", "vocab.txt"]
    code, text = command("checkpoint=univl.bin")
    assert code == 0 and "univl of size small, 31 words" in text and "outputs/checkpoints/univl-univl" in text
    code, text = command("checkpoint=outputs/checkpoints/univl-univl", "export=back.bin")
    assert code == 0 and (tmp_path / "back.bin").exists()
    check_equal(official.read("back.bin"), model.state_dict())
    assert command("checkpoint=univl.bin", "name=univl-univl")[0] == 2


def test_a_file_that_would_run_code_ends_the_command(tmp_path):
    class Calls:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'trace'}",)

    torch.save({"state_dict": {"a": torch.zeros(2)}, "callbacks": Calls()}, tmp_path / "evil.ckpt")
    code, text = run("prepare", "backbone=allinone", "checkpoint=evil.ckpt", cwd=tmp_path)
    assert code == 2 and text.count("\n") == 1 and "posix.system" in text
    assert sorted(os.listdir(tmp_path)) == ["evil.ckpt", "prepare.out"]


@pytest.mark.whole
def test_importing_and_starting_take_a_third_more_memory_than_the_file_at_most(tmp_path):
    """In a process of its own, after a small one has loaded what must be loaded: 140 MB."""
    sizes = dict(size="tiny", hidden_size=384, num_heads=6, feed_forward_size=1536, text_layers=8, visual_layers=6)
    program = f"""
import re, sys
from pathlib import Path
from meltr_ray.video.checkpoints.imports import import_checkpoint
from meltr_ray.video.checkpoints.start import load_start
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UniVLConfig
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
sizes, folder = {sizes}, Path({str(tmp_path)!r})
for name, config in ("small", UniVLConfig()), ("big", UniVLConfig(**sizes)):
    config.weights = str(folder / f"{{name}}-imported")
    before = peak()
    if sys.argv[1] == "import":
        import_checkpoint([folder / f"{{name}}.bin"], folder / f"{{name}}-imported", config)
    if sys.argv[1] == "start":
        load_start(UniVL(config, 31 if name == "small" else 3000, 64), config, 31 if name == "small" else 3000)
print(peak() - before)
"""
    torch.save(UniVL(UniVLConfig(**sizes), 3000, 64).state_dict(), tmp_path / "big.bin")
    torch.save(UniVL(UniVLConfig(), 31, 64).state_dict(), tmp_path / "small.bin")
    done = {}
    for step in ("import", "start"):
        process = subprocess.run([sys.executable, "-c", program, step], capture_output=True, text=True, check=True,
                                 cwd=Path(__file__).parents[2])  # fmt: skip
        done[step] = int(process.stdout)
    size = (tmp_path / "big.bin").stat().st_size
    assert size > 100e6 and done["import"] <= 1.3 * size and done["start"] <= 1.3 * size
