"""Batches made ahead by worker processes are those that training would make by itself."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from meltr_ray import Metric, Workload
from meltr_ray.config import Config
from meltr_ray.errors import ConfigError
from meltr_ray.training.batches import Batches, MetaBatches, to_device
from meltr_ray.training.loader import Loader
from meltr_ray.training.origin import checksum
from meltr_ray.video.backbones.batch import Batch
from meltr_ray.video.backbones.named import BACKBONES
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.clips.video import decode_video
from meltr_ray.video.workload import Video
from tests.faults import attempt, written

KINDS = ("recent", "next", "held_out")
MICRO, META, EVERY, LAST = 2, 2, 3, 14


def is_due(step: int) -> bool:
    return (step + 1) % EVERY == 0


def make_batches(folder: Path, backbone: str, kind: str) -> tuple[Batches, MetaBatches]:
    small = dict(image_size=32, num_frames=2, num_visual_tokens=16) if backbone == "violet" else {}
    config = Config(workload=Video(data=DataConfig(folder=str(folder)), backbone=BACKBONES[backbone](**small)))
    train, held_out = (Batches(config.workload, split, 4, seed=5) for split in ("train", "meta"))
    return train, MetaBatches(kind, train, held_out, MICRO, META)


class Numbers(Workload):
    """Examples that are numbers; `made` holds the batches that this process has made."""

    losses = ("none",)
    metrics = {"none": Metric()}
    kind: str = "give"
    """`give`, or `decode`, which fails."""

    def examples(self, split):
        return range(1700) if self.kind == "give" else range(4)

    def batch(self, examples, generator):
        if self.kind == "decode":
            return torch.from_numpy(decode_video(b"no video"))
        time.sleep(0.001)
        made.append(int(generator.integers(2**62)))
        return torch.tensor(examples)


made: list[int] = []


def numbers(batch_size: int, seed: int, kind: str = "give") -> Batches:
    return Batches(Config(workload=Numbers(kind=kind)).workload, "train", batch_size, seed)


def equal(a: Batch, b: Batch) -> bool:
    held = [(getattr(a, item.name), getattr(b, item.name)) for item in dataclasses.fields(a)]
    return all(x is y is None or torch.equal(x, y) for x, y in held)


@pytest.mark.parametrize("backbone, kind, workers", [*(("univl", kind, 0) for kind in KINDS), ("univl", "recent", 1),
                                                     ("violet", "recent", 3), ("violet", "next", 3)])  # fmt: skip
def test_any_number_of_workers_gives_the_same_and_goes_on_at_any_step(digits_folder, backbone, kind, workers):
    batches, meta_batches = make_batches(digits_folder, backbone, kind)
    for first in (0, 7):
        torch.manual_seed(0)
        seen = list(Loader(meta_batches, lambda step: meta_batches.keys(step) if is_due(step) else None, first, LAST, workers))
        assert torch.initial_seed() == 0 and torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
        assert len(seen) == LAST - first
        for step, (micro, meta) in enumerate(seen, first):
            assert len(micro) == MICRO and all(equal(got, batches[MICRO * step + at]) for at, got in enumerate(micro))
            assert (meta is not None) == is_due(step)
            assert meta is None or len(meta) == META and all(map(equal, meta, meta_batches[step]))


@pytest.mark.parametrize("kind", KINDS)
def test_no_batch_is_made_twice_and_none_is_kept_too_long(digits_folder, kind):
    made.clear()
    train, held_out = (numbers(4, seed) for seed in (1, 2))
    meta = MetaBatches(kind, train, held_out, MICRO, META)
    loader = iter(Loader(meta, lambda step: meta.keys(step) if is_due(step) else None, 0, 60))
    most = max(len(loader.gi_frame.f_locals["held"]) for _ in loader)
    assert len(made) == len(set(made)) == 60 * MICRO + {"recent": 0, "next": META * (60 % EVERY == 0), "held_out": 20 * META}[kind]
    assert most <= 10 + MICRO + META


@pytest.mark.parametrize("workers", [0, 2])
def test_a_range_of_batches_is_made_anew_each_time_it_is_gone_through(digits_folder, workers):
    """Beside the first step; few are held at a time."""
    batches, meta = make_batches(digits_folder, "univl", "held_out")
    beside = [("held_out", 0), meta.ahead(1, 5)]
    for step, (micro, given) in enumerate(Loader(meta, lambda step: beside if step == 0 else None, 0, 2, workers)):
        assert len(micro) == MICRO and (given is None) == (step > 0)
        if step == 0:
            held_out, ahead = to_device(given, torch.device("cpu"))
            for _ in range(2):
                found = list(ahead)
                assert len(found) == 5 * MICRO and all(equal(batch, batches[MICRO + at]) for at, batch in enumerate(found))
    made.clear()
    numbered = numbers(4, 1)
    loader = Loader(MetaBatches("held_out", numbered, numbers(4, 2), MICRO), lambda step: [("train", range(40))], 0, 1)
    (ahead,) = next(iter(loader))[1]
    assert len(made) == MICRO and next(iter(ahead)) is not None and len(made) == MICRO + 1


def test_a_worker_that_fails_is_one_line():
    batches = numbers(2, 0, "decode")
    for workers in (0, 1):
        with pytest.raises(ConfigError, match=r"^video=<8 bytes>: can't be decoded \(.*\); replace the file$"):
            list(Loader(MetaBatches("next", batches, None), lambda step: None, 0, 2, workers))


@pytest.mark.whole
def test_workers_end_with_a_killed_parent():
    program = """
import sys, time; sys.path.insert(0, sys.argv[1])
from tests.test_loader import *
if __name__ == "__main__":
    batches = numbers(2, 0)
    for step in Loader(MetaBatches("next", batches, None), lambda step: None, 0, 40, 2):
        print("started", flush=True)
        time.sleep(60)
"""
    path = Path(__file__).parents[1]
    parent = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "started\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 3  # two workers and the server that forks them
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def test_a_worker_that_makes_another_batch_than_the_training_process_is_found(tmp_path):
    """As where a batch hangs on hash() of a text: what the run started from, and other runs of the seed, would have nothing to do with it."""
    batches = Batches(attempt(written(tmp_path)).workload, "train", 20, seed=0)
    known = {("train", 0): checksum(batches[0]) + 1}
    loader = Loader(MetaBatches("next", batches, None), lambda step: None, 0, 2, workers=1, known=known)
    with pytest.raises(
        ConfigError, match=r"batch\(\) give another in a process of train.loader_workers, with the same seed; let nothing hang"
    ):
        next(iter(loader))
