"""Compares meltr_ray's All-in-one with a checkout of the authors' code, and prints a table of errors.

    python -m tests.parity.allinone <checkout of github.com/mlvlab/MELTR>/allinone [--stand-ins FOLDER] [--base] [--write]

Their code imports packages that no longer install together: pytorch_lightning 1.3, timm 0.4, torchvision, ipdb,
scikit-learn. Where one is missing, `--stand-ins` is a folder with modules of those names; what runs of them here is
`LightningModule` (`save_hyperparameters`, a silent `log`), `Metric` (`add_state`, a call is `update` and `compute`), timm's
`to_2tuple`, `trunc_normal_`, `DropPath` and `register_model`. BERT's embeddings come from `transformers`, as theirs do.

`--base`: also one forward and backward pass of size B (4 GB). `--write`: stores the numbers that tests/test_allinone.py checks.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from meltr_ray.backbones import allinone, official
from meltr_ray.backbones.allinone import AllInOne
from meltr_ray.config import AllInOneConfig
from meltr_ray.tasks.allinone import PUBLISHED_LOSSES, AllInOneBatch, compute_losses
from tests import test_allinone as ours

TASKS = ("itm", "mlm", "ind_itc", "irtr", "multiple_choice", "mc_vqa", "openend_vqa")
NAMES = ("itm", "itc", "mlm", "mpp", "ind_itc", "vcop", "vqa", "openend_vqa", "mc_vqa", "nlvr2", "irtr", "multiple_choice",
         "vcr_q2a", "zs_classify")  # fmt: skip
COMPUTE = {"matching": "compute_itm_wpa", "alignment": "compute_itm_wpa", "masked_language": "compute_mlm",
           "contrastive": "compute_ind_itc", "rank": "compute_multiple_choice", "choice": "compute_mc_vqa_q2a",
           "answer": "compute_openend_vqa"}  # fmt: skip
BUILDERS = {"Ti": "vit_deit_tiny_patch16_224", "S": "vit_deit_small_distilled_patch16_224", "B": "vit_base_patch16_224"}


class Authors:
    """Their modules, imported from a checkout."""

    def __init__(self, checkout: str, stand_ins: str | None):
        for name in ("transformers.models.bert.modeling_bert", "transformers.optimization"):
            importlib.import_module(name)  # first: a stand-in for torchvision must not reach it
        sys.path[:0] = [folder for folder in (stand_ins, checkout) if folder]
        self.module = importlib.import_module("AllInOne.modules.allinone_module")
        self.vit = importlib.import_module("AllInOne.modules.base_vision_transformer")
        self.objectives = importlib.import_module("AllInOne.modules.objectives")
        self.utils = importlib.import_module("AllInOne.modules.allinone_utils")
        torch.autograd.set_detect_anomaly(False)  # their module switches it on for the whole process

    def build(self, config: AllInOneConfig, vit: str, vocabulary_size: int, num_answers: int) -> torch.nn.Module:
        """Their class with every head of a video task, in evaluation mode; its ranking head in memory of its own."""
        settings = dict(
            vocab_size=vocabulary_size, hidden_size=config.hidden_size, num_layers=config.num_layers,
            num_heads=config.num_heads, mlp_ratio=config.feed_forward_size // config.hidden_size,
            max_text_len=config.max_position_embeddings, drop_rate=0.1, load_path="", test_only=False, vit=vit,
            num_frames=config.num_frames, shared_embedding_dim=config.retrieval_size, msrvttqa_label_size=num_answers,
            linear_evaluation=False, max_image_len=-1, draw_false_text=ours.CHOICES, draw_options_text=ours.CHOICES,
            loss_names={name: int(name in TASKS) for name in NAMES}, auxgrad_every=5, gamma=0.1, meltr_lr=1e-4,
            meltr_decay=3e-5, max_grad_norm=1,
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            model = self.module.AllinoneTransformerSS(settings)
        model.rank_output = copy.deepcopy(model.rank_output)
        del model.aux_model
        self.utils.set_task(model)
        return model.eval()

    def toy(self, variant: str) -> torch.nn.Module:
        config = ours.toy_config(variant)
        kind = self.vit.DistilledVisionTransformer if config.distilled else self.vit.VisionTransformer
        name = "toy_deit" if config.unaligned_tokens == 2 else "toy"

        def build(pretrained: bool, config: dict) -> torch.nn.Module:
            sizes = ours.toy_config(variant)
            return kind(
                img_size=sizes.image_size, patch_size=sizes.patch_size, embed_dim=sizes.hidden_size,
                depth=sizes.num_layers, num_heads=sizes.num_heads, mlp_ratio=config["mlp_ratio"], config=config,
            )  # fmt: skip

        setattr(self.vit, name, build)
        model = self.build(config, name, ours.WORDS, ours.ANSWERS)
        ours.fill(model)
        return model

    def named(self, size: str) -> torch.nn.Module:
        """A published size, without the download that its constructor asks for."""
        builder = getattr(self.vit, BUILDERS[size])
        with mock.patch.object(self.vit, BUILDERS[size], lambda pretrained, config: builder(pretrained=False, config=config)):
            return self.build(AllInOneConfig(size=size), BUILDERS[size], 30522, 1501)


def their_batch(batch: AllInOneBatch) -> dict:
    """Our batch in their form."""
    ids, mask = batch.text_ids, batch.text_mask.long()
    theirs = {
        "image": [batch.video], "false_image_0": [batch.false_video], "text": [""] * len(ids), "text_ids": ids,
        "text_masks": mask, "text_labels": torch.full_like(ids, -100), "text_ids_mlm": batch.masked_text_ids,
        "text_labels_mlm": batch.masked_word_labels.where(batch.masked_word_labels >= 0, torch.tensor(-100)),
        "answer": batch.answer.tolist(), "vqa_labels": batch.answer.tolist(),
    }  # fmt: skip
    for kind in ("false_text", "options_text"):
        for i in range(ours.CHOICES - 1):
            theirs[f"{kind}_{i}_ids"] = batch.choice_ids[:, i + 1]
            theirs[f"{kind}_{i}_masks"] = batch.choice_mask[:, i + 1].long()
            theirs[f"{kind}_{i}_labels"] = torch.full_like(ids, -100)
    return theirs


@contextlib.contextmanager
def same_draws(batch: AllInOneBatch, order: torch.Tensor):
    """Patches in `order` (T, P) in both codes, matched pairs those of `batch`, and no float32 inside a float64 loss."""
    calls, to_float = [], torch.Tensor.float
    positions = torch.argsort(batch.matched, descending=True, stable=True).argsort()  # ones first, as they build the labels

    def multinomial(weights: torch.Tensor, count: int, **options) -> torch.Tensor:
        calls.append(1)
        return order[(len(calls) - 1) % len(order)]

    with (
        mock.patch.object(torch, "multinomial", multinomial),
        mock.patch.object(torch, "randperm", lambda count: positions),
        mock.patch.object(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else to_float(x)),
        mock.patch.object(allinone, "random_order", lambda patches: order.expand(len(patches), -1, -1)),
    ):
        yield


def their_losses(authors: Authors, model: torch.nn.Module, batch: AllInOneBatch) -> dict[str, torch.Tensor]:
    found, theirs = {}, their_batch(batch)
    for name, function in COMPUTE.items():
        found[name] = getattr(authors.objectives, function)(model, theirs)[PUBLISHED_LOSSES[name]]
    model.hparams.config["draw_false_text"] -= 1  # there it counts the right text in one task and not in the other
    found["irtr_loss"] = authors.objectives.compute_irtr(model, theirs)["irtr_loss"]
    model.hparams.config["draw_false_text"] += 1
    return found


def our_losses(model: AllInOne, batch: AllInOneBatch) -> dict[str, torch.Tensor]:
    found = compute_losses(model, batch, ours.LOSSES)
    first = replace(batch, answer=torch.zeros_like(batch.answer))
    return found | {"irtr_loss": compute_losses(model, first, ("rank",))["rank"]}


def their_passes(model: torch.nn.Module, batch: AllInOneBatch) -> dict[str, torch.Tensor]:
    theirs = their_batch(batch)
    joint = model.infer(theirs)
    tasks, model.current_tasks = model.current_tasks, []  # without projections, to compare the encodings
    passes = {
        "joint": torch.cat((joint["text_feats"], joint["image_feats"]), dim=1),
        "text": model.infer(theirs, input_text_only=True)["text_feats"][:, :1],
        "video": model.infer(theirs, input_image_only=True)["image_feats"][:, :1],
    }
    model.current_tasks = tasks
    words = model.mlm_score(joint["text_feats"])
    scores = {"match scores": model.itm_score(joint["cls_feats"]), "answer scores": model.vqa_classifier(joint["cls_feats"])}
    return passes | {"pooled": joint["cls_feats"], "word scores": words} | scores


def our_passes(model: AllInOne, batch: AllInOneBatch) -> dict[str, torch.Tensor]:
    tokens = model.embed_video(batch.video)
    joint = model.encode_joint(batch.text_ids, batch.text_mask, tokens, None)
    passes = {
        "joint": joint,
        "text": model.encode_text(batch.text_ids, batch.text_mask),
        "video": model.encode_video(tokens),  # patches keep their order here: attention doesn't see it, and nothing rolls
    }
    words = model.predict_words(joint[:, : batch.text_ids.size(1)])
    scores = {"match scores": model.predict_match(joint), "answer scores": model.predict_answer(joint)}
    return passes | {"pooled": model.pooler(joint), "word scores": words} | scores


def gradients(loss: torch.Tensor, model: torch.nn.Module) -> list[torch.Tensor]:
    parameters = [p for _, p in sorted(model.named_parameters())]
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).norm() / want.norm().clamp(min=1e-30)).item()


def gradient_errors(got: list[torch.Tensor], want: list[torch.Tensor]) -> tuple[float, float]:
    """Relative error of all gradients together, and of the worst parameter; ones of rounding size alone count as 0."""
    whole = torch.cat([x.flatten() for x in want])
    counted = [(a, b) for a, b in zip(got, want, strict=True) if b.norm() > 1e-5 * whole.norm()]
    return relative(torch.cat([x.flatten() for x in got]), whole), max(relative(a, b) for a, b in counted)


def compare(title: str, authors: Authors, theirs: torch.nn.Module, model: AllInOne, batch, order) -> dict[str, np.ndarray]:
    """Print the errors of one model; return what the tests store."""
    stored = {}
    with same_draws(batch, order):
        with torch.no_grad():
            got, want = our_passes(model, batch), their_passes(theirs, batch)
        for name, value in want.items():
            print(f"{title:18} {name:16} output {relative(got[name], value):8.1e}")
        stored |= {name: want[name].numpy() for name in ("joint", "text", "video")}
        got, want = our_losses(model, batch), their_losses(authors, theirs, batch)
        directions, rows = ours.probes(model), []
        for name, loss in want.items():
            expected = gradients(loss, theirs)
            whole, worst = gradient_errors(gradients(got[name], model), expected)
            print(f"{title:18} {name:16} loss   {relative(got[name], loss):8.1e}  gradient {whole:8.1e}  worst {worst:8.1e}")
            rows.append([(g * d.to(g.dtype)).sum().item() for g, d in zip(expected, directions.values())])
    stored["losses"] = np.array([want[name].item() for name in ours.LOSSES])
    stored["gradients"] = np.array([row for name, row in zip(want, rows) if name in ours.LOSSES])
    return stored


def exchange(title: str, theirs: torch.nn.Module, model: AllInOne) -> None:
    """Their checkpoint into our model, and ours back into theirs, by files."""
    with tempfile.TemporaryDirectory() as folder:
        sent, returned = Path(folder) / "theirs.ckpt", Path(folder) / "ours.ckpt"
        torch.save({"state_dict": theirs.state_dict(), "hyper_parameters": dict(theirs.hparams), "epoch": 0}, sent)
        state = official.read(sent)
        official.match(state, model)
        model.load_state_dict(state)
        official.export(model, returned, "state_dict")
        back = torch.load(returned, weights_only=True)["state_dict"]
        theirs.load_state_dict(back, strict=True)
        same = all(torch.equal(x, back[name]) for name, x in state.items())
    print(f"{title:18} checkpoint there and back: {'equal' if same else 'DIFFERS'}")


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout")
    parser.add_argument("--stand-ins")
    parser.add_argument("--base", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    authors, stored = Authors(options.checkout, options.stand_ins), {}
    linspace = torch.linspace
    for size in BUILDERS:
        with torch.device("meta"), mock.patch.object(torch, "linspace", lambda *a: linspace(*a, device="cpu")):
            theirs, model = authors.named(size), AllInOne(AllInOneConfig(size=size), 30522)
        same, count = shapes(theirs) == shapes(model), sum(p.numel() for p in model.parameters())
        print(f"{size:18} names and shapes {'equal' if same else 'DIFFER'}, {len(shapes(model))} entries, {count} parameters")
        stored[f"shapes_{size}"] = np.frombuffer(json.dumps(shapes(theirs)).encode(), dtype=np.uint8)
    for variant in ours.VARIANTS:
        for dtype in (torch.float64, torch.float32):
            title = f"{variant} {str(dtype).removeprefix('torch.')}"
            theirs, model = authors.toy(variant), ours.toy_model(variant)
            exchange(title, theirs, model)
            found = compare(title, authors, theirs.to(dtype), model.to(dtype), ours.toy_batch(dtype), ours.patch_order())
            if dtype == torch.float64:
                stored |= {f"{name}_{variant}": value for name, value in found.items()}
    if options.base:
        compare_base(authors)
    if options.write:
        np.savez_compressed(ours.REFERENCE, **stored)


def compare_base(authors: Authors) -> None:
    """Size B, float32, two clips, weights as their constructor draws them: a joint pass and its loss."""
    torch.manual_seed(0)
    theirs, model = authors.named("B"), AllInOne(AllInOneConfig(size="B"), 30522).eval()
    model.load_state_dict(theirs.state_dict())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30522, (2, 40), generator=generator)
    labels = torch.where(torch.arange(40) % 5 == 2, ids, -1)
    video = torch.randn(2, 3, 3, 224, 224, generator=generator)
    batch = AllInOneBatch(ids, torch.ones_like(ids, dtype=torch.bool), video, ids, labels, video.flip(0),
                                   torch.tensor([True, False]))  # fmt: skip
    order = torch.stack([torch.randperm(196, generator=generator) for _ in range(3)])
    loss = {"masked_language": "compute_mlm", "contrastive": "compute_ind_itc"}
    form = {
        "image": [video], "text_ids": ids, "text_masks": torch.ones_like(ids), "text_labels": labels, "text_ids_mlm": ids,
        "text_labels_mlm": labels.where(labels >= 0, torch.tensor(-100)),
    }  # fmt: skip
    with same_draws(batch, order):
        for name, function in loss.items():
            want = getattr(authors.objectives, function)(theirs, form)[PUBLISHED_LOSSES[name]]
            got = compute_losses(model, batch, (name,))[name]
            whole, worst = gradient_errors(gradients(got, model), gradients(want, theirs))
            print(f"{'B float32':18} {name:16} loss   {relative(got, want):8.1e}  gradient {whole:8.1e}  worst {worst:8.1e}")


if __name__ == "__main__":
    main()
