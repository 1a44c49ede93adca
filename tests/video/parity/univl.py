"""Compare UniVL with the authors' code: python -m tests.video.parity.univl <checkout>/univl [--base] [--step] [--store]

Run from the root of this repository; <checkout> is one of github.com/mlvlab/MELTR. Their files import boto3 and requests for
downloads that nothing here asks for; empty modules stand in where those are missing.

Prints a table of relative errors on the toy model of tests/video/test_univl.py, in float64 and float32: names, shapes and counts,
each intermediate, each loss, each loss's gradient; the errors of BertAdam; and how many captions their beam search and ours agree
on, on models drawn at random. `--base`: also at the published size, two
clips (8 GB of memory). `--step`: instead, weights and combiner after each step of their training loop and of ours
(tests/video/test_published_step.py). `--store`: writes the numbers that tests/video/test_univl.py and, with `--step`,
tests/video/test_published_step.py read.

Where ours differs by design: padding after a caption is no target of ours unless its label says so, so both get a batch with
-1 there (their loss's own way to leave a position out) and, in a row of its own, one with the 0 of their data loader; heads
of ours take the positions that are asked for, here all; token types of the text are 0 in both.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import random
import sys
import types
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from meltr_ray.config import Config
from meltr_ray.training.bert_adam import SCHEDULES, BertAdam, learning_rate_factor
from meltr_ray.video.backbones.univl.inputs import UniVLBatch
from meltr_ray.video.backbones.univl.losses import UniVLLosses
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UNIVL_LOSSES, UniVLConfig
from meltr_ray.video.clips import masking
from meltr_ray.video.tasks.beam_search import beam_search
from meltr_ray.video.tasks.settings import TaskConfig
from tests.reference import flat
from tests.video import test_published_step as step
from tests.video import test_univl as toy
from tests.video.settings import vector

ABSENT = {"boto3": (), "botocore": (), "botocore.exceptions": ("ClientError",), "requests": ()}
"""Package that their files import for downloads -> names that they take from it."""
LOOP = ("prep_optimizer", "train_epoch")
"""Functions of their main.py that make up the training step."""


class Authors:
    """Their modules, imported from a checkout."""

    def __init__(self, checkout: Path):
        for name, members in ABSENT.items():
            try:
                importlib.import_module(name)
            except ImportError:
                sys.modules[name] = types.ModuleType(name)
                vars(sys.modules[name]).update(dict.fromkeys(members, Exception))
        sys.path.insert(0, str(checkout))
        self.checkout = checkout
        names = ("modeling", "meltr", "optimization", "module_bert", "module_visual", "module_cross", "module_decoder")
        vars(self).update({name: importlib.import_module(f"modules.{name}") for name in names})

    def univl(self, config: UniVLConfig, num_words: int, video_size: int, num_clips: int) -> nn.Module:
        """Their class with the sizes of `config`; dropout off."""
        sizes = dict(hidden_size=config.hidden_size, num_attention_heads=config.num_heads, hidden_dropout_prob=0.0,
                     intermediate_size=config.feed_forward_size, attention_probs_dropout_prob=0.0)  # fmt: skip
        positions, both = config.max_position_embeddings, config.max_cross_position_embeddings
        configs = (
            self.module_bert.BertConfig(num_words, max_position_embeddings=positions, type_vocab_size=2, **sizes),
            self.module_visual.VisualConfig(video_size, max_position_embeddings=positions, **sizes),
            self.module_cross.CrossConfig(config.hidden_size, max_position_embeddings=both, **sizes),
            self.module_decoder.DecoderConfig(num_words, max_target_embeddings=positions, **sizes),
        )
        task = types.SimpleNamespace(
            max_words=1, max_frames=1, text_num_hidden_layers=config.text_layers, visual_num_hidden_layers=config.visual_layers,
            cross_num_hidden_layers=config.cross_layers, decoder_num_hidden_layers=config.decoder_layers, video_dim=video_size,
            batch_size=num_clips, n_gpu=1, n_pair=1, margin=0.1, negative_weighting=1, hard_negative_rate=0.5, use_mil=False,
            local_rank=1,
        )  # fmt: skip
        return self.modeling.UniVL(*configs, task)

    def loop(self, **names: Any) -> dict[str, Any]:
        """`LOOP` of their main.py, which can't be imported whole, in a namespace with `names` for its globals."""
        tree = ast.parse((self.checkout / "main.py").read_text())
        tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in LOOP]
        names |= dict(torch=torch, np=np, tqdm=iter, BertAdam=self.optimization.BertAdam,
                      AverageMeter=importlib.import_module("utils.utils").AverageMeter)  # fmt: skip
        exec(compile(tree, "main.py", "exec"), names)
        return names


@contextmanager
def precise() -> Iterator[None]:
    """No float32 inside their float64 model."""
    to_float = torch.Tensor.float
    with mock.patch.object(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else to_float(x)):
        yield


def their_batch(batch: UniVLBatch) -> tuple[Tensor, ...]:
    """Our batch as their data loader gives it: masks of 0 and 1, for a masked frame any label but -1."""
    labels = torch.where(batch.masked_frames, torch.arange(batch.masked_frames.size(1)), -1)
    return (batch.text_ids, batch.text_mask.long(), torch.zeros_like(batch.text_ids), batch.video, batch.video_mask.long(),
            batch.masked_text_ids, batch.masked_word_labels, batch.masked_video, labels,
            batch.decoder_input_ids, batch.decoder_mask.long(), batch.decoder_target_ids)  # fmt: skip


def their_losses(theirs: nn.Module, batch: UniVLBatch) -> Tensor:
    ids, mask, types_, video, video_mask, *rest = their_batch(batch)
    names = ("pairs_masked_text", "pairs_token_labels", "masked_video", "video_labels_index",
             "input_caption_ids", "decoder_mask", "output_caption_ids")  # fmt: skip
    return torch.stack(theirs(ids, types_, mask, video, video_mask, **dict(zip(names, rest)), tasks=[1] * 8))


def their_passes(theirs: nn.Module, batch: UniVLBatch) -> dict[str, Tensor]:
    """Intermediates of the clean view, or of the masked one ("masked ...")."""
    ids, mask, types_, video, video_mask, masked_ids, _, masked_video, _, caption, caption_mask, _ = their_batch(batch)
    found = {}
    for view, text, frames in (("", ids, video), ("masked ", masked_ids, masked_video)):
        frames = theirs.normalize_video(frames)
        sequence, visual = theirs.get_sequence_visual_output(text, types_, mask, frames, video_mask, shaped=True)
        crossed, pooled, _ = theirs._get_cross_output(sequence, visual, mask, video_mask)
        words, shown = crossed.split((mask.size(1), video_mask.size(1)), dim=1)
        pair = (sequence, visual, mask, video_mask)
        text_mean, video_mean = theirs._mean_pooling_for_similarity(*pair)
        decoded, _ = theirs._get_decoder_score(sequence, visual, ids, mask, video_mask, caption, caption_mask, shaped=True)
        found |= {
            f"{view}frames": frames, f"{view}sequence output": sequence, f"{view}visual output": visual,
            f"{view}cross output": crossed, f"{view}pooled output": pooled,
            f"{view}text mean": nn.functional.normalize(text_mean, dim=-1),
            f"{view}video mean": nn.functional.normalize(video_mean, dim=-1),
            f"{view}joint similarity": theirs.get_similarity_logits_joint(*pair, shaped=True),
            f"{view}align similarity": theirs.get_similarity_logits_align(*pair, shaped=True),
            f"{view}word scores": theirs.cls(words), f"{view}frame scores": theirs.cls_visual(shown),
            f"{view}caption scores": decoded,
        }  # fmt: skip
    return found


def our_passes(ours: UniVL, batch: UniVLBatch) -> dict[str, Tensor]:
    """The same of our methods; scores at all positions, where the losses take those that count."""
    mask, video_mask = batch.text_mask, batch.video_mask
    found = {}
    for view, text, frames in (("", batch.text_ids, batch.video), ("masked ", batch.masked_text_ids, batch.masked_video)):
        frames = ours.normalize_video(frames)
        sequence, visual = ours.encode_text(text, mask), ours.encode_video(frames, video_mask)
        crossed = ours.encode_cross(sequence, mask, visual, video_mask)
        words, shown = crossed.split((mask.size(1), video_mask.size(1)), dim=1)
        text_mean, video_mean = ours.embed_text(sequence, mask), ours.embed_video(visual, video_mask)
        both, all_ = torch.cat((mask, video_mask), dim=1), torch.ones_like(batch.decoder_mask)
        decoded = ours.predict_caption(batch.decoder_input_ids, batch.decoder_mask, crossed, both, all_)
        found |= {
            f"{view}frames": frames, f"{view}sequence output": sequence, f"{view}visual output": visual,
            f"{view}cross output": crossed, f"{view}pooled output": ours.cross.pooler(crossed),
            f"{view}text mean": text_mean, f"{view}video mean": video_mean,
            f"{view}joint similarity": ours.joint_similarity(text_mean, video_mean),
            f"{view}align similarity": ours.pair_similarity(sequence, mask, visual, video_mask),
            f"{view}word scores": ours.predict_words(words), f"{view}frame scores": ours.predict_frames(shown),
            f"{view}caption scores": decoded.unflatten(0, all_.shape),
        }  # fmt: skip
    return found


def as_type(batch: UniVLBatch, dtype: torch.dtype, padding: int = -1) -> UniVLBatch:
    """Features of `dtype`, and `padding` for the target of a caption's padding."""
    targets = torch.where(batch.decoder_target_ids < 0, padding, batch.decoder_target_ids)
    return replace(batch, video=batch.video.to(dtype), masked_video=batch.masked_video.to(dtype), decoder_target_ids=targets)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest absolute value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    """One a parameter, by sorted name."""
    parameters = [p for _, p in sorted(model.named_parameters())]
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True))


def gradient_error(ours: nn.Module, theirs: nn.Module, loss: Tensor, their_loss: Tensor) -> float:
    """Norm of the difference of all gradients, over the norm."""
    pairs = zip(gradients(loss, ours), gradients(their_loss, theirs), strict=True)
    difference, size = torch.tensor([[(a - b).norm(), b.norm()] for a, b in pairs]).norm(dim=0)
    return (difference / size).item()


def compare(theirs: nn.Module, ours: UniVLLosses, batch: UniVLBatch, dtype: torch.dtype) -> dict[str, float]:
    """Rows of the table: quantity -> relative error."""
    batch, padded = as_type(batch, dtype), as_type(batch, dtype, padding=0)
    with precise():
        with torch.no_grad():
            expected, got = their_passes(theirs, batch), our_passes(ours.backbone, batch)
            captions = UNIVL_LOSSES.index("caption"), UNIVL_LOSSES.index("masked_caption")
            counted, counted_there = vector(ours(padded))[list(captions)], their_losses(theirs, padded)[list(captions)]
        rows = {name: relative(got[name].flatten(), value.flatten()) for name, value in expected.items()}
        rows["captions, padding counted"] = relative(counted, counted_there)
        for name, loss, their_loss in zip(UNIVL_LOSSES, vector(ours(batch)), their_losses(theirs, batch), strict=True):
            rows[f"loss {name}"] = relative(loss.detach(), their_loss.detach())
            rows[f"gradient {name}"] = gradient_error(ours.backbone, theirs, loss, their_loss)
    return rows


def toy_pair(authors: Authors, dtype: torch.dtype) -> tuple[nn.Module, UniVLLosses, UniVLBatch]:
    ours = toy.toy_task(fused_attention=False)
    theirs = authors.univl(ours.backbone.config, toy.WORDS, toy.FEATURES, toy.CLIPS)
    return load(theirs, ours, dtype), ours.to(dtype), toy.toy_batch()


def base_pair(authors: Authors, dtype: torch.dtype) -> tuple[nn.Module, UniVLLosses, UniVLBatch]:
    """Published size; two clips of 12 and 5 frames, captions of 20 and 9 pieces."""
    config = UniVLConfig(size="base", joint_loss="margin", normalize_embeddings=True, similarity_temperature=1.0, dropout=0.0)
    torch.manual_seed(0)
    ours = UniVLLosses(UniVL(config, 30522, 1024), TaskConfig(primary="joint", loss_set=list(UNIVL_LOSSES)))
    generator = np.random.default_rng(0)
    mask, video_mask = (np.arange(size) < np.array(lengths)[:, None] for size, lengths in ((20, (20, 9)), (12, (12, 5))))
    ids = np.where(mask, generator.integers(1000, 30522, size=mask.shape), 0)
    ids[:, 0], ids[(0, 1), (19, 8)] = 101, 102
    video = np.where(video_mask[..., None], generator.normal(size=(2, 12, 1024)), 0).astype(np.float32)
    hidden = masking.mask_words(ids, ids < 1000, 0.3, 103, range(1000, 30522), generator)
    frames = masking.mask_frames(video, video_mask, 0.3, generator)
    arrays = (ids, mask, video, video_mask, *hidden, *frames, *masking.shift_captions(ids, mask), np.array([1, 0]))
    theirs = authors.univl(config, 30522, 1024, 2)
    return load(theirs, ours, dtype), ours.to(dtype), UniVLBatch(*(torch.from_numpy(np.ascontiguousarray(x)) for x in arrays))


def load(theirs: nn.Module, ours: UniVLLosses, dtype: torch.dtype) -> nn.Module:
    """Their model with our weights; names, shapes and counts have to be equal, those of tied weights too."""
    theirs.load_state_dict(ours.backbone.state_dict())
    names = [[(name, p.shape) for name, p in sorted(model.named_parameters())] for model in (theirs, ours.backbone)]
    assert names[0] == names[1]
    return theirs.to(dtype)


def print_table(size: str, pair: Any, authors: Authors) -> None:
    tables = []
    for dtype in (torch.float64, torch.float32):
        theirs, ours, batch = pair(authors, dtype)
        tables.append(compare(theirs, ours, batch, dtype))
    state = theirs.state_dict()
    print(f"{size:6}names and shapes of {len(state)} entries equal, {sum(p.numel() for p in theirs.parameters())} parameters")
    for name, exact in tables[0].items():
        print(f"{size:6}{name:32}{exact:10.1e}{tables[1][name]:10.1e}")


def compare_bert_adam(authors: Authors) -> None:
    """Largest absolute error of weights after 24 steps, more than two periods of 8, with and without the clip of each parameter.

    Theirs counts the steps of its schedule for each parameter apart, and only those with a gradient; here every step has one.
    """
    for schedule in SCHEDULES:
        for clip in (0.0, 1.0):
            generator = torch.Generator().manual_seed(0)
            start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 3), (4,), ())]
            theirs, ours = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
            other = authors.optimization.BertAdam(
                [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:], "weight_decay": 0.0}], lr=0.01,
                warmup=schedule, warmup_proportion=0.3, t_total=24, t_warmup=8, max_grad_norm=clip or -1,
            )  # fmt: skip
            mine = BertAdam([{"params": ours[:1], "weight_decay": 0.1}, {"params": ours[1:], "weight_decay": 0.0}], clip=clip)
            rate_error = 0.0
            for t in range(24):
                for a, b in zip(theirs, ours):
                    g = 10 * torch.randn(a.shape, generator=generator, dtype=torch.float64)
                    a.grad, b.grad = g, g.clone()
                rate = 0.01 * learning_rate_factor(schedule, t, 8, 0.3)
                for group in mine.param_groups:
                    group["lr"] = rate
                other.step()
                mine.step()
                rate_error = max(rate_error, abs(float(other.get_lr()[0]) - rate) / 0.01)
            error = max((a - b).abs().max().item() for a, b in zip(theirs, ours))
            print(f"BertAdam, {schedule:20} clip {clip:3.1f}   w {error:8.1e}   learning rate {rate_error:8.1e}")


class Draws:
    """`random` of their loop: its draws from the last training batches, written down so that ours can follow."""

    def __init__(self, training: str, meta: dict[int, str]):
        # a meta step of theirs falls after the optimiser step before ours, and draws its outer batch first
        self.names = [name for at in sorted(meta) if at > 1 for name in (meta[at], training[at])]
        self.training = training

    def choices(self, recent: list) -> list:
        """Newest batch in `recent` that has the name next in line."""
        name = self.names.pop(0)
        return [recent[self.training[: len(recent)].rindex(name)]]


def their_path(authors: Authors, config: Config) -> list[tuple[Tensor, Tensor]]:
    """(w, phi) at each optimiser step of their loop, w after and phi as used in it, both by sorted name."""
    ours, our_combiner = step.step_model(config)
    sizes = config.combiner
    theirs = authors.univl(config.workload.backbone, toy.WORDS, toy.FEATURES, len(step.ROWS["A"])).double()
    theirs.load_state_dict(ours.backbone.state_dict())
    combiner = authors.meltr.MELTR(t_dim=len(UNIVL_LOSSES), f_dim=sizes.feed_forward_size, i_dim=1, o_dim=1,
                                   h1_dim=sizes.loss_encoder_size, h2_dim=sizes.embedding_size).double()  # fmt: skip
    combiner.load_state_dict(our_combiner.state_dict())
    combiner.eval()
    args = types.SimpleNamespace(
        lr=step.RATE, lr_decay=step.DECAY, warmup="warmup_linear", warmup_proportion=step.WARMUP, milestones=None,
        milestones_proportion=0.1, max_grad_norm=step.CLIP, is_distributed=False, n_display=100, epochs=1,
        auxgrad_every=step.EVERY, tasks=[1] * 8, target_tasks=[0, 1, 0, 0, 0, 0, 0, 0], reg=1, gamma=step.GAMMA,
    )  # fmt: skip
    loop = authors.loop(random=Draws(step.TRAINING, step.META), logger=None)
    optimizer, scheduler, _ = loop["prep_optimizer"](args, theirs, 100, step.PERIOD, None, 1, 0)
    adam = torch.optim.Adam(combiner.parameters(), lr=step.META_RATE, weight_decay=step.META_DECAY)
    meta_optimizer = authors.meltr.MELTROptimizer(adam, max_grad_norm=config.aid.clip or None)
    path, update = [], optimizer.step

    def recorded(**options: Any) -> None:
        update(**options)
        w = flat([p.detach().clone() for _, p in sorted(theirs.named_parameters())])
        path.append((w, flat([p.detach().clone() for _, p in sorted(combiner.named_parameters())])))

    optimizer.step = recorded
    args.is_distributed = True  # their default, under which the loop clips the whole gradient; on one device DDP does nothing
    # their count of steps starts at 2 % k: then each of their meta steps, after a step that k divides, falls where ours does
    with precise(), sdpa_kernel(SDPBackend.MATH):  # torch's fused attention, younger than their code, has no second derivative
        loop["train_epoch"](0, args, theirs, combiner, [their_batch(step.step_batch(name)) for name in step.TRAINING],
                            torch.device("cpu"), 1, optimizer, meta_optimizer, scheduler, 2 % step.EVERY)  # fmt: skip
    return path


def compare_step(authors: Authors, store: bool) -> None:
    """phi's gradient unclipped and clipped; where clipped, theirs divides by its norm + 1e-6, and ours by its norm."""
    print(f"{'clip of phi':14}{'optimiser step':16}{'|w - w*|':>10}{'moved':>10}{'|phi - phi*|':>14}{'moved':>10}")
    for config in (step.step_config(clip=0.0), step.step_config()):
        theirs, ours = their_path(authors, config), step.our_path(config)
        start = theirs[0]
        for t, ((w, phi), (our_w, our_phi)) in enumerate(zip(theirs, ours, strict=True)):
            row = [x.abs().max().item() for x in (our_w - w, w - start[0], our_phi - phi, phi - start[1])]
            print(f"{config.aid.clip:<14}{t + 1:<16}{row[0]:10.1e}{row[1]:10.1e}{row[2]:14.1e}{row[3]:10.1e}"
                  + "   after a meta step" * (t in step.META))  # fmt: skip
    if store:
        np.savez_compressed(step.REFERENCE, **{k: v.astype(np.float32) for k, v in step.after_meta_steps(theirs).items()})
        print(f"{step.REFERENCE}: {step.REFERENCE.stat().st_size} bytes")


def their_captions(authors: Authors, theirs: nn.Module, batch: UniVLBatch, num_beams: int, max_words: int) -> list[list[int]]:
    """Captions of their beam search up to [SEP], which is the last id where there is one."""
    search = importlib.import_module("eval.captioning")
    constants = types.SimpleNamespace(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3})
    beams = [importlib.import_module("modules.beam").Beam(num_beams, device="cpu", tokenizer=constants) for _ in range(len(batch.video))]
    mask, video_mask = batch.text_mask.long(), batch.video_mask.long()
    encoded = theirs.get_sequence_visual_output(batch.text_ids, torch.zeros_like(mask), mask, batch.video, video_mask)
    rows = tuple(x.repeat_interleave(num_beams, 0) for x in (*encoded, batch.text_ids, mask, video_mask))
    places = {clip: clip for clip in range(len(beams))}
    for length in range(1, max_words + 1):
        active = search.beam_decode_step(theirs.decoder_caption, beams, length, places, num_beams, "cpu", rows)
        if not active:
            break
        rows, places = search.collate_active_info(rows, places, active, num_beams, "cpu")
    captions, _ = search.collect_hypothesis_and_scores(beams, 1)
    return [ids[: ids.index(3) + 1] if 3 in ids else ids for (ids,) in captions]


def their_log_p(theirs: nn.Module, batch: UniVLBatch, captions: list[list[int]]) -> list[float]:
    """Log probabilities of captions, one a clip."""
    mask, video_mask = batch.text_mask.long(), batch.video_mask.long()
    encoded = theirs.get_sequence_visual_output(batch.text_ids, torch.zeros_like(mask), mask, batch.video, video_mask)
    found = []
    for clip, ids in enumerate(captions):
        row = [x[clip : clip + 1] for x in (*encoded, batch.text_ids, mask, video_mask)]
        said = torch.tensor([[2, *ids[:-1]]])
        log_p = theirs.decoder_caption(*row, said, torch.ones_like(said), shaped=True, get_logits=True)[0].log_softmax(-1)
        found.append(log_p[torch.arange(len(ids)), torch.tensor(ids)].sum().item())
    return found


def compare_captions(authors: Authors, num_models: int = 20, num_beams: int = 5, max_words: int = 8) -> None:
    """Captions that agree, log probabilities of these by their decoder, and whose are likelier where captions differ.

    Ours may say any word here, as theirs does.
    """
    equal, likelier, error = 0, 0, 0.0
    for seed in range(num_models):
        torch.manual_seed(seed)
        ours, batch = toy.toy_task(fused_attention=False).eval(), as_type(toy.toy_batch(), torch.float64)
        with torch.no_grad():
            for p in ours.parameters():
                p += 0.1 * torch.randn_like(p)
            ours.backbone.decoder.classifier["cls"]["predictions"].bias[3] += 3  # some captions end
            theirs = load(authors.univl(ours.backbone.config, toy.WORDS, toy.FEATURES, toy.CLIPS), ours, torch.float64).eval()
            ours = ours.double()
            with precise():
                expected = their_captions(authors, theirs, batch, num_beams, max_words)
                totals = their_log_p(theirs, batch, expected)
            parts = (ours.backbone.encode_text(batch.text_ids, batch.text_mask), batch.text_mask,
                     ours.backbone.encode_video(ours.backbone.normalize_video(batch.video), batch.video_mask), batch.video_mask)  # fmt: skip
            decoder = ours.backbone.decoder
            cache = decoder.start(ours.backbone.encode_cross(*parts), torch.cat((parts[1], parts[3]), dim=1), num_beams)

            def step(ids: Tensor, rows: Tensor) -> Tensor:
                cache.follow(rows)
                return decoder.step(ids, cache)

            got = beam_search(step, toy.CLIPS, num_beams, max_words, start_id=2, end_id=3)
        for (ids, total), other, their_total in zip(got, expected, totals):
            same = ids == [word for word in other if word != 3]
            equal, likelier = equal + same, likelier + (not same and total > their_total)
            error = max(error, abs(total - their_total)) if same else error
    print(f"beam search, {num_beams} beams: {equal} of {num_models * toy.CLIPS} captions are theirs, log p within {error:.1e}; "
          f"{likelier} of the others are likelier than theirs")  # fmt: skip


def store_losses(authors: Authors) -> None:
    """Losses and gradients times probes, of their class in float64."""
    theirs, _, batch = toy_pair(authors, torch.float64)
    with precise():
        losses = their_losses(theirs, as_type(batch, torch.float64))
    directions = toy.probes(theirs).values()
    rows = [[(g * d).sum().item() for g, d in zip(gradients(loss, theirs), directions)] for loss in losses]
    path = Path(toy.__file__).with_name("univl_reference.npz")
    np.savez_compressed(path, losses=losses.detach().numpy(), gradients=np.array(rows))
    print(f"{path}: {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--base", action="store_true")
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    random.seed(0)
    authors = Authors(arguments.checkout)
    if arguments.step:
        compare_step(authors, arguments.store)
        return
    print(f"{'size':6}{'quantity':32}{'float64':>10}{'float32':>10}")
    print_table("toy", toy_pair, authors)
    if arguments.base:
        print_table("base", base_pair, authors)
    compare_bert_adam(authors)
    compare_captions(authors)
    if arguments.store:
        store_losses(authors)


if __name__ == "__main__":
    main()
