"""What an inner step of each backbone costs beside the authors' code: time, peak memory and arithmetic, as ratios within one run.

    python -m benchmarks.backbones --authors <checkout of github.com/mlvlab/MELTR> --stand-ins violet=<folder> allinone=<folder>
    python -m benchmarks.backbones --gpu    # our three in bfloat16, samples a second; needs no checkout

An inner step is forward and backward of all losses, training mode, dropout as published, float32; without the optimiser, which
is the same for both. Each code runs in a process of its own, one step in turn. Memory is the peak of a step above what
the process held before its model was made: weights, gradients, activations. Arithmetic is that of matrix products, counted by torch.
Captions and clips have the lengths that MSR-VTT's have (`WORDS`, `SECONDS`), padded by each code as it pads; `--full`: all
have the greatest length. Also: memory that reading a published checkpoint into a model takes, over the file's size.

`--stand-ins`: for a backbone, folders with packages that its code imports and that aren't installed (tests/parity has lists).
Writes backbones.json to --out, prints the table, and ends with 1 where a target is missed. VIOLET takes 12 GB.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from meltr_ray import memory
from meltr_ray.backbones.allinone import AllInOne
from meltr_ray.backbones.univl import UniVL
from meltr_ray.backbones.violet import Violet
from meltr_ray.config import ALLINONE_LOSSES, UNIVL_LOSSES, VIOLET_LOSSES, AllInOneConfig, TaskConfig, UniVLConfig, VioletConfig
from meltr_ray.data import block_masking
from meltr_ray.tasks.allinone import AllInOneBatch, AllInOneLosses
from meltr_ray.tasks.univl import UniVLBatch, UniVLLosses
from meltr_ray.tasks.violet import VioletBatch, VioletLosses

VOCABULARY, VIDEO_SIZE, ANSWERS, CHOICES = 30522, 1024, 1000, 4
WORDS = (12, 9, 15, 11, 10, 13, 8, 17)
"""Word pieces of a caption with [CLS] and [SEP]: the middle and the quartiles of MSR-VTT's."""
SECONDS = (15, 11, 22, 13, 10, 17, 12, 28)
"""Seconds of a clip, a frame feature each: likewise."""
TARGETS = {"time": 0.80, "memory": 0.80, "loading": 1.3}


@dataclass(frozen=True)
class Case:
    """What is measured; `words` and `frames` are what the authors pad to."""

    backbone: str
    size: str
    task: str
    batch_size: int
    words: int
    frames: int = 0
    full: bool = False
    dtype: str = "float32"
    device: str = "cpu"


CASES = {
    "UniVL base": Case("univl", "base", "retrieval", 4, words=20, frames=100),
    "VIOLET base, retrieval": Case("violet", "base", "retrieval", 4, words=25),
    "VIOLET base, open-ended": Case("violet", "base", "open_ended", 4, words=25),
    "All-in-one Ti": Case("allinone", "Ti", "retrieval", 4, words=40),
    "All-in-one B": Case("allinone", "B", "retrieval", 2, words=40),
}
"""Words and frames as in the authors' settings, the batch as large as both codes fit into 20 GB."""
GPU_BATCHES = {"UniVL base": 64, "VIOLET base, retrieval": 8, "VIOLET base, open-ended": 8, "All-in-one Ti": 32, "All-in-one B": 16}


def make_texts(case: Case, generator: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, (*shape, words): [CLS], word pieces, [SEP], padding."""
    lengths = torch.tensor(np.resize(WORDS, shape)).clamp(max=case.words)[..., None]
    place = torch.arange(case.words)
    mask = place < (lengths.fill_(case.words) if case.full else lengths)
    ids = torch.where(mask, torch.randint(1000, VOCABULARY, mask.shape, generator=generator), 0)
    ids[..., 0] = 101
    return torch.where(place == lengths - 1, 102, ids), mask


def hide_words(ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Masked ids, and labels, -1 where not masked: 15 % of the words, the first one always."""
    chosen = (torch.rand(ids.shape, generator=generator) < 0.15) & (ids >= 1000)
    chosen[..., 1] = True
    return torch.where(chosen, 103, ids), torch.where(chosen, ids, -1)


def univl_batch(case: Case, g: torch.Generator) -> UniVLBatch:
    ids, mask = make_texts(case, g, case.batch_size)
    seconds = torch.tensor(np.resize(SECONDS, case.batch_size))
    if case.full:
        seconds.fill_(case.frames)
    video_mask = torch.arange(int(seconds.max())) < seconds[:, None]  # to the longest, as our batches are
    masked_frames = (torch.rand(video_mask.shape, generator=g) < 0.15) & video_mask
    masked_frames[:, 1] = True
    video = torch.randn(*video_mask.shape, VIDEO_SIZE, generator=g) * video_mask[..., None]
    masked_ids, labels = hide_words(ids, g)
    longest = int(mask.sum(1).max())
    targets = torch.where(mask[:, 1:longest], ids[:, 1:longest], -1)
    return UniVLBatch(
        ids, mask, video, video_mask, masked_ids, labels, torch.where(masked_frames[..., None], 0.0, video), masked_frames,
        ids[:, : longest - 1].contiguous(), targets >= 0, targets, torch.arange(case.batch_size).roll(1),
    )  # fmt: skip


def violet_batch(case: Case, g: torch.Generator) -> VioletBatch:
    ids, mask = make_texts(case, g, case.batch_size)
    generator, frames, grid = np.random.default_rng(0), torch.rand(case.batch_size, 5, 3, 224, 224, generator=g), (5, 7, 7)
    blocks = block_masking.cover(*block_masking.draw_blocks(case.batch_size, grid, generator), grid)
    tokens = generator.integers(8192, size=blocks.shape)
    return VioletBatch(
        torch.from_numpy(block_masking.hide_pixels(frames.numpy(), blocks)), ids, mask, *hide_words(ids, g),
        torch.from_numpy(block_masking.label_patches(tokens, blocks)), torch.zeros(case.batch_size, dtype=torch.int64),
    )  # fmt: skip


def allinone_batch(case: Case, g: torch.Generator) -> AllInOneBatch:
    ids, mask = make_texts(case, g, case.batch_size)
    choice_ids, choice_mask = make_texts(case, g, case.batch_size, CHOICES)
    choice_ids[:, 0], choice_mask[:, 0] = ids, mask
    video, false_video = torch.randn(2, case.batch_size, 3, 3, 224, 224, generator=g)
    return AllInOneBatch(
        ids, mask, video, *hide_words(ids, g), false_video, torch.arange(case.batch_size) % 2 == 0, choice_ids, choice_mask,
        torch.zeros(case.batch_size, dtype=torch.int64),
    )  # fmt: skip


def make_batch(case: Case) -> Any:
    make = {"univl": univl_batch, "violet": violet_batch, "allinone": allinone_batch}[case.backbone]
    return make(case, torch.Generator().manual_seed(0))


def our_backbone(case: Case) -> nn.Module:
    match case.backbone:
        case "univl":
            return UniVL(UniVLConfig(size=case.size, joint_loss="margin", normalize_embeddings=True), VOCABULARY, VIDEO_SIZE)
        case "violet":
            return Violet(VioletConfig(size=case.size), VOCABULARY, case.task, ANSWERS)
        case "allinone":
            return AllInOne(AllInOneConfig(size=case.size), VOCABULARY, num_answers=ANSWERS)


def ours(case: Case, batch: Any) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Our model, and what gives its losses (T,)."""
    kind, names, primary = {
        "univl": (UniVLLosses, UNIVL_LOSSES, "align"),
        "violet": (VioletLosses, VIOLET_LOSSES if case.task == "retrieval" else ("answer", *VIOLET_LOSSES), "matching"),
        "allinone": (AllInOneLosses, ALLINONE_LOSSES, "rank"),
    }[case.backbone]
    model = kind(our_backbone(case), TaskConfig(primary=primary, loss_set=list(names)))
    model = model.to(case.device, getattr(torch, case.dtype)).train()
    floats = {name: x.to(getattr(torch, case.dtype)) for name, x in vars(batch).items() if x is not None and x.is_floating_point()}
    batch = replace(batch, **floats).to(case.device)
    return model, lambda: model(batch, tuple(names))


def theirs(case: Case, batch: Any, checkout: Path) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The same of the authors' code."""
    return {"univl": their_univl, "violet": their_violet, "allinone": their_allinone}[case.backbone](case, batch, checkout)


def their_univl(case: Case, batch: UniVLBatch, checkout: Path) -> tuple[nn.Module, Callable[[], Tensor]]:
    parity = importlib.import_module("tests.parity.univl")
    model = parity.Authors(checkout / "univl").univl(our_backbone(case).config, VOCABULARY, VIDEO_SIZE, case.batch_size).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    short, rest = case.frames - batch.video.size(1), case.words - batch.decoder_mask.size(1)
    batch = replace(  # padded to the settings' numbers, as their data loader does
        batch, **{name: nn.functional.pad(getattr(batch, name), (0, 0, 0, short)) for name in ("video", "masked_video")},
        **{name: nn.functional.pad(getattr(batch, name), (0, short)) for name in ("video_mask", "masked_frames")},
        **{name: nn.functional.pad(getattr(batch, name), (0, rest)) for name in ("decoder_input_ids", "decoder_mask")},
        decoder_target_ids=nn.functional.pad(batch.decoder_target_ids, (0, rest), value=-1),
    )  # fmt: skip
    return model, lambda: parity.their_losses(model, batch)


def their_violet(case: Case, batch: VioletBatch, checkout: Path) -> tuple[nn.Module, Callable[[], Tensor]]:
    parity = importlib.import_module("tests.parity.violet")
    config = our_backbone(case).config
    modules = parity.load_published(checkout / "violet", config)
    model = parity.make_published(modules, config, case.task, VOCABULARY, ANSWERS).train()
    with parity.without_files(config, VOCABULARY):
        agent = getattr(modules[parity.TASK_FILES[case.task]], f"Agent_{parity.CLASSES[case.task]}")(parity.SETTINGS, model, None)
    answers = () if case.task == "retrieval" else (batch.answers,)

    def losses() -> Tensor:
        with parity.without_files(config, VOCABULARY):
            found = agent.step(batch.frames, batch.text_ids, batch.text_mask.long(), *answers, batch.word_labels,
                               batch.patch_labels, batch.masked_text_ids)  # fmt: skip
        return torch.stack(found)

    return model, losses


def their_allinone(case: Case, batch: AllInOneBatch, checkout: Path) -> tuple[nn.Module, Callable[[], Tensor]]:
    parity = importlib.import_module("tests.parity.allinone")
    authors = parity.Authors(str(checkout / "allinone"), None)
    model, form = authors.named(case.size).train(), parity.their_batch(batch)
    model.hparams.config["draw_false_text"] = CHOICES - 1

    def losses() -> Tensor:
        found = {}
        for name in ("compute_irtr", "compute_itm_wpa", "compute_mlm", "compute_ind_itc"):
            found |= getattr(authors.objectives, name)(model, form)
        return torch.stack([found[name] for name in ("irtr_loss", "itm_loss", "itm_wpa_loss", "mlm_loss", "ind_itc_loss")])

    return model, losses


def serve(side: str, case: Case, checkout: str) -> None:
    """A process of one code: for each line read, one step, and a line of JSON with its seconds and bytes; `count`: FLOPs."""
    say, sys.stdout = sys.stdout, sys.stderr  # their code prints
    torch.manual_seed(0)
    batch, device = make_batch(case), torch.device(case.device)
    if side == "theirs":
        importlib.import_module(f"tests.parity.{case.backbone}")  # what it imports is no memory of a step
    memory.reset_peak(device)
    before = memory.peak_bytes(device)
    model, losses = ours(case, batch) if side == "ours" else theirs(case, batch, Path(checkout))

    def step() -> list[float]:
        model.zero_grad(set_to_none=True)
        found = losses()
        found.sum().backward()
        return found.tolist()

    for line in sys.stdin:
        if line.strip() == "count":
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                step()
            answer = {"flops": counter.get_total_flops()}
        else:
            memory.reset_peak(device)
            start = time.perf_counter()
            values = step()
            answer = {"seconds": time.perf_counter() - start, "bytes": memory.peak_bytes(device) - before, "losses": values}
        print(json.dumps(answer), file=say, flush=True)


class Server:
    """A process that runs `serve`; call it for a step."""

    def __init__(self, side: str, case: Case, checkout: Path | None, stand_ins: list[str], threads: int):
        self.name = f"{side}, {case.backbone}"
        spec = json.dumps([side, asdict(case), str(checkout)])
        path = os.pathsep.join([str(Path(__file__).parents[1]), *(stand_ins if side == "theirs" else [])])
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.backbones", "--serve", spec], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, text=True, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip

    def __call__(self, command: str = "step") -> dict[str, Any]:
        with suppress(BrokenPipeError):  # it has ended: no line follows
            print(command, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            sys.exit(f"{self.name}: {self.errors.read().decode().strip()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(case: Case, checkout: Path, stand_ins: list[str], threads: int, repeats: int) -> dict[str, Any]:
    """Both codes' medians over rounds in which they alternate, the largest peak, the count, and ours over theirs."""
    servers = {side: Server(side, case, checkout, stand_ins, threads) for side in ("ours", "theirs")}
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in servers}
    for round_ in range(repeats + 1):
        for side, server in servers.items():
            answer = server()
            if round_:  # the first round warms up
                rounds[side].append(answer)
    found: dict[str, Any] = {"case": asdict(case)}
    for side, answers in rounds.items():
        found[side] = {"seconds": statistics.median(a["seconds"] for a in answers), "bytes": max(a["bytes"] for a in answers),
                       "losses": answers[-1]["losses"], "all_seconds": [a["seconds"] for a in answers],
                       "flops": servers[side]("count")["flops"]}  # fmt: skip
        servers[side].close()
    for name, quantity in (("time", "seconds"), ("memory", "bytes"), ("arithmetic", "flops")):
        found[name] = found["ours"][quantity] / found["theirs"][quantity]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--stand-ins", nargs="*", default=[], metavar="BACKBONE=FOLDER")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        side, case, checkout = json.loads(arguments.serve)
        serve(side, Case(**case), checkout)
        return 0
    stand_ins = dict(text.split("=", 1) for text in arguments.stand_ins)
    for name in arguments.cases:
        case = replace(CASES[name], full=arguments.full)
        found = compare(case, arguments.authors, stand_ins.get(case.backbone, "").split(os.pathsep), arguments.threads, arguments.repeats)
        print(name, json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
