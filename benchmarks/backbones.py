"""What an inner step of each backbone costs beside the authors' code: time, peak memory and arithmetic, as ratios within one run.

    python -m benchmarks.backbones --authors <checkout of github.com/mlvlab/MELTR> --stand-ins violet=<folder> allinone=<folder>
    python -m benchmarks.backbones --gpu    # our three in bfloat16, samples a second; needs no checkout

An inner step is forward and backward of all losses, training mode, dropout as published, float32; without the optimiser,
which is the same for both. Each code runs in a process of its own, one step in turn. Memory is the peak of a step above what
the process held before its model was made: weights, gradients, activations. Arithmetic is that of matrix products, counted
by torch. CPU time is that of the process; it stands a machine shared with others. Captions and clips have the lengths that
MSR-VTT's have (`WORDS`, `SECONDS`), padded by each code as it pads; in a row of its own, all have the greatest length. Also:
memory that it takes to make a model from a base checkpoint, over the file's size.

`--stand-ins`: for a backbone, folders (a:b) with packages that the authors' code imports and that aren't installed; tests/parity
says which. Writes backbones.json to --out, prints a table, and ends with 1 where a target is missed. Takes 20 GB of memory.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
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

from meltr_ray.training import memory
from meltr_ray.video.backbones.allinone.inputs import AllInOneBatch
from meltr_ray.video.backbones.allinone.losses import AllInOneLosses
from meltr_ray.video.backbones.allinone.model import AllInOne
from meltr_ray.video.backbones.allinone.settings import ALLINONE_LOSSES, AllInOneConfig
from meltr_ray.video.backbones.settings import BackboneConfig
from meltr_ray.video.backbones.univl.inputs import UniVLBatch
from meltr_ray.video.backbones.univl.losses import UniVLLosses
from meltr_ray.video.backbones.univl.model import UniVL
from meltr_ray.video.backbones.univl.settings import UNIVL_LOSSES, UniVLConfig
from meltr_ray.video.backbones.violet import block_masking
from meltr_ray.video.backbones.violet.inputs import VioletBatch
from meltr_ray.video.backbones.violet.losses import VioletLosses
from meltr_ray.video.backbones.violet.model import Violet
from meltr_ray.video.backbones.violet.settings import VIOLET_LOSSES, VioletConfig
from meltr_ray.video.checkpoints.imports import import_checkpoint
from meltr_ray.video.checkpoints.start import load_start
from meltr_ray.video.tasks.settings import TaskConfig

VOCABULARY, VIDEO_SIZE, ANSWERS, CHOICES = 30522, 1024, 1000, 4
WORDS = (12, 9, 15, 11, 10, 13, 8, 17)
"""Word pieces of a caption with [CLS] and [SEP]: the middle and the quartiles of MSR-VTT's."""
SECONDS = (15, 11, 22, 13, 10, 17, 12, 28)
"""Seconds of a clip, a frame feature each: likewise."""
CPU = torch.device("cpu")
FULL = ", greatest lengths"
RATIOS = {"arithmetic": "arithmetic", "time": "time", "cpu_time": "CPU time", "memory": "memory"}
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
    "VIOLET base, retrieval": Case("violet", "base", "retrieval", 3, words=25),
    "VIOLET base, open-ended": Case("violet", "base", "open_ended", 3, words=25),
    "All-in-one Ti": Case("allinone", "Ti", "retrieval", 4, words=40),
    "All-in-one B": Case("allinone", "B", "retrieval", 2, words=40),
}
"""Words and frames as in the authors' settings; as many clips as let both codes fit into 20 GB."""
BASES = ("UniVL base", "VIOLET base, retrieval", "All-in-one B")
GPU_CLIPS = {"UniVL base": 64, "VIOLET base, retrieval": 8, "VIOLET base, open-ended": 8, "All-in-one Ti": 32, "All-in-one B": 16}


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


def our_config(case: Case) -> BackboneConfig:
    match case.backbone:
        case "univl":  # joint similarities and their loss as MELTR's code has them
            return UniVLConfig(size=case.size, joint_loss="margin", normalize_embeddings=True)
        case "violet":
            return VioletConfig(size=case.size)
        case "allinone":
            return AllInOneConfig(size=case.size)


def our_backbone(case: Case) -> nn.Module:
    match config := our_config(case):
        case UniVLConfig():
            return UniVL(config, VOCABULARY, VIDEO_SIZE)
        case VioletConfig():
            return Violet(config, VOCABULARY, case.task, ANSWERS)
        case AllInOneConfig():
            return AllInOne(config, VOCABULARY, num_answers=ANSWERS)


def ours(case: Case, batch: Any) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Our model, and what gives its losses (T,)."""
    kind, names, primary = {
        "univl": (UniVLLosses, UNIVL_LOSSES, "align"),
        "violet": (VioletLosses, VIOLET_LOSSES if case.task == "retrieval" else ("answer", *VIOLET_LOSSES), "matching"),
        "allinone": (AllInOneLosses, ALLINONE_LOSSES, "rank"),
    }[case.backbone]
    model = kind(our_backbone(case), TaskConfig(primary=primary, loss_set=list(names)))
    model, batch = model.to(case.device).train(), batch.to(case.device)

    def losses() -> Tensor:
        with torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "bfloat16"):  # as the engine has it
            return torch.stack(list(model(batch, tuple(names)).values()))

    return model, losses


def import_packages(case: Case, stand_ins: list[str]) -> None:
    """What the authors' code imports from others; it is no memory of a step."""
    if case.backbone == "allinone":  # a stand-in for torchvision must not reach these
        for name in ("transformers.models.bert.modeling_bert", "transformers.optimization"):
            importlib.import_module(name)
    sys.path[:0] = stand_ins
    importlib.import_module(f"tests.video.parity.{case.backbone}")


def theirs(case: Case, batch: Any, checkout: Path) -> tuple[nn.Module, Callable[[], Tensor]]:
    """As `ours`, of the authors' code."""
    return {"univl": their_univl, "violet": their_violet, "allinone": their_allinone}[case.backbone](case, batch, checkout)


def their_univl(case: Case, batch: UniVLBatch, checkout: Path) -> tuple[nn.Module, Callable[[], Tensor]]:
    parity = importlib.import_module("tests.video.parity.univl")
    model = parity.Authors(checkout / "univl").univl(our_config(case), VOCABULARY, VIDEO_SIZE, case.batch_size).train()
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
    parity = importlib.import_module("tests.video.parity.violet")
    config = our_config(case)
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
    parity = importlib.import_module("tests.video.parity.allinone")
    authors = parity.Authors(str(checkout / "allinone"), None)
    model, form = authors.named(case.size).train(), parity.their_batch(batch)
    model.hparams.config["draw_false_text"] = CHOICES - 1

    def losses() -> Tensor:
        found = {}
        for name in ("compute_irtr", "compute_itm_wpa", "compute_mlm", "compute_ind_itc"):
            found |= getattr(authors.objectives, name)(model, form)
        return torch.stack([found[name] for name in ("irtr_loss", "itm_loss", "itm_wpa_loss", "mlm_loss", "ind_itc_loss")])

    return model, losses


def serve(side: str, case: Case, checkout: str, stand_ins: list[str]) -> None:
    """A process of one code: for each line read, one step, and a line of JSON with its seconds and bytes; `count`: FLOPs."""
    say, sys.stdout = sys.stdout, sys.stderr  # their code prints
    torch.manual_seed(0)
    batch, device = make_batch(case), torch.device(case.device)
    if side == "theirs":
        import_packages(case, stand_ins)
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
            start, cpu_start = time.perf_counter(), time.process_time()
            values = step()
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            peak = memory.peak_bytes(device) - before
            answer = {"seconds": seconds, "cpu_seconds": cpu_seconds, "bytes": peak, "losses": values}
        print(json.dumps(answer), file=say, flush=True)


class Server:
    """A process that runs `serve`; call it for a step."""

    def __init__(self, side: str, case: Case, checkout: Path | None, stand_ins: list[str], threads: int):
        self.name = f"{side}, {case.backbone}"
        spec = json.dumps([side, asdict(case), str(checkout), stand_ins])
        root = str(Path(__file__).parents[1])
        settings = {"PYTHONPATH": root, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.backbones", "--serve", spec], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, text=True, env=os.environ | settings,
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


def compare(case: Case, servers: dict[str, Server], repeats: int) -> dict[str, Any]:
    """Both codes' medians over rounds in which they alternate, the largest peaks, the counts, and ours over theirs."""
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in servers}
    for round_ in range(repeats + 1):
        for side, server in servers.items():
            answer = server()
            if round_:  # the first round warms up
                rounds[side].append(answer)
    found: dict[str, Any] = {"case": asdict(case)}
    for side, answers in rounds.items():
        times = {key: statistics.median(answer[key] for answer in answers) for key in ("seconds", "cpu_seconds")}
        found[side] = times | {"bytes": max(answer["bytes"] for answer in answers), "flops": servers[side]("count")["flops"],
                               "rounds": [answer["seconds"] for answer in answers], "losses": answers[-1]["losses"]}  # fmt: skip
    for name, quantity in zip(RATIOS, ("flops", "seconds", "cpu_seconds", "bytes")):
        found[name] = found["ours"][quantity] / found["theirs"][quantity]
    return found


def measure_loading(what: str, case: Case, folder: Path) -> dict[str, float]:
    """Peak over the file's size: of `import`, the authors' file to an imported checkpoint, or `load`, that to a new model."""
    file, imported = folder / "base.pt", folder / "imported"
    if what == "save":
        torch.save(our_backbone(case).state_dict(), file)
        return {}
    memory.reset_peak(CPU)
    before = memory.peak_bytes(CPU)
    if what == "import":
        import_checkpoint([file], imported, our_config(case))
    else:
        load_start(our_backbone(case), replace(our_config(case), weights=str(imported)), VOCABULARY)
    peak, size = memory.peak_bytes(CPU) - before, file.stat().st_size
    return {"bytes": peak, "file": size, "ratio": peak / size}


def loading(case: Case) -> dict[str, dict[str, float]]:
    """Each measurement in a process of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for what in ("save", "import", "load"):
            command = [sys.executable, "-m", "benchmarks.backbones", "--loading", json.dumps([what, asdict(case), folder])]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{what}, {case.backbone}: {done.stderr.strip()[-2000:]}")
            found[what] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine(threads: int, device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{model}, {vectors}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}"


def table(results: dict[str, Any]) -> str:
    """Markdown; the last three columns are ours / theirs."""
    titles = ("inner step", "clips", "lengths", *RATIOS.values(), "seconds", "GB", "10^12 operations")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, found in results["steps"].items():
        case, units = found["case"], {"seconds": 1, "bytes": 1e9, "flops": 1e12}
        cells = [name.removesuffix(FULL), str(case["batch_size"]), "greatest" if case["full"] else "usual"]
        cells += [f"{found[key]:.2f}" for key in RATIOS]
        cells += [f"{found['ours'][key] / unit:.2f} / {found['theirs'][key] / unit:.2f}" for key, unit in units.items()]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| base checkpoint | file (GB) | import, peak / file | load into a new model, peak / file |", "|---" * 4 + "|"]
    for name, found in results["loading"].items():
        size, peaks = found["load"]["file"] / 1e9, (found[what]["ratio"] for what in ("import", "load"))
        lines.append(f"| {name} | {size:.2f} | " + " | ".join(f"{peak:.2f}" for peak in peaks) + " |")
    return "\n".join([*lines, "", f"Machine: {results['machine']}."])


def missed(results: dict[str, Any]) -> list[str]:
    """One line for each target that isn't met, at the usual lengths."""
    have = {f"{name}, {what}": (found[what], TARGETS[what]) for name, found in results["steps"].items()
            if not found["case"]["full"] for what in ("time", "memory")}  # fmt: skip
    have |= {f"{name}, loading": (found["load"]["ratio"], TARGETS["loading"]) for name, found in results["loading"].items()}
    return [f"MISSED {name}: {value:.2f} (at most {most:.2f})" for name, (value, most) in have.items() if value > most]


def measure_gpu(names: list[str], device: str, clips: int | None, repeats: int) -> dict[str, Any]:
    """Ours in bfloat16: samples a second and peak memory of an inner step."""
    found = {}
    for name in names:
        case = replace(CASES[name], batch_size=clips or GPU_CLIPS[name], dtype="bfloat16", device=device)
        server = Server("ours", case, None, [], torch.get_num_threads())
        answers = [server() for _ in range(repeats + 2)][2:]
        server.close()
        seconds = statistics.median(answer["seconds"] for answer in answers)
        speed, peak = case.batch_size / seconds, max(answer["bytes"] for answer in answers)
        found[name] = {"case": asdict(case), "samples_per_second": speed, "bytes": peak}
        print(f"{name}, {case.batch_size} clips: {speed:.2f} samples/s, {peak / 1e9:.1f} GB", flush=True)
    return {"machine": machine(torch.get_num_threads(), device), "bfloat16": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--stand-ins", nargs="*", default=[], metavar="BACKBONE=FOLDER")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--clips", type=int, help="clips of every step; default: what fits into 20 GB")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gpu", action="store_true", help="ours alone, in bfloat16 on a GPU")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"), help="with --gpu; cpu: to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    for task in ("--serve", "--loading"):
        parser.add_argument(task, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        side, case, checkout, stand_ins = json.loads(arguments.serve)
        serve(side, Case(**case), checkout, stand_ins)
        return 0
    if arguments.loading:
        what, case, folder = json.loads(arguments.loading)
        print(json.dumps(measure_loading(what, Case(**case), Path(folder))))
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.gpu:
        if arguments.device == "cuda" and not torch.cuda.is_available():
            print("gpu: this machine has none, so nothing was measured; run it where there is one")
            return 2
        results = measure_gpu(arguments.cases, arguments.device, arguments.clips, arguments.repeats)
        (arguments.out / "backbones_gpu.json").write_text(json.dumps(results, indent=1))
        return 0
    if arguments.authors is None:
        parser.error("--authors: needs a checkout of github.com/mlvlab/MELTR; or use --gpu")
    stand_ins = dict(text.split("=", 1) for text in arguments.stand_ins)
    results: dict[str, Any] = {"machine": machine(arguments.threads, "cpu"), "steps": {}, "loading": {}}
    for name in arguments.cases:
        for full in (False, True):
            case = replace(CASES[name], full=full, batch_size=arguments.clips or CASES[name].batch_size)
            folders = [folder for folder in stand_ins.get(case.backbone, "").split(os.pathsep) if folder]
            servers = {side: Server(side, case, arguments.authors, folders, arguments.threads) for side in ("ours", "theirs")}
            results["steps"][name + FULL * full] = found = compare(case, servers, arguments.repeats)
            for server in servers.values():
                server.close()
            print(name + FULL * full, {key: round(found[key], 3) for key in RATIOS}, flush=True)
        if name in BASES:
            results["loading"][name.split(",")[0]] = loading(CASES[name])
        (arguments.out / "backbones.json").write_text(json.dumps(results, indent=1))
    lines = missed(results)
    print("", table(results), "", *lines, sep="\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
