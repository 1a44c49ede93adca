"""What trains and how fast: names, LoRA, heads, rates of layers, and schedules. The engine is in test_tuning_engine.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from meltr_ray.config import Config, OptimizerConfig, TrainConfig, TuningConfig
from meltr_ray.errors import ConfigError
from meltr_ray.training.schedules import rate_factor
from meltr_ray.training.tuning import check_tuning, layer_factors, merge, own_name, parameter_groups, prepare_for_tuning
from meltr_ray.video.backbones.allinone.model import AllInOne
from meltr_ray.video.backbones.allinone.settings import AllInOneConfig
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UniVLConfig
from meltr_ray.video.backbones.violet.model import Violet
from meltr_ray.video.backbones.violet.settings import VioletConfig
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.datasets.prepare import prepare
from meltr_ray.video.tasks.settings import TaskConfig
from meltr_ray.video.workload import Video
from tests.reference import relative_error
from tests.video.settings import video_config


class Around(nn.Module):
    """Holds a backbone as the losses of a task do."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone


# --- the backbones: what has which name

BACKBONES = {
    "univl": (lambda config: UniVL(config, 50, 8), UniVLConfig, ["query", "value", "intermediate.dense"]),
    "violet": (lambda config: Violet(config, 50), VioletConfig, ["qkv", "attn.proj", "query", "fc2"]),
    "allinone": (lambda config: AllInOne(config, 50, ("itm_score", "mlm_score")), AllInOneConfig, ["qkv", "proj", "fc1"]),
}


def backbone_of(name: str, device: str = "cpu", **tuning) -> tuple[Around, Config]:
    make, kind, targets = BACKBONES[name]
    config = Config(workload=Video(backbone=kind()), tuning=TuningConfig(**tuning))
    torch.manual_seed(0)
    with torch.device(device):
        return Around(make(config.workload.backbone).eval()), config


def output(backbone: nn.Module) -> Tensor:
    """What comes out of all of a backbone's encoders, for one text and video."""
    torch.manual_seed(1)  # All-in-one shuffles patches
    ids, mask = torch.arange(5, 13).view(2, 4), torch.ones(2, 4, dtype=torch.bool)
    if isinstance(backbone, UniVL):
        text, video = backbone.encode_text(ids, mask), backbone.encode_video(torch.randn(2, 3, 8), mask[:, :3])
        both = backbone.encode_cross(text, mask, video, mask[:, :3])
        return backbone.predict_caption(ids, mask, both, torch.ones(2, 7, dtype=torch.bool), mask)
    frames = torch.rand(2, 3, 3, 32, 32)
    if isinstance(backbone, Violet):
        return backbone.encode_cross(backbone.embed_text(ids), mask, backbone.encode_video(frames))
    return backbone.encode_joint(ids, mask, backbone.embed_video(frames), num_kept=None)


@pytest.mark.parametrize("name", BACKBONES)
def test_lora_starts_from_the_same_function_and_merges_into_the_published_names(name):
    targets = BACKBONES[name][2]
    model, config = backbone_of(name, lora=targets, lora_rank=3, trained=[])
    names, before = list(model.state_dict()), output(model.backbone)
    prepare_for_tuning(model, config)
    assert relative_error(output(model.backbone), before) < 1e-6  # a frozen bias lets Video Swin take another kernel
    training = [n for n, p in model.named_parameters() if p.requires_grad]
    assert training and all("lora_A" in n or "lora_B" in n for n in training)
    for n, p in model.named_parameters():
        if "lora_B" in n:
            nn.init.normal_(p, std=0.1)
    tuned = output(model.backbone)
    assert relative_error(tuned, before) > 0.05
    merge(model)
    assert list(model.state_dict()) == names and relative_error(output(model.backbone), tuned) < 1e-5


HEADS = {
    "univl": {"decoder.classifier", "cls", "cls_visual", "similarity_dense"},
    "violet": {"fc", "fc_mtm", "fc_mvm"},
    "allinone": {"pooler", "itm_score", "mlm_score"},
}


@pytest.mark.parametrize("name", BACKBONES)
def test_beside_lora_the_heads_train_and_nothing_else(name):
    model, config = backbone_of(name, lora=BACKBONES[name][2])
    prepare_for_tuning(model, config)
    whole = {own_name(n, "backbone") for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert {next(h for h in HEADS[name] if n.startswith(f"{h}.")) for n in whole} == HEADS[name]
    untrained = {own_name(n, "backbone") for n, p in model.named_parameters() if not p.requires_grad}
    assert not any(n.startswith(f"{h}.") for n in untrained for h in HEADS[name])


def test_the_innermost_name_decides_what_trains():
    model, config = backbone_of("univl", frozen=["bert", "visual", "bert.encoder.layer.1.output"], trained=["bert.encoder.layer.1"],
                                lora=["query"])  # fmt: skip
    prepare_for_tuning(model, config)
    training = {own_name(n, "backbone") for n, p in model.named_parameters() if p.requires_grad}
    assert "bert.encoder.layer.1.attention.self.query.weight" in training
    assert not any(n.startswith(("bert.encoder.layer.0", "bert.encoder.layer.1.output", "visual", "cls")) for n in training)
    assert "cross.encoder.layer.0.attention.self.query.lora_A.default.weight" in training


WRONG = [
    (dict(lora=["quary"]), "tuning.lora=quary: there is no linear layer of this name; use a name such as query"),
    (dict(lora=["ery"]), "tuning.lora=ery: there is no linear layer"),
    (dict(frozen=["bert.enc"]), "tuning.frozen=bert.enc: there is no such module; use a name such as bert.encoder"),
    (dict(rates={"vision": 2.0}), "tuning.rates=vision: there is no such module; use a name such as bert, visual, cross"),
    (dict(lora=["word_embeddings"]), "shares its weight with cls_visual.predictions"),
    (dict(lora=["similarity_dense"]), "tuning.lora=similarity_dense: names only layers that are frozen or train as a whole"),
    (dict(frozen=["bert", "visual", "cross", "decoder", "cls", "cls_visual", "similarity_dense", "normalize_video"]), "nothing to train"),
]


@pytest.mark.parametrize("tuning, line", WRONG)
def test_wrong_names_meet_one_line_from_a_model_without_weights(tuning, line):
    model, config = backbone_of("univl", "meta", **tuning)
    with pytest.raises(ConfigError) as caught:
        check_tuning(config, model)
    assert line in str(caught.value) and "\n" not in str(caught.value)


LAYER_RATES = {  # of decay 0.5: heads 0, the last layer 1, one more for each layer down and for the embeddings
    "univl": {"similarity_dense.weight": 0, "bert.pooler.dense.bias": 0, "bert.encoder.layer.1.output.dense.weight": 1,
              "bert.encoder.layer.0.output.dense.weight": 2, "bert.embeddings.word_embeddings.weight": 3,
              "visual.encoder.layer.0.attention.self.key.bias": 1, "normalize_video.visual_norm2d.bias": 2,
              "decoder.decoder.layer.0.slf_attn.att.query.weight": 1, "decoder.classifier.cls.predictions.bias": 0},
    "violet": {"fc.1.weight": 0, "enc_img.norm.bias": 0, "enc_img.swin.layers.1.blocks.1.norm1.weight": 1,
               "enc_img.swin.layers.1.blocks.0.norm1.weight": 2, "enc_img.swin.layers.0.downsample.norm.weight": 3,
               "enc_img.swin.layers.0.blocks.1.norm1.weight": 3, "enc_img.swin.layers.0.blocks.0.norm1.weight": 4,
               "enc_img.swin.patch_embed.proj.bias": 5, "trsfr.layer.1.output.dense.bias": 1,
               "enc_txt.emb_txt.word_embeddings.weight": 3},
    "allinone": {"pooler.dense.weight": 0, "transformer.norm.weight": 0, "transformer.blocks.1.mlp.fc1.weight": 1,
                 "transformer.blocks.0.attn.qkv.bias": 2, "transformer.pos_embed": 3, "text_embeddings.word_embeddings.weight": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_layers_further_down_train_at_lower_rates(name):
    model, config = backbone_of(name, "meta", layer_decay=0.5)
    found = layer_factors([own_name(n, "backbone") for n, _ in model.named_parameters()], config)
    assert {n: found.get(n) for n in LAYER_RATES[name]} == {n: 0.5**depth for n, depth in LAYER_RATES[name].items()}


def test_groups_hold_each_trained_weight_once():
    model, config = backbone_of("univl", lora=["query"], layer_decay=0.5, rates={"bert": 0.1, "bert.encoder.layer.1": 3.0})
    prepare_for_tuning(model, config)
    groups = parameter_groups(model, config)
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) and {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}
    of = {id(p): group for group in groups for p in group["params"]}
    query = model.backbone.bert.encoder.layer[1].attention["self"].query
    assert of[id(query.lora_A["default"].weight)]["rate"] == 3.0 * 0.5
    assert of[id(model.backbone.bert.encoder.layer[0].attention["self"].query.lora_B["default"].weight)]["rate"] == 0.1 * 0.25
    bias = of[id(model.backbone.similarity_dense.bias)]
    assert (bias["rate"], bias["weight_decay"]) == (1.0, 0.0)


# --- schedules


@pytest.mark.parametrize("total, warmup", [(40, 0.1), (25, 0.1), (30, 0.0)])
def test_schedules_are_those_of_transformers(total, warmup):
    """What All-in-one trains with, step by step: the rate that torch's scheduler leaves in the group."""
    transformers = pytest.importorskip("transformers")
    warm = int(total * warmup)
    wanted = {
        ("cosine", 0.0, 1.0): lambda o: transformers.get_cosine_schedule_with_warmup(o, warm, total),
        ("polynomial", 0.0, 1.0): lambda o: transformers.get_polynomial_decay_schedule_with_warmup(o, warm, total, lr_end=0),
        ("polynomial", 0.1, 2.0): lambda o: transformers.get_polynomial_decay_schedule_with_warmup(o, warm, total, lr_end=0.02, power=2),
    }
    for (schedule, end, power), make in wanted.items():
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.2)
        scheduler, settings = make(optimizer), OptimizerConfig(schedule=schedule, warmup=warmup, end=end, power=power)
        for step in range(total):
            assert 0.2 * rate_factor(settings, step, total) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), (schedule, step)
            optimizer.step()
            scheduler.step()


def test_schedules_of_univl_and_violet():
    def factors(steps, total, **settings):
        return [rate_factor(OptimizerConfig(**settings), step, total) for step in steps]

    assert factors(range(4), 20, schedule="constant", warmup=0.0) == [1, 1, 1, 1]  # VIOLET
    assert factors((0, 2, 4, 19), 20, schedule="constant", warmup=0.2) == [0.25, 0.75, 1, 1]
    # UniVL with MELTR, n = 1, 2, .. of a period of 9 steps: x = n / 10, up to 0.2, then down, and over again
    univl = factors((0, 1, 2, 8, 9, 10), 100, schedule="warmup_linear", warmup=0.2, period=9)
    assert univl == pytest.approx([0.5, 1, 0.7 / 0.8, 0.1 / 0.8, 0, 0.5])


def test_a_data_set_without_frames_lacks_the_encoder_of_frames_and_is_trained(tmp_path):
    """As CMU-MOSI by its transcripts and audio."""
    generator = np.random.default_rng(0)
    names = [f"{video}_{clip}" for video in "abcdefgh" for clip in range(4)]
    split = ["train"] * 20 + ["valid"] * 8 + ["test"] * 4
    rows = [
        f"{name[0]},{name[2]},{name},word {number},{number % 7 - 3},{part},0,1" for number, (name, part) in enumerate(zip(names, split))
    ]
    (tmp_path / "mosi_meta.csv").write_text("video_id,clip_id,id,text,score,split,start,end\n" + "\n".join(rows) + "\n")
    np.savez(tmp_path / "mosi_audio.npz", id=names, audio=generator.normal(size=(len(names), 5)).astype(np.float32))
    prepare("mosi", tmp_path, tmp_path / "out", lambda line: None)
    data = DataConfig(name="mosi", folder=str(tmp_path / "out"))
    config = video_config(
        data=data, task=TaskConfig(name="sentiment"), train=TrainConfig(batch_size=2), tuning=TuningConfig(layer_decay=0.5)
    )
    module = config.workload.module()
    prepare_for_tuning(module, config)
    assert [encoder[0] for encoder in config.workload.encoders] == ["bert", "cross", "decoder.embeddings"]
    assert len(parameter_groups(module, config)) > 2
