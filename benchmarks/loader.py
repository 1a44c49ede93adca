"""What share of a training step waits for its batches: tiny UniVL on features, tiny VIOLET on pixels, by loader workers.

    python benchmarks/loader.py data/digits                        # a prepared folder with features and videos: 5 minutes
    python benchmarks/loader.py data/digits --clips folder/of/mp4  # and on real video files

Prints a table; ends with 1 where the default number of workers waits for more than 10 % of a step. Steps are inner steps alone
(forward, backward, AdamW, one thread), the shortest that training has: a meta step only makes the share smaller. The first
steps, in which workers start, are left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from meltr_ray.config import Config
from meltr_ray.training.batches import Batches, MetaBatches
from meltr_ray.training.loader import Loader
from meltr_ray.video.backbones.named import BACKBONES
from meltr_ray.video.clips import shards
from meltr_ray.video.clips.clip import Clip
from meltr_ray.video.clips.new_folder import new_folder
from meltr_ray.video.clips.settings import DataConfig
from meltr_ray.video.clips.vocabulary import build_vocabulary
from meltr_ray.video.workload import Video

AT_MOST = 0.10
WARM_UP = 10
HEADER = "| backbone | clips | workers | step (ms) | waiting (ms) | share |\n|---|---|---|---|---|---|"


def measure(config: Config, workers: int, steps: int) -> tuple[float, float]:
    """(seconds of a step, seconds of it that wait), means after the warm-up."""
    model = config.workload.module()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    batches = Batches(config.workload, "train", config.train.batch_size, seed=0)
    loader = Loader(MetaBatches("next", batches, None), lambda step: None, 0, WARM_UP + steps, workers, config.train.prefetch,
                    config.workload.preloaded)  # fmt: skip
    for step, ((batch,), _) in enumerate(loader):
        if step == WARM_UP:
            started, waited = time.perf_counter(), loader.seconds_waited
        sum(model(batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - started) / steps, (loader.seconds_waited - waited) / (steps - 1)


def make_store(videos: Path, folder: Path, copies: int = 8) -> Path:
    """A data folder of video files, each as `copies` clips."""
    files = sorted(path for path in videos.rglob("*") if path.suffix in (".mp4", ".mkv", ".avi", ".webm"))
    clips = [Clip(f"{path.stem}-{copy}", [path.stem], video=path.absolute()) for path in files for copy in range(copies)]
    with new_folder(folder) as temporary:
        build_vocabulary([path.stem for path in files], temporary / "vocabulary.txt")
        entry = shards.write_split(temporary, "train", clips)
        shards.write_manifest(temporary, name="videos", splits={"train": entry}, feature_size=0)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a prepared data folder with features and videos")
    parser.add_argument("--clips", type=Path, help="a folder of video files")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1], help="loader workers to try")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        cases = [("univl", arguments.folder), ("violet", arguments.folder)]
        if arguments.clips:
            cases.append(("violet", make_store(arguments.clips, Path(temporary) / "videos")))
        missed = []
        print(HEADER)
        for backbone, folder in cases:
            config = Config(workload=Video(data=DataConfig(folder=str(folder)), backbone=BACKBONES[backbone]()))
            config.train.batch_size = 16
            for workers in arguments.workers:
                step, waiting = measure(config, workers, arguments.steps)
                name = arguments.clips.name if folder != arguments.folder else folder.name
                print(f"| {backbone} | {name} | {workers} | {1000 * step:.0f} | {1000 * waiting:.1f} | {waiting / step:.1%} |", flush=True)
                if workers == config.workload.loader_workers and waiting > AT_MOST * step:
                    missed.append(f"MISSED {backbone} on {name}: {waiting / step:.1%} of a step (at most {AT_MOST:.0%})")
    print("\n".join(missed) or f"met: at most {AT_MOST:.0%} of a step")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
