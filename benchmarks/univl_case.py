"""The bi-level problem that the benchmarks measure: UniVL at a published or smaller size, random weights, random batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from meltr_ray import MELTR
from meltr_ray.hypergrad import ModuleProblem
from meltr_ray.video.backbones.univl.inputs import UniVLBatch
from meltr_ray.video.backbones.univl.losses import UniVLLosses
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UNIVL_LOSSES, UniVLConfig
from meltr_ray.video.tasks.settings import TaskConfig

PRIMARY = "align"
VIDEO_SIZE = 1024
VOCABULARY_SIZE = 30522


@dataclass(frozen=True)
class Case:
    """What is measured: a model size, a batch and whether dropout is on."""

    size: str = "base"
    batch_size: int = 4
    words: int = 20
    frames: int = 48
    dropout: float = 0.0
    dtype: torch.dtype = torch.float32
    device: str = "cpu"


def make_model(case: Case, fused: bool) -> UniVLLosses:
    torch.manual_seed(0)
    config = UniVLConfig(size=case.size, dropout=case.dropout, fused_attention=fused)
    model = UniVLLosses(UniVL(config, VOCABULARY_SIZE, VIDEO_SIZE), TaskConfig(primary=PRIMARY, loss_set=list(UNIVL_LOSSES)))
    return model.to(case.device, case.dtype)


def make_combiner(case: Case) -> MELTR:
    """MELTR away from the plain sum, as it is after some training."""
    torch.manual_seed(1)
    combiner = MELTR(len(UNIVL_LOSSES))
    nn.init.normal_(combiner.fc1.weight, std=0.1)
    return combiner.to(case.device, case.dtype)


def make_batch(case: Case, seed: int) -> UniVLBatch:
    g = torch.Generator().manual_seed(seed)
    B, L, F = case.batch_size, case.words, case.frames
    ids = torch.randint(1000, VOCABULARY_SIZE, (B, L), generator=g)
    masked_words, masked_frames = torch.rand(B, L, generator=g) < 0.15, torch.rand(B, F, generator=g) < 0.15
    masked_words[:, 1] = masked_frames[:, 1] = True
    video = torch.randn(B, F, VIDEO_SIZE, generator=g)
    batch = UniVLBatch(
        text_ids=ids, text_mask=torch.ones(B, L, dtype=torch.bool), video=video, video_mask=torch.ones(B, F, dtype=torch.bool),
        masked_text_ids=torch.where(masked_words, 103, ids), masked_word_labels=torch.where(masked_words, ids, -1),
        masked_video=torch.where(masked_frames[..., None], 0.0, video), masked_frames=masked_frames,
        decoder_input_ids=ids[:, :-1].contiguous(), decoder_mask=torch.ones(B, L - 1, dtype=torch.bool),
        decoder_target_ids=ids[:, 1:].contiguous(), shuffled=torch.arange(B).roll(1),
    )  # fmt: skip
    batch = replace(batch, video=batch.video.to(case.dtype), masked_video=batch.masked_video.to(case.dtype))
    return batch.to(case.device)


def make_problem(case: Case, model: UniVLLosses, **options: Any) -> ModuleProblem:
    """Training batch and a separate meta batch; the same dropout masks for every problem of a case."""
    train, meta = make_batch(case, 10), make_batch(case, 11)
    torch.manual_seed(5)
    return ModuleProblem(model, lambda: losses(model, train), lambda: model(meta, (PRIMARY,))[PRIMARY], **options)


def losses(model: UniVLLosses, batch: UniVLBatch) -> Tensor:
    """All of them, (T,)."""
    return torch.stack(list(model(batch).values()))


def published(case: Case, model: UniVLLosses, combiner: MELTR) -> list[Tensor]:
    """The hypergradient as the published code has it: -d_phi <dL/dw, dF/dw> by double backward through the whole model.

    The regulariser is left out (`phi_only` adds nothing to the implicit term); the separate meta batch needs a forward of its own.
    """
    train, meta = make_batch(case, 10), make_batch(case, 11)
    w, phi = list(model.parameters()), list(combiner.parameters())
    torch.manual_seed(5)
    of_outer = torch.autograd.grad(model(meta, (PRIMARY,))[PRIMARY], w, allow_unused=True)
    torch.manual_seed(5)
    of_training = torch.autograd.grad(combiner(losses(model, train)), w, create_graph=True, allow_unused=True)
    pairs = [(g, -b) for g, b in zip(of_training, of_outer) if g is not None and b is not None]
    return list(torch.autograd.grad([g for g, _ in pairs], phi, [b for _, b in pairs], allow_unused=True, materialize_grads=True))
