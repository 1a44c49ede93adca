"""Compares meltr_ray's All-in-one with a checkout of the authors' code, and prints a table of errors.

    python -m tests.video.parity.allinone <checkout>/allinone [--stand-ins FOLDER] [--base [SIZE ...]] [--write]

<checkout> is one of github.com/mlvlab/MELTR. Their code imports packages that no longer install together: pytorch_lightning
1.3, timm 0.4, torchvision, ipdb, scikit-learn. Where one is missing, `--stand-ins` is a folder with modules of those names;
what runs of them here is `LightningModule` (`save_hyperparameters`, a silent `log`), `Metric` (`add_state`, a call is `update`
and `compute`), timm's `to_2tuple`, `trunc_normal_`, `DropPath` and `register_model`. BERT's embeddings come from
`transformers`, as theirs do.

`--base`: also the published sizes, in float64 and float32, two clips of three frames (see `compare_precisions`; size S takes
4 GB, size B 9 GB). `--write`: stores the numbers that tests/video/test_allinone.py checks.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import importlib
import io
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from meltr_ray.video.backbones.allinone import model as allinone
from meltr_ray.video.backbones.allinone.inputs import AllInOneBatch
from meltr_ray.video.backbones.allinone.losses import compute_losses
from meltr_ray.video.backbones.allinone.model import AllInOne
from meltr_ray.video.backbones.allinone.settings import AllInOneConfig
from meltr_ray.video.checkpoints import official
from tests.video import test_allinone as ours

Quantities = Iterator[tuple[str, torch.Tensor | list[torch.Tensor]]]
"""Outputs and losses by name; gradients of a loss, one a parameter, under a name that starts with `gradient`."""
RUNS = (("theirs", torch.float64, ()), ("ours", torch.float64, (torch.float64,)), ("theirs", torch.float32, (torch.float64,)),
        ("ours", torch.float32, (torch.float32, torch.float64)))  # fmt: skip
"""Models in the order they run: whose, its precision, and the precisions of theirs that it is compared with."""
TASKS = ("itm", "mlm", "ind_itc", "irtr", "multiple_choice", "mc_vqa", "openend_vqa")
NAMES = ("itm", "itc", "mlm", "mpp", "ind_itc", "vcop", "vqa", "openend_vqa", "mc_vqa", "nlvr2", "irtr", "multiple_choice",
         "vcr_q2a", "zs_classify")  # fmt: skip
COMPUTE = {"matching": "compute_itm_wpa", "alignment": "compute_itm_wpa", "masked_language": "compute_mlm",
           "contrastive": "compute_ind_itc", "rank": "compute_multiple_choice", "choice": "compute_mc_vqa_q2a",
           "answer": "compute_openend_vqa", "irtr_loss": "compute_irtr"}  # fmt: skip
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
        for i in range(batch.choice_ids.size(1) - 1):
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


def their_loss(authors: Authors, model: torch.nn.Module, batch: AllInOneBatch, name: str) -> torch.Tensor:
    """A loss by our name, or `irtr_loss`."""
    num_choices, settings = batch.choice_ids.size(1), model.hparams.config
    # there the number of false texts counts the right text in one task and not in the other
    num_false = num_choices - (name == "irtr_loss")
    with mock.patch.dict(settings, draw_false_text=num_false, draw_options_text=num_choices):
        found = getattr(authors.objectives, COMPUTE[name])(model, their_batch(batch))
    return found[ours.PUBLISHED_LOSSES.get(name, name)]


def our_loss(model: AllInOne, batch: AllInOneBatch, name: str) -> torch.Tensor:
    if name == "irtr_loss":
        batch, name = replace(batch, answer=torch.zeros_like(batch.answer)), "rank"
    return compute_losses(model, batch, (name,))[name]


def their_passes(model: torch.nn.Module, batch: AllInOneBatch) -> dict[str, torch.Tensor]:
    theirs = their_batch(batch)
    tokens = model.transformer.visual_embed(batch.video.flatten(0, 1), max_image_len=-1, mask_it=False)[0]
    joint = model.infer(theirs)
    passes = {"projected text": model.infer(theirs, input_text_only=True)["text_feats"][:, 0]}
    passes["projected video"] = model.infer(theirs, input_image_only=True)["image_feats"][:, 0]
    tasks, model.current_tasks = model.current_tasks, []  # without projections, to compare the encodings
    passes |= {
        "tokens": tokens + model.token_type_embeddings.weight[1],
        "joint": torch.cat((joint["text_feats"], joint["image_feats"]), dim=1),
        "text": model.infer(theirs, input_text_only=True)["text_feats"][:, :1],
        "video": model.infer(theirs, input_image_only=True)["image_feats"][:, :1],
    }
    model.current_tasks = tasks
    pooled = joint["cls_feats"]
    return passes | {
        "pooled": pooled, "word scores": model.mlm_score(joint["text_feats"]), "match scores": model.itm_score(pooled),
        "rank scores": model.rank_output(pooled)[:, 0], "choice scores": model.mc_vqa_classifier(pooled)[:, 0],
        "answer scores": model.vqa_classifier(pooled),
    }  # fmt: skip


def our_passes(model: AllInOne, batch: AllInOneBatch, order: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same of our methods."""
    tokens = model.embed_video(batch.video)
    joint = model.encode_joint(batch.text_ids, batch.text_mask, tokens, None)
    text, video = model.encode_text(batch.text_ids, batch.text_mask), model.encode_video(tokens)
    num_first = tokens.size(2) - order.size(1)
    places = torch.cat((torch.arange(num_first).expand(len(order), -1), num_first + order), dim=1)  # (T, K+P)
    shuffled = torch.stack([tokens[:, t, place] for t, place in enumerate(places)], dim=1)
    return {
        "tokens": shuffled.flatten(0, 1), "joint": joint, "text": text,
        "video": video,  # patches keep their order here: attention doesn't see it, and nothing rolls
        "projected text": model.txt_proj(text[:, 0]), "projected video": model.vid_proj(video[:, 0]),
        "pooled": model.pooler(joint), "word scores": model.predict_words(joint[:, : batch.text_ids.size(1)]),
        "match scores": model.predict_match(joint), "rank scores": model.predict_rank(joint),
        "choice scores": model.predict_choice(joint), "answer scores": model.predict_answer(joint),
    }  # fmt: skip


def gradients(loss: torch.Tensor, model: torch.nn.Module) -> list[torch.Tensor]:
    """One a parameter, by sorted name."""
    parameters = [p for _, p in sorted(model.named_parameters())]
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True))


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference over the largest absolute value."""
    return ((got - want).abs().max() / want.abs().max().clamp(min=1e-30)).item()


def gradient_errors(got: list[torch.Tensor], want: list[torch.Tensor]) -> tuple[float, float]:
    """Norm of the difference over the norm, of all gradients together and of the worst parameter.

    The latter without parameters whose gradient is below 1e-5 of the whole: ones of rounding size alone, as a key's bias has.
    """
    differences = torch.stack([(a - b).norm().double() for a, b in zip(got, want, strict=True)])
    sizes = torch.stack([b.norm().double() for b in want])
    counted = sizes > 1e-5 * sizes.norm()
    return (differences.norm() / sizes.norm()).item(), (differences[counted] / sizes[counted]).max().item()


def compare_precisions(quantities: Callable[[str, torch.dtype], Quantities]) -> dict[str, list[float]]:
    """Quantity -> errors in the order of `RUNS`: float64 of both; float32 of theirs against their float64; float32 of both;
    float32 of ours against their float64. So where the two float32 differ, the second and the last say whose rounding it is.

    `quantities(owner, dtype)` gives those of "ours" or "theirs", and frees its model at the end; theirs wait in files.
    """
    rows = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for owner, dtype, references in RUNS:
            for name, value in quantities(owner, dtype):
                for reference in references:
                    for row, error in errors(name, value, torch.load(Path(folder) / f"{name} {reference}")).items():
                        rows[row].append(error)
                if owner == "theirs":
                    torch.save(value, Path(folder) / f"{name} {dtype}")
                del value  # before the next gradients are there
    return rows


def errors(name: str, got: torch.Tensor | list[torch.Tensor], want: torch.Tensor | list[torch.Tensor]) -> dict[str, float]:
    if isinstance(got, torch.Tensor):
        return {name: relative(got, want)}
    return dict(zip((name, f"{name}, worst"), gradient_errors(got, want)))


def print_precisions(title: str, rows: dict[str, list[float]]) -> None:
    """Columns: ours and theirs, both in float64, both in float32; then each in float32 against theirs in float64."""
    print(f"{title:16}{'quantity':34}{'float64':>10}{'float32':>10}{'theirs':>10}{'ours':>10}")
    for name, (exact, theirs, single, ours_) in rows.items():
        print(f"{title:16}{name:34}{exact:10.1e}{single:10.1e}{theirs:10.1e}{ours_:10.1e}")


def shake(model: torch.nn.Module) -> None:
    """Noise on every parameter, so that none is 0 or 1 throughout, as a constructor leaves biases and scales."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.02)


def compare(title: str, authors: Authors, theirs: torch.nn.Module, model: AllInOne, batch, order) -> dict[str, np.ndarray]:
    """Print the errors of one model; return what the tests store."""
    stored = {}
    with same_draws(batch, order):
        with torch.no_grad():
            got, want = our_passes(model, batch, order), their_passes(theirs, batch)
        for name, value in want.items():
            print(f"{title:18} {name:16} output {relative(got[name], value):8.1e}")
        stored |= {name: want[name].numpy() for name in ("joint", "text", "video")}
        want = {name: their_loss(authors, theirs, batch, name) for name in COMPUTE}
        directions, rows = ours.probes(model), []
        for name, loss in want.items():
            expected, got = gradients(loss, theirs), our_loss(model, batch, name)
            whole, worst = gradient_errors(gradients(got, model), expected)
            print(f"{title:18} {name:16} loss   {relative(got, loss):8.1e}  gradient {whole:8.1e}  worst {worst:8.1e}")
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
        official.save(model.state_dict(), returned, "state_dict")
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
    parser.add_argument("--base", nargs="*", metavar="SIZE", help="sizes; none given: Ti, S and B")
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
    for size in () if options.base is None else options.base or BUILDERS:
        print_precisions(size, compare_precisions(functools.partial(base_quantities, authors, size)))
    if options.write:
        np.savez_compressed(ours.REFERENCE, **stored)


def base_batch(dtype: torch.dtype) -> AllInOneBatch:
    """Two clips at 224 pixels, texts of 40 and 17 pieces, a false text of 30 and of 40 pieces."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([[40, 30], [17, 40]])[..., None]
    choice_mask = torch.arange(40) < lengths
    choice_ids = torch.where(choice_mask, torch.randint(1000, 30522, choice_mask.shape, generator=generator), 0)
    choice_ids = choice_ids.scatter(2, lengths - 1, 102)
    choice_ids[..., 0] = 101
    ids, mask = choice_ids[:, 0], choice_mask[:, 0]
    masked = (ids >= 1000) & (torch.rand(mask.shape, generator=generator) < 0.15)
    video, false_video = torch.randn(2, 2, 3, 3, 224, 224, generator=generator).to(dtype)
    return AllInOneBatch(
        ids, mask, video, torch.where(masked, 103, ids), torch.where(masked, ids, -1), false_video,
        matched=torch.tensor([False, True]), choice_ids=choice_ids, choice_mask=choice_mask, answer=torch.tensor([0, 1]),
    )  # fmt: skip


def base_quantities(authors: Authors, size: str, owner: str, dtype: torch.dtype) -> Quantities:
    """Those of a published size, in evaluation mode; weights as their constructor draws them, and noise."""
    torch.manual_seed(0)
    model = authors.named(size)
    shake(model)
    if owner == "ours":
        state, model = model.state_dict(), AllInOne(AllInOneConfig(size=size), 30522).eval()
        model.load_state_dict(state)
        del state
    model, batch, generator = model.to(dtype), base_batch(dtype), torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(196, generator=generator) for _ in range(3)])
    with same_draws(batch, order):
        with torch.no_grad():
            passes = our_passes(model, batch, order) if owner == "ours" else their_passes(model, batch)
        yield from passes.items()
        del passes
        for name in COMPUTE:
            loss = our_loss(model, batch, name) if owner == "ours" else their_loss(authors, model, batch, name)
            yield f"loss {name}", loss.detach()
            yield f"gradient {name}", gradients(loss, model)
            del loss  # and its graph, before the next one's


if __name__ == "__main__":
    main()
